"""What gc removes and what it never removes."""

import errno
import os
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.errors import StoredArtifactError, WrongUsage
from tasks.registry.alias_log import alias_values, append_event, champions, read_alias_log
from tasks.registry.gc import collect, plan
from tasks.registry.store import add_version, read_manifest, store_folder, store_lock, version_folder, version_numbers
from tasks.runtime.locks import artifacts_lock
from tests.stored import DIGEST, event, fill, stated, verdict

DATASET = "fashion-mnist"
KINDS = ("data", "prepared", "trained", "evaluated")


def _key(name: str) -> str:
    return name.encode().hex().ljust(64, "0")


def stage_folders(artifacts: Path, name: str) -> list[Path]:
    """The stage folders of the run called ``name``, its verdict last."""
    key = _key(name)[:16]
    return [*(artifacts / kind / key for kind in KINDS), artifacts / "data" / key / "validation" / key]


def _stages(artifacts: Path, name: str) -> list[dict[str, Any]]:
    """Outputs as a run leaves them, locks and all; returns their lineage."""
    for folder in stage_folders(artifacts, name):
        folder.mkdir(parents=True)
        (folder / "stage.json").write_text("{}")
        (folder.parent / f".{folder.name}.lock").touch()
    return [
        {"stage": kind, "split": None, "key": _key(name), "digest": DIGEST, "reused": False, "seconds": 1.0}
        for kind in (*KINDS, "validate")
    ]


def add_run(
    artifacts: Path,
    stages: str | None = None,
    promoted: bool = False,
    dataset: str = DATASET,
    made: dict[str, Any] | None = None,
) -> int:
    """A version that was made from the outputs of the run ``stages``."""
    lineage = _stages(artifacts, stages) if stages else []

    def write(folder: Path, number: int) -> dict[str, Any]:
        fill(folder)
        return stated(**{"verdict": verdict(number, promoted), "lineage": lineage, **(made or {})})

    root = store_folder(artifacts, dataset)
    with store_lock(root):
        manifest = add_version(root, write)
        if manifest["verdict"]["event"] is not None:
            append_event(root, manifest["verdict"]["event"])
    return int(manifest["version"])


def _move(root: Path, to: int, by: str = "promote", alias: str = "champion") -> None:
    append_event(root, {**event(to), "alias": alias, "by": by})


def _content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_old_versions_go_and_the_champion_its_predecessor_aliases_and_the_newest_stay(tmp_path: Path) -> None:
    root = store_folder(tmp_path, DATASET)
    for _ in range(9):
        add_run(tmp_path)
    for number in (1, 2, 4):
        _move(root, number)
    _move(root, 6, alias="candidate")
    done = collect(tmp_path, DATASET, keep=2)
    assert done.kept_versions == (2, 4, 6, 8, 9)
    assert version_numbers(root) == [2, 4, 6, 8, 9]
    assert [(gone.kind, gone.path.name) for gone in done.removed] == [
        ("version", f"000{number}") for number in (1, 3, 5, 7)
    ]
    assert done.notes == ()
    assert not list(root.rglob(".*.tmp"))


def test_after_a_rollback_the_predecessor_is_the_one_before_it(tmp_path: Path) -> None:
    root = store_folder(tmp_path, DATASET)
    for _ in range(6):
        add_run(tmp_path)
    for number in (1, 3, 4):
        _move(root, number)
    _move(root, 3, by="rollback")
    assert collect(tmp_path, DATASET, keep=1).kept_versions == (1, 3, 6)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """An artifacts folder with so many runs, run1, run2, ..; to be copied."""

    @cache
    def made(count: int) -> Path:
        artifacts = tmp_path_factory.mktemp("runs")
        for number in range(1, count + 1):
            add_run(artifacts, stages=f"run{number}")
        return artifacts

    return made


_MOVES = st.tuples(st.sampled_from(["champion", "champion", "candidate"]), st.integers(1, 6), st.booleans())


@settings(max_examples=40, deadline=None)
@given(versions=st.integers(1, 6), moves=st.lists(_MOVES, max_size=5), keep=st.integers(1, 4), again=st.integers(1, 3))
def test_whatever_happened_what_is_needed_survives_and_numbers_only_rise(
    tmp_path_factory: pytest.TempPathFactory,
    runs: Callable[[int], Path],
    versions: int,
    moves: list[tuple[str, int, bool]],
    keep: int,
    again: int,
) -> None:
    artifacts = tmp_path_factory.mktemp("artifacts")
    root = store_folder(artifacts, DATASET)
    shutil.copytree(runs(versions), artifacts, dirs_exist_ok=True)
    for alias, to, back in moves:
        if to <= versions:
            _move(root, to, by="rollback" if back else "promote", alias=alias)
    log = read_alias_log(root)
    stack = champions(log)
    before = {number: _content(version_folder(root, number)) for number in version_numbers(root)}

    collect(artifacts, DATASET, keep)

    left = version_numbers(root)
    needed = {*range(max(versions - keep, 0) + 1, versions + 1), *alias_values(log).values(), *stack[-2:]}
    assert set(left) == needed
    assert {number: _content(version_folder(root, number)) for number in left} == {n: before[n] for n in left}
    assert read_alias_log(root) == log
    for number in before:
        assert {folder.exists() for folder in stage_folders(artifacts, f"run{number}")} == {number in needed}
    made = [add_run(artifacts) for _ in range(again)]
    assert made == list(range(versions + 1, versions + 1 + again))


