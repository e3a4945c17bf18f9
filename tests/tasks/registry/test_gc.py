"""Test which versions and artifacts gc deletes and which it keeps."""

import errno
import json
import os
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.errors import StoredArtifactError, VersionNotFound, WrongUsage
from tasks.registry.alias_log import alias_values, champions
from tasks.registry.gc import Plan, collect, plan
from tasks.registry.store import ModelStore
from tasks.runtime.files import digest_of
from tasks.runtime.locks import artifacts_lock
from tests.faulty_files import refuse_to_rename_folders
from tests.field_faults import field_fault
from tests.stored import DIGEST, add_promoted, add_stored, event, make_older, verdict

DATASET = "fashion-mnist"
KINDS = ("data", "prepared", "trained", "evaluated")


def _key(name: str) -> str:
    return name.encode().hex().ljust(64, "0")


def stage_folders(artifacts: Path, name: str) -> list[Path]:
    """Return the stage folders of the run called ``name``, its validation last."""
    key = _key(name)[:16]
    return [*(artifacts / kind / key for kind in KINDS), artifacts / "data" / key / "validation" / key]


def write_record(folder: Path, key: str, *files: str) -> None:
    """Write the record of a stage that wrote ``files``, which are empty if they do not exist."""
    for name in files:
        (folder / name).touch()
    written = {name: {"sha256": DIGEST, "bytes": 0} for name in files}
    record = {"stage": "any", "key": key, "facts": {}, "seconds": 1.0, "files": written}
    (folder / "stage.json").write_text(json.dumps({**record, "record_sha256": digest_of(record)}))


def add_stages(artifacts: Path, name: str) -> list[dict[str, Any]]:
    """Write stage outputs with their locks, and return their lineage."""
    for folder in stage_folders(artifacts, name):
        folder.mkdir(parents=True)
        write_record(folder, _key(name))
        (folder.parent / f".{folder.name}.lock").touch()
    return [
        {"stage": kind, "split": None, "key": _key(name), "digest": DIGEST, "reused": False, "seconds": 1.0}
        for kind in (*KINDS, "validate")
    ]


def add_run(artifacts: Path, stages: str | None = None, promoted: bool = False, dataset: str = DATASET) -> int:
    """Add a version that was created from the outputs of the run ``stages``."""
    add = add_promoted if promoted else add_stored
    lineage = add_stages(artifacts, stages) if stages else []
    return add(ModelStore.of(artifacts, dataset).root, lineage=lineage).number


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore.of(tmp_path, DATASET)


def _move(store: ModelStore, to: int, by: str = "promote", alias: str = "champion") -> None:
    before = alias_values(store.aliases.read()).get(alias)
    store.aliases.append(event(to, before, by, alias))


def _content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


MOVES = {
    "champion and predecessor": ([1, 2, 4], [2, 4]),
    "promoted again": ([1, 2, 1], [1, 2]),
    "rolled back": ([1, 3, 4, -3], [1, 3, 4]),
    "rolled back twice": ([1, 2, 3, -2, -1], [1, 2]),
    "promoted after a rollback": ([1, 3, 4, -3, 5], [3, 5]),
    "rolled back after that": ([1, 3, 4, -3, 5, -3], [1, 3, 5]),
    "only champion": ([2], [2]),
    "no champion": ([], []),
}


@pytest.mark.parametrize(("moves", "kept"), MOVES.values(), ids=MOVES)
def test_champions_are_kept(tmp_path: Path, store: ModelStore, moves: list[int], kept: list[int]) -> None:
    """A negative number is a rollback. Version 6 is the newest."""
    for _ in range(6):
        add_run(tmp_path)
    for to in moves:
        _move(store, abs(to), by="promote" if to > 0 else "rollback")
    assert collect(tmp_path, DATASET, keep=1).kept_versions == (*kept, 6)


def test_a_removed_predecessor_is_passed_over(tmp_path: Path, store: ModelStore) -> None:
    for _ in range(5):
        add_run(tmp_path)
    for number in (1, 2, 3):
        _move(store, number)
    shutil.rmtree(store.folder(2))
    assert collect(tmp_path, DATASET, keep=1).kept_versions == (1, 3, 5)


def test_old_versions_are_deleted(tmp_path: Path, store: ModelStore) -> None:
    for _ in range(9):
        add_run(tmp_path)
    for number in (1, 2, 4):
        _move(store, number)
    _move(store, 6, alias="candidate")
    done = collect(tmp_path, DATASET, keep=2)
    assert done.kept_versions == (2, 4, 6, 8, 9)
    assert store.numbers() == [2, 4, 6, 8, 9]
    assert [(removal.kind, removal.path.name) for removal in done.removed] == [
        ("version", f"000{number}") for number in (1, 3, 5, 7)
    ]
    assert done.notes == ()
    assert store.leftovers() == []


