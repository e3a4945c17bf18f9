"""A store that several machines share through object storage: each test machine has a folder of its own."""

import json
import logging
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from schemas.errors import LostRace, RemoteUnavailable, StoredArtifactError
from schemas.layout import MANIFEST_NAME, METRICS_NAME, SIGNATURE_NAME
from schemas.store import VersionFacts
from tasks.registry import gc
from tasks.registry.alias_log import champions
from tasks.registry.champion import promote, rollback
from tasks.registry.store import ModelStore
from tasks.runtime.remote import SECONDS_UNUSED
from tasks.runtime.stage_cache import record_name
from tests.stored import event, facts, fill, verdict

DATASET = "fashion-mnist"


@pytest.fixture
def remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FASHION_ANN_REMOTE", f"file://{tmp_path}/remote")
    return tmp_path / "remote"


@pytest.fixture
def machine(remote: Path, tmp_path: Path) -> Any:
    """Return a function that returns the store of a machine."""
    return lambda name: ModelStore.of(tmp_path / name, DATASET)


@pytest.fixture(autouse=True)
def no_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """The versions of these tests have no model to load."""
    monkeypatch.setattr("tasks.registry.champion.verify", lambda version: version.check())


def add(store: ModelStore, promoted: bool = False, key: Ed25519PrivateKey | None = None, **changed: Any) -> int:
    """Add a version as the stage does, and return its number."""

    def build(folder: Path, number: int) -> VersionFacts:
        (folder / METRICS_NAME).write_text(json.dumps({"machine": str(store.root)}))
        fill(folder)
        moved = event(number, store.aliases.champion()) if promoted else None
        return facts(**{"verdict": verdict(moved), **changed})

    with store.lock():
        store.recover()
        added = store.add(build, key)
        if added.manifest.verdict.event is not None:
            store.aliases.append(added.manifest.verdict.event)
    return added.number


def objects(remote: Path, pattern: str) -> list[str]:
    return sorted(str(path.relative_to(remote)) for path in remote.glob(pattern))


def test_a_machine_that_has_never_seen_the_store_has_its_versions(machine: Any) -> None:
    a = machine("a")
    add(a, promoted=True)
    b = machine("b").refresh()
    assert (b.numbers(), b.resolve("champion"), b.history()) == ([1], 1, a.history())
    version = b.version(1)
    assert [path.name for path in version.folder.iterdir()] == [MANIFEST_NAME]  # the others follow when they are used
    assert json.loads(version.read(METRICS_NAME)) == {"machine": str(a.root)}
    version.check()
    assert {path.name for path in version.folder.iterdir()} == {MANIFEST_NAME, *version.manifest.files}


def test_numbers_and_moves_continue_on_any_machine(machine: Any) -> None:
    a, b, c = map(machine, "abc")
    assert [add(a, promoted=True), add(b), add(a, promoted=True)] == [1, 2, 3]
    assert promote(b, 2, "better").event.before == 3
    assert rollback(c, "worse").event.to == 3
    assert champions(a.refresh().history()) == [1, 3]
    assert a.aliases.path.read_bytes() == c.aliases.path.read_bytes()


def test_sixteen_writers_move_the_alias_one_after_another(machine: Any, remote: Path) -> None:
    for _ in range(16):
        add(machine("a"))
    stores = [machine(f"writer {number}").refresh() for number in range(1, 17)]
    with ThreadPoolExecutor(16) as pool:
        moves = list(pool.map(lambda number: promote(stores[number - 1], number, "a race").event, range(1, 17)))
    history = machine("another").refresh().history()
    assert objects(remote, "models/*/aliases/*") == [
        f"models/{DATASET}/aliases/{line:08d}.json" for line in range(1, 17)
    ]
    assert sorted(move.to for move in history) == list(range(1, 17))
    assert [move.before for move in history] == [None, *(move.to for move in history[:-1])]  # each knew the one before
    assert sorted(history, key=lambda move: move.to) == moves


def test_of_two_equal_moves_one_wins(machine: Any) -> None:
    add(machine("a"))
    stores = [machine(name).refresh() for name in "abcd"]

    def append(store: ModelStore) -> bool:
        try:
            with store.lock():
                store.aliases.append(event(1))
        except LostRace:
            return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(append, stores)) == 1