def test_outputs_that_no_kept_version_names_go_with_locks_checkpoints_and_leftovers(tmp_path: Path) -> None:
    add_run(tmp_path, stages="old")
    add_run(tmp_path, stages="new", promoted=True)
    _stages(tmp_path, "killed")
    kept, judged = stage_folders(tmp_path, "new")[0], _key("other")[:16]
    (kept / "validation" / judged).mkdir()
    (tmp_path / "prepared" / f".{_key('half')[:16]}.77.tmp").mkdir()
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / f"{_key('killed')}.npz").write_bytes(b"12345")
    (tmp_path / "checkpoints" / f".{_key('killed')}.npz.77.tmp").write_bytes(b"123")
    (tmp_path / "quarantine").mkdir()
    for name in ("train-1.parquet", ".train-2.parquet.77.tmp"):
        (tmp_path / "quarantine" / name).write_bytes(b"bad rows")
    (tmp_path / "returned").mkdir()
    (tmp_path / "returned" / "0123").write_text("{}")
    whole = {path: _content(path) for path in stage_folders(tmp_path, "new")}

    done = collect(tmp_path, DATASET, keep=1)

    assert done.kept_versions == (2,)
    assert [path.name for path in (tmp_path / "quarantine").iterdir()] == ["train-1.parquet"]
    for name in ("old", "killed"):
        assert not any(folder.exists() for folder in stage_folders(tmp_path, name))
    assert not (kept / "validation" / judged).exists()
    assert {path: _content(path) for path in whole} == whole
    assert sorted(path.name for path in (tmp_path / "trained").iterdir()) == sorted(
        [f".{_key('new')[:16]}.lock", _key("new")[:16]]
    )
    assert [*(tmp_path / "checkpoints").iterdir(), *(tmp_path / "returned").iterdir()] == []
    assert {gone.kind for gone in done.removed} == {"version", "stage", "checkpoint", "leftover"}
    assert [gone.bytes for gone in done.removed if gone.kind == "checkpoint"] == [5]
    assert done.bytes == sum(gone.bytes for gone in done.removed) > 0
    assert collect(tmp_path, DATASET, keep=1).removed == ()


def test_a_removed_folder_is_named_once_with_all_that_lies_in_it(tmp_path: Path) -> None:
    _stages(tmp_path, "killed")
    data, *_, verdict = stage_folders(tmp_path, "killed")
    (data / "train.parquet").write_bytes(b"x" * 100)
    (verdict / "more").write_bytes(b"x" * 20)
    removed = {gone.path: gone.bytes for gone in collect(tmp_path, DATASET).removed}
    assert removed[data] == 100 + 20 + 2 * len("{}")
    assert not any(data in path.parents for path in removed)


def test_what_versions_of_another_dataset_were_made_from_stays(tmp_path: Path) -> None:
    add_run(tmp_path)
    add_run(tmp_path, stages="other", dataset="kmnist")
    add_run(tmp_path, dataset="kmnist")
    collect(tmp_path, DATASET, keep=1)
    assert all(folder.exists() for folder in stage_folders(tmp_path, "other"))
    assert version_numbers(store_folder(tmp_path, "kmnist")) == [1, 2]


def test_while_a_run_goes_on_versions_go_and_outputs_of_stages_stay(tmp_path: Path) -> None:
    add_run(tmp_path, stages="old")
    add_run(tmp_path, stages="new")
    (tmp_path / "trained" / ".0123456789abcdef.77.tmp").mkdir()
    (tmp_path / "returned").mkdir()
    (tmp_path / "returned" / "0123").write_text("{}")
    with artifacts_lock(tmp_path) as held, artifacts_lock(tmp_path) as second:
        assert held
        assert second
        done = collect(tmp_path, DATASET, keep=1)
    assert [gone.path.name for gone in done.removed] == ["0001"]
    assert "run is going on" in " ".join(done.notes)
    assert all(folder.exists() for folder in stage_folders(tmp_path, "old"))
    assert (tmp_path / "trained" / ".0123456789abcdef.77.tmp").exists()
    assert (tmp_path / "returned" / "0123").exists()
    collect(tmp_path, DATASET, keep=1)
    assert not any(folder.exists() for folder in stage_folders(tmp_path, "old"))