def test_the_newest_waiting_version_is_kept(tmp_path: Path, store: ModelStore) -> None:
    for outcome in ("waiting", "waiting", "kept", "kept"):
        add_stored(store.root, verdict={**verdict(None), "outcome": outcome})
    assert collect(tmp_path, DATASET, keep=1).kept_versions == (2, 4)


def test_another_alias_does_not_replace_the_predecessor(tmp_path: Path, store: ModelStore) -> None:
    for _ in range(5):
        add_run(tmp_path)
    for to, by in ((1, "promote"), (2, "promote"), (3, "promote"), (2, "rollback")):
        _move(store, to, by)
    _move(store, 4, alias="staging")
    assert collect(tmp_path, DATASET, keep=1).kept_versions == (1, 2, 3, 4, 5)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """Return an artifacts folder with a number of runs, run1, run2, ...; copy it."""

    @cache
    def folder(count: int) -> Path:
        artifacts = tmp_path_factory.mktemp("runs")
        for number in range(1, count + 1):
            add_run(artifacts, stages=f"run{number}")
        return artifacts

    return folder


_MOVES = st.tuples(st.sampled_from(["champion", "champion", "candidate"]), st.integers(1, 6), st.booleans())


@settings(max_examples=40, deadline=None)
@given(versions=st.integers(1, 6), moves=st.lists(_MOVES, max_size=5), keep=st.integers(1, 4), again=st.integers(1, 3))
def test_needed_versions_survive_any_history(
    tmp_path_factory: pytest.TempPathFactory,
    runs: Callable[[int], Path],
    versions: int,
    moves: list[tuple[str, int, bool]],
    keep: int,
    again: int,
) -> None:
    artifacts = tmp_path_factory.mktemp("artifacts")
    store = ModelStore.of(artifacts, DATASET)
    shutil.copytree(runs(versions), artifacts, dirs_exist_ok=True)
    for alias, to, back in moves:
        if to <= versions:
            _move(store, to, by="rollback" if back else "promote", alias=alias)
    log = store.aliases.read()
    before = {number: _content(store.folder(number)) for number in store.numbers()}

    collect(artifacts, DATASET, keep)

    kept = store.numbers()
    moves_of_champion = [move for move in log if move.alias == "champion"]
    previous = {move.before for move in moves_of_champion[-1:] if move.before is not None}
    newest = range(max(versions - keep, 0) + 1, versions + 1)
    needed = {*newest, *alias_values(log).values(), *champions(log)[-2:], *previous}
    assert set(kept) == needed
    assert {number: _content(store.folder(number)) for number in kept} == {number: before[number] for number in kept}
    assert store.aliases.read() == log
    for number in before:
        assert {folder.exists() for folder in stage_folders(artifacts, f"run{number}")} == {number in needed}
    assert [add_run(artifacts) for _ in range(again)] == list(range(versions + 1, versions + 1 + again))


def test_unreferenced_artifacts_are_deleted(tmp_path: Path) -> None:
    add_run(tmp_path, stages="old")
    add_run(tmp_path, stages="new", promoted=True)
    add_stages(tmp_path, "killed")
    whole = {path: _content(path) for path in stage_folders(tmp_path, "new")}
    kept, validation = stage_folders(tmp_path, "new")[0], _key("other")[:16]
    (kept / "validation" / validation).mkdir()
    write_record(kept / "validation" / validation, _key("other"))
    (tmp_path / "prepared" / f".{_key('half')[:16]}.77.tmp").mkdir()
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / f"{_key('killed')}.npz").write_bytes(b"12345")
    (tmp_path / "checkpoints" / f".{_key('killed')}.npz.77.tmp").write_bytes(b"123")
    (tmp_path / "quarantine").mkdir()
    for name in ("train-1.parquet", ".train-2.parquet.77.tmp"):
        (tmp_path / "quarantine" / name).write_bytes(b"bad rows")
    (tmp_path / "returned").mkdir()
    (tmp_path / "returned" / "0123").write_text("{}")

    done = collect(tmp_path, DATASET, keep=1)

    assert done.kept_versions == (2,)
    assert [path.name for path in (tmp_path / "quarantine").iterdir()] == ["train-1.parquet"]
    for name in ("old", "killed"):
        assert not any(folder.exists() for folder in stage_folders(tmp_path, name))
    assert not (kept / "validation" / validation).exists()
    assert {path: _content(path) for path in whole} == whole
    assert sorted(path.name for path in (tmp_path / "trained").iterdir()) == sorted(
        [f".{_key('new')[:16]}.lock", _key("new")[:16]]
    )
    assert [*(tmp_path / "checkpoints").iterdir(), *(tmp_path / "returned").iterdir()] == []
    assert {removal.kind for removal in done.removed} == {"version", "stage", "checkpoint", "leftover"}
    assert [removal.bytes for removal in done.removed if removal.kind == "checkpoint"] == [5]
    assert done.bytes == sum(removal.bytes for removal in done.removed) > 0
    assert collect(tmp_path, DATASET, keep=1).removed == ()


