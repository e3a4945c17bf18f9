"""Object storage that is slow, unreachable for a moment, full or read-only, and writers that race or are killed."""

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from schemas.config import PROJECT_ROOT
from schemas.errors import LostRace, RemoteUnavailable
from schemas.layout import METRICS_NAME
from schemas.store import VersionFacts
from tasks.registry.champion import promote
from tasks.registry.store import ModelStore
from tasks.runtime.remote import PIECE, remote_at
from tasks.runtime.stage_cache import run_stage
from tasks.runtime.stages import PREPARE
from tests.remote.conftest import Server
from tests.remote.link import Link
from tests.remote.outputs import names, never
from tests.remote.servers import READER_KEYS, set_container
from tests.stored import facts, fill

DATASET = "fashion-mnist"
_SECONDS = 120


def build_of(size: int) -> Any:
    def build(output: Path) -> dict[str, Any]:
        (output / "output.bin").write_bytes(os.urandom(size))
        return {}

    return build


def add(store: ModelStore, note: str = "") -> int:
    """Add a version as the stage does, and return its number."""

    def build(folder: Path, number: int) -> VersionFacts:
        (folder / METRICS_NAME).write_text(json.dumps({"note": note}))
        fill(folder)
        return facts(note=note or None)

    with store.lock():
        while True:
            store.recover()
            try:
                return store.add(build).number
            except LostRace:
                continue


# --- the link --------------------------------------------------------------------------------------------------------


def test_a_slow_link_is_waited_for(link: Link, tmp_path: Path) -> None:
    link.latency, link.bytes_per_second = 0.3, 200_000
    first, _ = run_stage(tmp_path / "a", PREPARE, {}, build_of(500_000))
    assert run_stage(tmp_path / "b", PREPARE, {}, never)[0].digest == first.digest


@pytest.mark.parametrize("moment", ["push", "pull"])
def test_a_transfer_that_is_cut_is_repeated(link: Link, tmp_path: Path, moment: str) -> None:
    first = None
    for machine in ("push", "pull"):
        if machine == moment:
            link.cut_in = PIECE // 2
        record, _ = run_stage(tmp_path / machine, PREPARE, {}, build_of(2 * PIECE) if first is None else never)
        first = first or record
        assert record.digest == first.digest
    assert link.cut_in is None


def test_a_busy_server_is_asked_again(link: Link, tmp_path: Path) -> None:
    for machine, build in (("a", build_of(1000)), ("b", never)):
        link.refused = 5
        run_stage(tmp_path / machine, PREPARE, {}, build)
        assert link.refused == 0


def test_a_server_that_stays_busy_is_one_clear_error(
    link: Link, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.runtime.remote.RETRY_SECONDS", 1)
    link.refused = 1_000_000
    with pytest.raises(RemoteUnavailable, match=r"503 Service Unavailable.*the next run stores"):
        run_stage(tmp_path / "a", PREPARE, {}, build_of(1000))
    link.refused = 0
    assert names() == set()


# --- permissions and space -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("server", ["swift"], indirect=True)
def test_a_reader_uses_versions_and_changes_nothing(
    server: Server, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.registry.champion.verify", lambda version: version.check())  # it has no model
    add(ModelStore.of(tmp_path / "writer", DATASET))
    run_stage(tmp_path / "writer", PREPARE, {}, build_of(10))
    set_container(server.folder, bucket, X_Container_Read="test:reader")
    for name, value in READER_KEYS.items():
        monkeypatch.setenv(name, value)
    remote_at.cache_clear()
    before = names()
    store = ModelStore.of(tmp_path / "reader", DATASET).refresh()
    assert store.numbers() == [1]
    store.version(1).check()
    run_stage(tmp_path / "reader", PREPARE, {}, never)
    with pytest.raises(RemoteUnavailable, match=r"403 Forbidden.*Expected credentials.*may read, write"):
        promote(store, 1, "a test")
    with pytest.raises(RemoteUnavailable, match="403 Forbidden"):
        add(store)
    assert (store.numbers(), store.history(), names()) == ([1], [], before)


@pytest.mark.parametrize("server", ["swift"], indirect=True)
def test_a_full_remote_is_one_clear_error(server: Server, bucket: str, tmp_path: Path) -> None:
    set_container(server.folder, bucket, X_Container_Meta_Quota_Bytes="1000")
    with pytest.raises(RemoteUnavailable, match=r"exceeds quota.*next run stores"):
        run_stage(tmp_path / "a", PREPARE, {}, build_of(2000))
    store = ModelStore.of(tmp_path / "a", DATASET)
    with pytest.raises(RemoteUnavailable, match=r"exceeds quota.*next run stores"):
        add(store, "x" * 900)
    assert store.numbers() == []
    assert {name.partition("/")[0] for name in names()} <= {"files"}
    set_container(server.folder, bucket, X_Container_Meta_Quota_Bytes="1000000")
    assert run_stage(tmp_path / "a", PREPARE, {}, never)[0].reused
    run_stage(tmp_path / "b", PREPARE, {}, never)
    assert add(store) == 1


# --- writers that race or are killed ---------------------------------------------------------------------------------


def test_versions_of_many_machines_at_once_are_all_stored(bucket: str, tmp_path: Path) -> None:
    def added(machine: int) -> int:
        return add(ModelStore.of(tmp_path / str(machine), DATASET), f"of {machine}")

    with ThreadPoolExecutor(6) as pool:
        numbers = list(pool.map(added, range(6)))
    assert sorted(numbers) == [1, 2, 3, 4, 5, 6]
    store = ModelStore.of(tmp_path / "another", DATASET).refresh()
    notes = {version: store.version(version).manifest.note for version in store.numbers()}
    assert notes == {number: f"of {machine}" for machine, number in enumerate(numbers)}


@pytest.mark.parametrize("moment", ["in a file", "before the manifest"])
def test_a_killed_push_of_a_version_leaves_nothing_visible(bucket: str, tmp_path: Path, moment: str) -> None:
    program = f"""
import os, signal
from pathlib import Path
from tasks.registry.store import ModelStore
from tasks.runtime.remote import Remote
from tests.remote.test_faults import DATASET, add
from tests.stored import facts, fill
def build(folder, number):
    for name in ("model.weights.h5", "report.html"):
        (folder / name).write_bytes(os.urandom(20_000_000))
    fill(folder)
    return facts()
if {moment!r} == "before the manifest":
    Remote.create = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
store = ModelStore.of(Path({str(tmp_path)!r}) / "a", DATASET)
with store.lock():
    store.recover()
    store.add(build)
"""
    process = subprocess.Popen([sys.executable, "-c", program], cwd=PROJECT_ROOT)
    deadline = time.monotonic() + _SECONDS
    while process.poll() is None:
        assert time.monotonic() < deadline
        if moment == "in a file" and names():  # the first one is there
            process.kill()
            process.wait()
    assert process.returncode == -signal.SIGKILL
    assert {name.partition("/")[0] for name in names()} == {"files"}
    assert ModelStore.of(tmp_path / "b", DATASET).refresh().numbers() == []
    store = ModelStore.of(tmp_path / "a", DATASET)
    assert add(store) == 1
    ModelStore.of(tmp_path / "b", DATASET).refresh().version(1).check()