def test_of_two_versions_with_one_number_the_second_is_not_stored(machine: Any) -> None:
    a, b = machine("a"), machine("b")

    def build(folder: Path, number: int) -> VersionFacts:
        fill(folder)
        return facts(created="2026-01-02T00:00:00.000Z")

    with b.lock():
        b.recover()
        add(a)
        with pytest.raises(LostRace, match="another machine added version 1 first"):
            b.add(build)
        assert b.numbers() == []
        b.recover()
        assert b.add(build).number == 2
    assert a.refresh().numbers() == [1, 2]


def test_a_killed_writer_leaves_nothing_visible(machine: Any, remote: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a = machine("a")

    def killed_here(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as killed:
        killed.setattr("tasks.runtime.remote.Remote.create", killed_here)
        with pytest.raises(KeyboardInterrupt):
            add(a)
    assert objects(remote, "models/**/*.json") == []
    assert machine("b").refresh().numbers() == []
    assert add(a) == 1


def test_a_promotion_that_a_killed_writer_did_not_log_is_logged_by_another_machine(machine: Any) -> None:
    a, b = machine("a"), machine("b")
    with a.lock():
        a.recover()
        added = a.add(lambda folder, number: (fill(folder), facts(verdict=verdict(event(number))))[1])
    assert b.refresh().history() == [added.manifest.verdict.event]
    with b.lock():
        assert b.recover() == ["logged the promotion of version 1, which its manifest records"]
    with a.lock():
        assert a.recover() == []
    assert len(a.aliases.read()) == 1


def test_a_store_that_was_made_without_a_remote_is_stored_there(machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as without:
        without.delenv("FASHION_ANN_REMOTE")
        add(machine("a"), promoted=True)
    assert add(machine("a"), promoted=True) == 2
    assert champions(machine("b").refresh().history()) == [1, 2]


@pytest.mark.parametrize("promoted", [False, True], ids=["versions", "moves"])
def test_stores_that_were_made_apart_are_not_mixed(
    machine: Any, promoted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as without:
        without.delenv("FASHION_ANN_REMOTE")
        add(machine("a"), promoted, created="2026-01-02T00:00:00.000Z")
    add(machine("b"), promoted)
    with pytest.raises(StoredArtifactError, match="each was written without the other"):
        add(machine("a"))


def test_a_changed_line_in_the_remote_is_rejected(machine: Any, remote: Path) -> None:
    add(machine("a"), promoted=True)
    (line,) = remote.glob("models/*/aliases/*")
    line.write_text(line.read_text().replace('"reason":"a test"', '"reason":"another"'))
    with pytest.raises(StoredArtifactError, match="was edited"):
        machine("b").refresh()


def test_a_damaged_file_in_the_remote_fails_its_digest(machine: Any, remote: Path) -> None:
    add(machine("a"))
    sha256 = machine("a").version(1).manifest.files[METRICS_NAME].sha256
    (remote / "files" / sha256[:2] / sha256).write_text("{}")
    version = machine("b").refresh().version(1)
    with pytest.raises(StoredArtifactError, match=rf"{sha256}.* Copy {METRICS_NAME} from .* machine that has it"):
        version.check()
    assert not (version.folder / METRICS_NAME).exists()
    shutil.copy(machine("a").folder(1) / METRICS_NAME, remote / "files" / sha256[:2] / sha256)
    version.check()


def test_a_copy_is_used_while_the_remote_is_away(
    machine: Any, remote: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    add(machine("a"), promoted=True)

    def away(*_: Any) -> None:
        raise RemoteUnavailable("no route")

    monkeypatch.setattr("tasks.runtime.remote.Remote.objects", away)
    with caplog.at_level(logging.WARNING):
        assert machine("a").refresh().resolve("champion") == 1
    assert "may be outdated: no route" in caplog.text
    for used in (lambda: machine("b").refresh(), lambda: promote(machine("a"), 1, "a reason")):
        with pytest.raises(RemoteUnavailable, match="no route"):
            used()


def test_a_signature_reaches_a_machine_that_has_the_version(machine: Any) -> None:
    a, b = machine("a"), machine("b")
    add(a)
    b.refresh()
    assert b.version(1).signature() is None
    a.sign(1, Ed25519PrivateKey.generate())
    assert b.refresh().version(1).signature() == a.version(1).signature()
    a.sign(1, Ed25519PrivateKey.generate())
    assert b.refresh().version(1).signature() == a.version(1).signature()
    assert (machine("c").refresh().folder(1) / SIGNATURE_NAME).exists()


# --- garbage collection ----------------------------------------------------------------------------------------------


def _age(folder: Path) -> None:
    for path in folder.rglob("*"):
        os.utime(path, (path.stat().st_mtime - SECONDS_UNUSED - 60,) * 2)


def test_a_removed_version_is_removed_everywhere(machine: Any, remote: Path, tmp_path: Path) -> None:
    a, b = machine("a"), machine("b")
    for _ in range(3):
        add(a)
    b.refresh()
    gc.collect(tmp_path / "a", DATASET, keep=1)
    assert (a.numbers(), machine("c").refresh().numbers()) == ([3], [3])
    add(b)  # does not store versions 1 and 2 again
    assert machine("d").refresh().numbers() == [3, 4]
    gc.collect(tmp_path / "b", DATASET, keep=9)
    assert b.numbers() == [3, 4]


def test_gc_works_on_a_machine_that_has_never_seen_the_store(machine: Any, tmp_path: Path) -> None:
    for _ in range(3):
        add(machine("a"), promoted=True)
    assert [removal.kind for removal in gc.plan(tmp_path / "b", DATASET, keep=1).removed] == ["version"]
    gc.collect(tmp_path / "c", DATASET, keep=1)
    assert machine("d").refresh().numbers() == [2, 3]


def test_gc_deletes_old_objects_that_no_version_names(machine: Any, remote: Path, tmp_path: Path) -> None:
    kept, dropped = "a" * 64, "b" * 64
    stage = {"stage": "prepare", "split": None, "key": kept, "digest": kept, "reused": False, "seconds": 1.0}
    add(machine("a"), lineage=[stage])
    for key in (kept, dropped):
        (remote / record_name("prepare", key)).parent.mkdir(parents=True)
        (remote / record_name("prepare", key)).write_text(json.dumps({"files": {"x": {"sha256": key}}}))
        (remote / "files" / key[:2]).mkdir(exist_ok=True)
        (remote / "files" / key[:2] / key).write_text("x")
    before = objects(remote, "**/*")
    gc.collect(tmp_path / "a", DATASET)
    assert objects(remote, "**/*") == before  # a run of another machine may use what is new
    _age(remote)
    planned = gc.plan(tmp_path / "b", DATASET)
    assert [removal.path for removal in planned.removed] == [
        f"file://{remote}/{record_name('prepare', dropped)}",
        f"file://{remote}/files/bb/{dropped}",
    ]
    gc.collect(tmp_path / "a", DATASET)
    assert set(before) - set(objects(remote, "**/*")) == {record_name("prepare", dropped), f"files/bb/{dropped}"}
    machine("c").refresh().version(1).check()


def test_gc_keeps_the_shards_of_a_kept_split(machine: Any, remote: Path, tmp_path: Path) -> None:
    split, shard = "a" * 64, "b" * 64
    stage = {"stage": "ingest", "split": "train", "key": split, "digest": split, "reused": False, "seconds": 1.0}
    add(machine("a"), lineage=[stage])
    for name, key, inputs, found in (
        ("ingest", split, {}, {"shards": [shard], "part_sha256": ["part"]}),
        ("ingest shard", shard, {"csv": "c"}, {}),
        ("ingest shard", "d" * 64, {"csv": "of another split"}, {}),
        ("scan shard", "e" * 64, {"part": "part"}, {}),
        ("scan shard", "f" * 64, {"part": "of another split"}, {}),
    ):
        path = remote / record_name(name, key)
        path.parent.mkdir(parents=True)
        record = {"stage": name, "key": key, "inputs": inputs, "facts": found, "files": {"x": {"sha256": key}}}
        path.write_text(json.dumps(record))
        (remote / "files" / key[:2]).mkdir(exist_ok=True)
        (remote / "files" / key[:2] / key).write_text("x")
    _age(remote)
    removed = {str(removal.path).rpartition("/")[2] for removal in gc.plan(tmp_path / "a", DATASET).removed}
    assert removed == {"stage.json", "d" * 64, "f" * 64}
    gc.collect(tmp_path / "a", DATASET)
    assert objects(remote, "stages/*/*/*") == sorted(
        [record_name("ingest", split), record_name("ingest shard", shard), record_name("scan shard", "e" * 64)]
    )


def test_gc_keeps_everything_while_a_manifest_cannot_be_read(machine: Any, remote: Path, tmp_path: Path) -> None:
    add(machine("a"))
    shutil.copytree(remote / "models" / DATASET, remote / "models" / "digits")
    (remote / "models" / "digits" / "versions" / "0001" / MANIFEST_NAME).write_text("{")
    (remote / "returned").mkdir()
    (remote / "returned" / "a.json").write_text("{}")
    _age(remote)
    planned = gc.plan(tmp_path / "a", DATASET)
    assert planned.removed == ()
    assert "is kept" in planned.notes[-1]