def test_a_removed_folder_is_listed_once(tmp_path: Path) -> None:
    add_stages(tmp_path, "killed")
    data, *_, verdict = stage_folders(tmp_path, "killed")
    (data / "train.parquet").write_bytes(b"x" * 100)
    write_record(data, _key("killed"), "train.parquet")
    records = sum((folder / "stage.json").stat().st_size for folder in (data, verdict))
    removed = {removal.path: removal.bytes for removal in collect(tmp_path, DATASET).removed}
    assert removed[data] == 100 + records
    assert not any(data in path.parents for path in removed)


def test_stage_outputs_of_other_datasets_are_kept(tmp_path: Path) -> None:
    add_run(tmp_path)
    add_run(tmp_path, stages="other", dataset="kmnist")
    add_run(tmp_path, dataset="kmnist")
    collect(tmp_path, DATASET, keep=1)
    assert all(folder.exists() for folder in stage_folders(tmp_path, "other"))
    assert ModelStore.of(tmp_path, "kmnist").numbers() == [1, 2]


def test_stage_outputs_are_kept_while_a_run_is_active(tmp_path: Path) -> None:
    add_run(tmp_path, stages="old")
    add_run(tmp_path, stages="new")
    (tmp_path / "trained" / ".0123456789abcdef.77.tmp").mkdir()
    (tmp_path / "returned").mkdir()
    (tmp_path / "returned" / "0123").write_text("{}")
    with artifacts_lock(tmp_path) as held, artifacts_lock(tmp_path) as second:
        assert held
        assert second
        done = collect(tmp_path, DATASET, keep=1)
    assert [removal.path.name for removal in done.removed] == ["0001"]
    assert "a run is active" in " ".join(done.notes)
    assert all(folder.exists() for folder in stage_folders(tmp_path, "old"))
    assert (tmp_path / "trained" / ".0123456789abcdef.77.tmp").exists()
    assert (tmp_path / "returned" / "0123").exists()
    collect(tmp_path, DATASET, keep=1)
    assert not any(folder.exists() for folder in stage_folders(tmp_path, "old"))


@pytest.mark.parametrize("damage", ["{}", None])
def test_a_damaged_version_keeps_all_stage_outputs(tmp_path: Path, store: ModelStore, damage: str | None) -> None:
    for name in ("a", "b", "c", "d"):
        add_run(tmp_path, stages=name)
    manifest = store.folder(2) / "manifest.json"
    manifest.write_text(damage) if damage is not None else manifest.unlink()
    done = collect(tmp_path, DATASET, keep=1)
    assert done.kept_versions == (2, 4)
    assert store.numbers() == [2, 4]
    assert any("ersion 2 is damaged" in note for note in done.notes)
    assert any("Stage outputs are kept" in note for note in done.notes)
    for name in ("a", "b", "c", "d"):
        assert all(folder.exists() for folder in stage_folders(tmp_path, name))


def test_a_damaged_alias_log_stops_gc(tmp_path: Path, store: ModelStore) -> None:
    for _ in range(3):
        add_run(tmp_path)
    store.aliases.path.write_text("edited\n")
    for do in (plan, collect):
        with pytest.raises(StoredArtifactError, match="line 1"):
            do(tmp_path, DATASET, 1)
    assert store.numbers() == [1, 2, 3]


def test_a_promotion_that_was_not_logged_counts(tmp_path: Path, store: ModelStore) -> None:
    for _ in range(3):
        add_run(tmp_path)
    for number in (1, 2):
        _move(store, number)
    add_run(tmp_path, promoted=True)
    log = store.aliases.path
    log.write_bytes(log.read_bytes()[:-5])
    assert plan(tmp_path, DATASET, 1).kept_versions == (2, 4)
    done = collect(tmp_path, DATASET, 1)
    assert done.kept_versions == (2, 4)
    assert "logged the promotion of version 4" in " ".join(done.notes)
    assert champions(store.aliases.read()) == [1, 2, 4]


