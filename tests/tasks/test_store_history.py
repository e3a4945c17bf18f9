"""Any order of additions, promotions, rollbacks and removals leaves a store whose champion is there and whole."""

import contextlib
import json
import multiprocessing
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tasks.champion
from schemas.errors import VersionNotFound, WrongUsage
from tasks.champion import NothingToRollBackTo, promote, rollback
from tasks.gc import collect
from tasks.store import (
    CHAMPION,
    add_version,
    alias_values,
    append_event,
    champions,
    check_version,
    read_alias_log,
    read_manifest,
    settle,
    store_folder,
    store_lock,
    version_numbers,
)
from tests.stored import event, fill, stated, verdict
from tests.tasks.test_store import _add

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.booleans().map(int)),
        st.tuples(st.just("promote"), st.integers(1, 6)),
        st.tuples(st.just("rollback"), st.just(0)),
        st.tuples(st.just("gc"), st.integers(1, 3)),
    ),
    max_size=14,
)


def _step(artifacts: Path, root: Path, what: str, number: int) -> None:
    if what == "add":
        manifest = _add(root, promoted=bool(number))
        if manifest["verdict"]["event"] is not None:
            append_event(root, manifest["verdict"]["event"])
    elif what == "promote":
        promote(root, number, "a test")
    elif what == "rollback":
        rollback(root, "a test")
    else:
        collect(artifacts, "fashion-mnist", number)


@settings(max_examples=60, deadline=None)
@given(STEPS)
def test_the_champion_is_there_and_whole_and_a_rollback_gives_the_one_before(steps: list[tuple[str, int]]) -> None:
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        # These versions hold no network; their digests are checked all the same.
        patch.setattr(
            "tasks.champion.verify_version", lambda root, number: check_version(root, read_manifest(root, number))
        )
        artifacts = Path(folder)
        root = store_folder(artifacts, "fashion-mnist")
        highest, lines = 0, 0
        for what, number in steps:
            before = champions(read_alias_log(root))
            try:
                _step(artifacts, root, what, number)
            except (WrongUsage, VersionNotFound, NothingToRollBackTo):
                assert champions(read_alias_log(root)) == before
            log = read_alias_log(root)
            assert len(log) >= lines  # append-only
            stack, numbers = champions(log), version_numbers(root)
            if stack:
                assert alias_values(log) == {"champion": stack[-1]}
                assert stack[-1] in numbers
                check_version(root, read_manifest(root, stack[-1]))
            if what == "add":
                assert numbers[-1] > highest  # a number is never given twice
            highest, lines = max([highest, *numbers]), len(log)
        if len(stack := champions(read_alias_log(root))) > 1 and stack[-2] in version_numbers(root):
            rollback(root, "a test")
            assert champions(read_alias_log(root))[-1] == stack[-2]


def test_a_rollback_passes_over_a_version_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.champion.verify_version", lambda root, number: {})
    for _ in range(3):
        append_event(tmp_path, _add(tmp_path, promoted=True)["verdict"]["event"])
    shutil.rmtree(tmp_path / "versions" / "0002")
    assert rollback(tmp_path, "a test")["to"] == 1
    assert champions(read_alias_log(tmp_path)) == [1]
    assert json.loads((tmp_path / "aliases.jsonl").read_text().splitlines()[-1])["from"] == 3


def _train_often(root: Path, together: Any) -> None:
    """What two trainings do to the store, but for the network: a version, promoted, under one hold of the lock."""
    together.wait()
    for _ in range(8):
        with store_lock(root):
            settle(root)
            champion = alias_values(read_alias_log(root)).get(CHAMPION)

            def write(folder: Path, number: int, champion: int | None = champion) -> dict[str, Any]:
                fill(folder)
                moved = {**event(number, by="training"), "from": champion}
                return stated(verdict={**verdict(number, promoted=True), "event": moved})

            append_event(root, add_version(root, write)["verdict"]["event"])


def _move_often(root: Path, together: Any) -> None:
    # These versions hold no network; their digests are checked all the same.
    tasks.champion.verify_version = lambda root, number: check_version(root, read_manifest(root, number))
    together.wait()
    for turn in range(8):
        with contextlib.suppress(WrongUsage):  # it is champion already
            promote(root, 1 + turn % 2, "by hand")


def _roll_back_often(root: Path, together: Any) -> None:
    tasks.champion.verify_version = lambda root, number: check_version(root, read_manifest(root, number))
    together.wait()
    for _ in range(8):
        with contextlib.suppress(NothingToRollBackTo):
            rollback(root, "by hand")


def test_two_trainings_a_promotion_and_a_rollback_at_once_leave_one_history(tmp_path: Path) -> None:
    root = store_folder(tmp_path, "fashion-mnist")
    for _ in range(2):
        append_event(root, _add(root, promoted=True)["verdict"]["event"])
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
