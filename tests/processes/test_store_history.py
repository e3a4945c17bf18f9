import contextlib
import multiprocessing
from pathlib import Path
from typing import Any

import tasks.registry.champion
from schemas.errors import WrongUsage
from tasks.registry.alias_log import CHAMPION, alias_values, append_event, read_alias_log
from tasks.registry.champion import NothingToRollBackTo, promote, rollback
from tasks.registry.store import (
    add_version,
    check_version,
    read_manifest,
    recover,
    store_folder,
    store_lock,
    version_numbers,
)
from tests.stored import add_stored, event, fill, stated, verdict


def _train_often(root: Path, together: Any) -> None:
    """What two trainings do to the store, but for the network: a version, promoted, under one hold of the lock."""
    together.wait()
    for _ in range(8):
        with store_lock(root):
            recover(root)
            champion = alias_values(read_alias_log(root)).get(CHAMPION)

            def write(folder: Path, number: int, champion: int | None = champion) -> dict[str, Any]:
                fill(folder)
                moved = {**event(number, by="training"), "from": champion}
                return stated(verdict={**verdict(number, promoted=True), "event": moved})

            append_event(root, add_version(root, write)["verdict"]["event"])


def _move_often(root: Path, together: Any) -> None:
    # These versions hold no network; their digests are checked all the same.
    tasks.registry.champion.verify_version = lambda root, number: check_version(root, read_manifest(root, number))
    together.wait()
    for turn in range(8):
        with contextlib.suppress(WrongUsage):  # it is champion already
            promote(root, 1 + turn % 2, "by hand")


def _roll_back_often(root: Path, together: Any) -> None:
    tasks.registry.champion.verify_version = lambda root, number: check_version(root, read_manifest(root, number))
    together.wait()
    for _ in range(8):
        with contextlib.suppress(NothingToRollBackTo):
            rollback(root, "by hand")


def test_two_trainings_a_promotion_and_a_rollback_at_once_leave_one_history(tmp_path: Path) -> None:
    root = store_folder(tmp_path, "fashion-mnist")
    for _ in range(2):
        append_event(root, add_stored(root, promoted=True)["verdict"]["event"])
    context = multiprocessing.get_context("spawn")
    together = context.Barrier(4)
    writers = [
        context.Process(target=target, args=(root, together))
        for target in (_train_often, _train_often, _move_often, _roll_back_often)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert version_numbers(root) == list(range(1, 2 + 16 + 1))
    log = read_alias_log(root)
    # Each move starts where the one before it ended: none was decided on a champion of the past.
    assert [move["from"] for move in log[2:]] == [move["to"] for move in log[1:-1]]
    assert sum(move["by"] == "training" for move in log) == 16
    for number in version_numbers(root):
        check_version(root, read_manifest(root, number))