def test_a_dry_run_changes_nothing(tmp_path: Path, store: ModelStore) -> None:
    for name in ("a", "b", "c"):
        add_run(tmp_path, stages=name)
    leftover = store.folder(4).with_name(".0004.77.tmp")
    leftover.mkdir()
    (leftover / "metrics.json").write_text("123")
    # Not even a lock: a dry run works in a read-only folder.
    before = sorted(tmp_path.rglob("*")), _content(tmp_path)
    planned = plan(tmp_path, DATASET, 1)
    assert (sorted(tmp_path.rglob("*")), _content(tmp_path)) == before
    assert not (tmp_path / ".in-use").exists()
    done = collect(tmp_path, DATASET, 1)
    assert (done.removed, done.kept_versions) == (planned.removed, planned.kept_versions)
    assert ("leftover", 3) in {(removal.kind, removal.bytes) for removal in done.removed}
    assert not any(removal.path.exists() for removal in done.removed)
    assert "an incomplete version" in done.notes[0]


def test_a_missing_artifacts_folder_is_not_created(tmp_path: Path) -> None:
    assert collect(tmp_path / "none", DATASET).removed == ()
    assert plan(tmp_path / "none", DATASET).removed == ()
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("keep", [0, -3])
def test_the_newest_version_is_always_kept(tmp_path: Path, keep: int) -> None:
    for do in (plan, collect):
        with pytest.raises(WrongUsage, match="--keep"):
            do(tmp_path, DATASET, keep)


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC])
def test_a_failed_rename_leaves_the_store_intact(
    tmp_path: Path, store: ModelStore, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    for name in ("a", "b", "c"):
        add_run(tmp_path, stages=name)

    def stored() -> dict[str, bytes]:
        locks = (".lock", ".in-use")
        return {name: content for name, content in _content(tmp_path).items() if not name.endswith(locks)}

    def fail(self: Path, target: Path) -> Path:
        raise OSError(number, os.strerror(number), str(self))

    before = stored()
    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OSError, match="0001"):
        collect(tmp_path, DATASET, keep=1)
    assert stored() == before
    store.version(1).check()


def test_a_version_of_an_older_layout_is_deleted(tmp_path: Path, store: ModelStore) -> None:
    for name in ("a", "b", "c"):
        add_run(tmp_path, stages=name, promoted=name == "b")
    for number in (1, 2):
        make_older(store.version(number))
    assert collect(tmp_path, DATASET, keep=1).kept_versions == (2, 3)
    # This release cannot use the stage outputs of the other one.
    assert [any(folder.exists() for folder in stage_folders(tmp_path, name)) for name in "abc"] == [False, False, True]


