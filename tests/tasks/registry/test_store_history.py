"""Any order of additions, promotions, rollbacks and removals leaves a store whose champion is there and whole."""

import json
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.errors import VersionNotFound, WrongUsage
from tasks.registry.alias_log import alias_values, append_event, champions, read_alias_log
from tasks.registry.champion import NothingToRollBackTo, promote, rollback
from tasks.registry.gc import collect
from tasks.registry.store import check_version, read_manifest, store_folder, version_numbers
from tests.stored import add_stored

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
        manifest = add_stored(root, promoted=bool(number))
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
            "tasks.registry.champion.verify_version",
            lambda root, number: check_version(root, read_manifest(root, number)),
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
    monkeypatch.setattr("tasks.registry.champion.verify_version", lambda root, number: {})
    for _ in range(3):
        append_event(tmp_path, add_stored(tmp_path, promoted=True)["verdict"]["event"])
    shutil.rmtree(tmp_path / "versions" / "0002")
    assert rollback(tmp_path, "a test")["to"] == 1
    assert champions(read_alias_log(tmp_path)) == [1]
    assert json.loads((tmp_path / "aliases.jsonl").read_text().splitlines()[-1])["from"] == 3
