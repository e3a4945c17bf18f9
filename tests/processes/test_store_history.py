import contextlib
import multiprocessing
from pathlib import Path
from typing import Any

from schemas.errors import NothingToRollBackTo, WrongUsage
from schemas.store import VersionFacts
from tasks.registry import champion
from tasks.registry.champion import promote, rollback
from tasks.registry.store import ModelStore, StoredVersion
from tests.stored import add_promoted, event, facts, fill, verdict


def _train(store: ModelStore, turn: int) -> None:
    """Do what a training does to the store: add a version and promote it, under one lock."""
    with store.lock():
        store.recover()

        def build(folder: Path, number: int) -> VersionFacts:
            fill(folder)
            return facts(verdict=verdict(event(number, store.aliases.champion(), by="training")))

        moved = store.add(build).manifest.verdict.event
        assert moved is not None
        store.aliases.append(moved)


def _promote(store: ModelStore, turn: int) -> None:
    with contextlib.suppress(WrongUsage):  # it is champion already
        promote(store, 1 + turn % 2, "by hand")


def _roll_back(store: ModelStore, turn: int) -> None:
    with contextlib.suppress(NothingToRollBackTo):
        rollback(store, "by hand")


def _repeat(step: Any, root: Path, start: Any) -> None:
    champion.verify = StoredVersion.check  # these versions contain no network
    start.wait()
    for turn in range(8):
        step(ModelStore(root), turn)


def test_concurrent_writers_leave_one_history(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    for _ in range(2):
        add_promoted(tmp_path)
    context = multiprocessing.get_context("spawn")
    start = context.Barrier(4)
    writers = [
        context.Process(target=_repeat, args=(step, tmp_path, start)) for step in (_train, _train, _promote, _roll_back)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert store.numbers() == list(range(1, 2 + 16 + 1))
    log = store.aliases.read()
    # Each move starts from the champion that the move before it made: no decision used an outdated champion.
    assert [move.before for move in log[2:]] == [move.to for move in log[1:-1]]
    assert sum(move.by == "training" for move in log) == 16
    for number in store.numbers():
        store.version(number).check()