@field_fault(
    "environment of the machine",
    "A store is in a lower layer of an overlay, whose folders cannot be renamed (EXDEV)",
    "Garbage collection deletes old versions and stage outputs, and leaves nothing behind",
)
def test_folders_that_cannot_be_renamed_are_deleted(
    tmp_path: Path, store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        add_run(tmp_path, stages=name)
    refuse_to_rename_folders(monkeypatch)
    collect(tmp_path, DATASET, keep=1)
    assert store.numbers() == [2]
    assert store.leftovers() == []
    assert not list(tmp_path.rglob(".*.tmp"))
    assert not any(folder.exists() for folder in stage_folders(tmp_path, "a"))


def test_a_half_removed_version_is_absent_and_then_removed(tmp_path: Path, store: ModelStore) -> None:
    add_run(tmp_path)
    add_run(tmp_path)
    manifest = store.folder(1) / "manifest.json"
    manifest.rename(store.folder(1).with_name(".0001.manifest.json.abc.tmp"))
    assert store.numbers() == [2]
    with pytest.raises(VersionNotFound):
        store.version(1)
    with store.lock():
        assert len(store.recover()) == 2
    assert [path.name for path in (store.root / "versions").iterdir()] == ["0002"]


def test_litter_among_stage_outputs_stays(tmp_path: Path) -> None:
    add_run(tmp_path, stages="a")
    for kind in KINDS:
        (tmp_path / kind / "@eaDir").mkdir()
        (tmp_path / kind / ".DS_Store").touch()
    assert collect(tmp_path, DATASET, keep=1).removed == ()


KEY = "0123456789abcdef"


def _user_folder(name: str, *files: str) -> Callable[[Path], None]:
    def create(artifacts: Path) -> None:
        folder = artifacts / name
        folder.mkdir(parents=True, exist_ok=True)
        for file in files:
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_bytes(b"a user's")

    return create


def _stage_with(change: Callable[[Path], object]) -> Callable[[Path], None]:
    """Add an output that no version refers to, and ``change`` its folder."""

    def create(artifacts: Path) -> None:
        folder = artifacts / "data" / KEY
        folder.mkdir(parents=True)
        write_record(folder, KEY.ljust(64, "0"), "train.parquet")
        change(folder)

    return create


def _link(folder: Path) -> None:
    elsewhere = folder.parents[2] / "elsewhere"
    folder.rename(elsewhere)
    folder.symlink_to(elsewhere)


USERS = {
    "CSVs in data/": _user_folder("data", "fashion-mnist_train.csv", "fashion-mnist_test.csv"),
    "folder of CSVs in data/": _user_folder("data/july", "fashion-mnist_train.csv"),
    "folder with a stage.json of its own": _user_folder("prepared/mine", "stage.json"),
    "folder named like a key": _user_folder(f"trained/{KEY}", "images.csv"),
    "folder named like a key, with a stage.json": _user_folder(f"evaluated/{KEY}", "stage.json", "images.csv"),
    "hidden files": _user_folder("data", ".cache.tmp", ".mine.lock", f".{KEY}", ".july.0a.tmp"),
    "files beside the checkpoints": _user_folder("checkpoints", "mine.npz", ".mine.npz.0a.tmp"),
    "files beside returned results": _user_folder("returned", "notes.txt", "0123/notes.txt"),
    "hidden file beside the quarantine": _user_folder("quarantine", ".mine.tmp", ".mine.parquet.0a.tmp"),
    "hidden folder beside the versions": _user_folder(f"models/{DATASET}/versions", ".mine.tmp", ".mine.0a.tmp/x"),
    "file in an output": _stage_with(lambda folder: (folder / "july.csv").write_bytes(b"1")),
    "folder in an output": _stage_with(_user_folder("mine", "july.csv")),
    "file beside the validations": _stage_with(_user_folder("validation", "july.csv")),
    "folder in place of a validation": _stage_with(_user_folder(f"validation/{KEY}", "july.csv")),
    "link in an output": _stage_with(lambda folder: (folder / "july").symlink_to(folder.parent)),
    "link to an output": _stage_with(_link),
    "record of another output": _stage_with(lambda folder: write_record(folder, "f" * 64, "train.parquet")),
    "record that was edited": _stage_with(lambda folder: (folder / "stage.json").write_text('{"record_sha256": "0"}')),
    "record without files": _stage_with(lambda folder: (folder / "stage.json").unlink()),
}


@pytest.mark.parametrize("create", USERS.values(), ids=USERS)
def test_what_no_stage_wrote_is_kept(tmp_path: Path, create: Callable[[Path], None]) -> None:
    artifacts = tmp_path / "artifacts"
    add_run(artifacts)
    create(artifacts)
    before = {str(path): path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")}
    planned = plan(artifacts, DATASET, 1)
    done = collect(artifacts, DATASET, 1)
    assert planned.removed == done.removed == ()
    after = {str(path): path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")}
    assert {path: after.get(path) for path in before} == before
    reasons = [note for note in done.notes if f"{KEY} is kept: " in note]
    assert bool(reasons) == any(KEY in path and f".{KEY}" not in path for path in before)


def test_a_version_with_a_file_of_the_user_is_kept(tmp_path: Path, store: ModelStore) -> None:
    for _ in range(3):
        add_run(tmp_path)
    (store.folder(1) / "notes.txt").write_text("mine")
    done = collect(tmp_path, DATASET, keep=1)
    assert [removal.path for removal in done.removed] == [store.folder(2)]
    assert "notes.txt is not named by the manifest" in " ".join(done.notes)


def test_litter_of_the_system_keeps_nothing(tmp_path: Path) -> None:
    _stage_with(lambda folder: (folder / ".DS_Store").touch())(tmp_path)
    assert [removal.path.name for removal in collect(tmp_path, DATASET).removed] == [KEY]


def test_the_plan_is_announced_before_any_deletion(tmp_path: Path, store: ModelStore) -> None:
    for name in ("a", "b", "c"):
        add_run(tmp_path, stages=name)
    store.folder(4).with_name(".0004.77.tmp").mkdir()
    announced = []

    def announce(planned: Plan) -> None:
        announced.append(planned.removed)
        assert all(removal.path.exists() for removal in planned.removed)

    planned = plan(tmp_path, DATASET, 1)
    assert collect(tmp_path, DATASET, 1, announce=announce).removed == planned.removed
    assert announced == [planned.removed]
    assert len(planned.removed) > 3