@pytest.mark.parametrize("damage", ["{}", None])
def test_a_damaged_version_stays_and_keeps_all_that_it_may_need(tmp_path: Path, damage: str | None) -> None:
    root = store_folder(tmp_path, DATASET)
    for name in ("a", "b", "c", "d"):
        add_run(tmp_path, stages=name)
    manifest = version_folder(root, 2) / "manifest.json"
    manifest.write_text(damage) if damage is not None else manifest.unlink()
    done = collect(tmp_path, DATASET, keep=1)
    assert done.kept_versions == (2, 4)
    assert version_numbers(root) == [2, 4]
    assert any("ersion 2 is damaged" in note for note in done.notes)
    assert any("Outputs of stages were left" in note for note in done.notes)
    for name in ("a", "b", "c", "d"):
        assert all(folder.exists() for folder in stage_folders(tmp_path, name))


def test_a_kept_version_that_does_not_say_what_it_was_made_from_keeps_all_outputs(tmp_path: Path) -> None:
    _stages(tmp_path, "old")
    add_run(tmp_path, made={"lineage": None})
    done = collect(tmp_path, DATASET)
    assert done.removed == ()
    assert any("Outputs of stages were left" in note for note in done.notes)


def test_an_alias_log_that_cannot_be_read_stops_gc_before_it_removes_anything(tmp_path: Path) -> None:
    root = store_folder(tmp_path, DATASET)
    for _ in range(3):
        add_run(tmp_path)
    (root / "aliases.jsonl").write_text("nobody knows\n")
    for do in (plan, collect):
        with pytest.raises(StoredArtifactError, match="line 1"):
            do(tmp_path, DATASET, 1)
    assert version_numbers(root) == [1, 2, 3]


def test_a_promotion_that_a_kill_cut_off_counts(tmp_path: Path) -> None:
    root = store_folder(tmp_path, DATASET)
    for _ in range(3):
        add_run(tmp_path)
    for number in (1, 2):
        _move(root, number)
    add_run(tmp_path, promoted=True)
    log = root / "aliases.jsonl"
    log.write_bytes(log.read_bytes()[:-5])
    assert plan(tmp_path, DATASET, 1).kept_versions == (2, 4)
    done = collect(tmp_path, DATASET, 1)
    assert done.kept_versions == (2, 4)
    assert "logged the promotion of version 4" in " ".join(done.notes)
    assert champions(read_alias_log(root)) == [1, 2, 4]


def test_a_dry_run_tells_the_same_and_changes_nothing(tmp_path: Path) -> None:
    root = store_folder(tmp_path, DATASET)
    for name in ("a", "b", "c"):
        add_run(tmp_path, stages=name)
    (root / "versions" / ".0004.77.tmp").mkdir()
    (root / "versions" / ".0004.77.tmp" / "metrics.json").write_text("123")
    # No lock either: a plan must not need a folder that can be written to.
    before = sorted(tmp_path.rglob("*")), _content(tmp_path)
    planned = plan(tmp_path, DATASET, 1)
    assert (sorted(tmp_path.rglob("*")), _content(tmp_path)) == before
    assert not (tmp_path / ".in-use").exists()
    done = collect(tmp_path, DATASET, 1)
    assert (done.removed, done.kept_versions) == (planned.removed, planned.kept_versions)
    assert ("leftover", 3) in {(gone.kind, gone.bytes) for gone in done.removed}
    assert not any(gone.path.exists() for gone in done.removed)
    assert "a version that was not finished" in done.notes[0]


def test_where_nothing_is_nothing_is_made(tmp_path: Path) -> None:
    assert collect(tmp_path / "none", DATASET).removed == ()
    assert plan(tmp_path / "none", DATASET).removed == ()
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("keep", [0, -3])
def test_the_newest_version_cannot_be_given_away(tmp_path: Path, keep: int) -> None:
    for do in (plan, collect):
        with pytest.raises(WrongUsage, match="--keep"):
            do(tmp_path, DATASET, keep)


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC])
def test_a_disk_that_refuses_leaves_the_store_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    root = store_folder(tmp_path, DATASET)
    for name in ("a", "b", "c"):
        add_run(tmp_path, stages=name)
    before = _content(tmp_path / "models"), _content(tmp_path / "trained")

    def refuse(self: Path, target: Path) -> Path:
        raise OSError(number, os.strerror(number), str(self))

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(OSError, match="0001"):
        collect(tmp_path, DATASET, keep=1)
    monkeypatch.undo()
    after = _content(tmp_path / "models"), _content(tmp_path / "trained")
    # The lock is a file, too.
    assert ({name: c for name, c in after[0].items() if not name.endswith(".lock")}, after[1]) == (
        {name: c for name, c in before[0].items() if not name.endswith(".lock")},
        before[1],
    )
    assert read_manifest(root, 1)["version"] == 1
