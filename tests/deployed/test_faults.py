"""What becomes of a run whose process, worker, server, database or disk fails while the gpu worker trains.

Real processes against a real server, on sqlite and on Postgres. After every fault: how parent and child end, that no
process is left, that the store is whole, and that a second run of the same parameters goes on from the last checkpoint.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId
from prefect.client.schemas.objects import FlowRun
from prefect.states import Cancelling

from schemas.references import PreparedData
from tests.deployed.conftest import Deployed, deployed_at
from tests.deployed.postgres import Postgres
from tests.deployed.table import Row

ON_DEMAND = "train-fashion-mnist/on-demand"
# Half a minute: longer than a fault takes to be felt, short enough for the second run to end it.
EPOCHS = 120
_numbers = count(1)


@dataclass
class Site:
    """A server with its database, and the artifacts that the stages before training have made already."""

    deployed: Deployed
    database: str
    postgres: Postgres | None
    prepared_artifacts: Path


@pytest.fixture(scope="module", params=["sqlite", "Postgres"])
def site(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    webhook: tuple[str, Any],
    sample_prepared: PreparedData,
    sample_artifacts: Path,
) -> Iterator[Site]:
    postgres: Postgres | None = request.getfixturevalue("postgres") if request.param == "Postgres" else None
    address = None if postgres is None else postgres.new_database("faults")
    with deployed_at(tmp_path_factory.mktemp("faults"), webhook[0], address) as deployed:
        yield Site(deployed, request.param, postgres, sample_artifacts)


class Scene:
    """A run whose training goes on on the gpu worker, in artifacts of its own."""

    def __init__(self, site: Site, artifacts: Path, stack: ExitStack) -> None:
        self.site = site
        self.deployed = site.deployed
        self.artifacts = artifacts
        self._stack = stack
        self.start_worker()
        self.parent = self.start()
        self.epochs_done = self.deployed.soon(self._epochs_kept)
        (self.child,) = self.deployed.children(self.parent)

    def start_worker(self) -> None:
        self.worker = self._stack.enter_context(self.deployed.worker("gpu", f"gpu-{next(_numbers)}"))

    def start(self) -> FlowRun:
        parameters = {
            "artifacts_dir": str(self.artifacts),
            "train_on": "gpu",
            # The split of `small_config`, which is prepared already.
            "training": {"epochs": EPOCHS, "validation_size": 100, "seed": 7},
            "promotion": {"minimum_accuracy": 0, "minimum_recall": 0},
        }
        return self.deployed.client.read_flow_run(self.deployed.start(ON_DEMAND, **parameters))

    def _epochs_kept(self) -> int:
        """How many epochs the checkpoint holds; a fault comes after some of them."""
        for checkpoint in self.artifacts.glob("checkpoints/*.npz"):
            with np.load(checkpoint, allow_pickle=False) as saved:
                epochs = len(json.loads(saved["history"].tobytes()))
            return epochs if epochs >= 3 else 0
        parent = self.deployed.client.read_flow_run(self.parent.id)
        assert parent.state is None or not parent.state.is_final(), parent.state
        return 0

    def processes(self, *runs: FlowRun) -> list[psutil.Process]:
        """Those that a worker started for the runs, and what these started, whoever their parents are by now."""
        ids = {str(run.id) for run in runs}
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("PREFECT__FLOW_RUN_ID") in ids:
                    found.append(process)
            except psutil.Error:
                continue
        return sorted(found, key=lambda process: process.create_time())

    def kill_flow_process(self, run: FlowRun) -> None:
        self.processes(run)[0].kill()

    def verify(self) -> subprocess.CompletedProcess[str]:
        return self.deployed.command("cli.main", "verify", "--all", FASHION_ANN_ARTIFACTS_DIR=str(self.artifacts))

    def manifests(self) -> list[dict[str, Any]]:
        paths = self.artifacts.glob("models/fashion-mnist/versions/*/manifest.json")
        return [json.loads(path.read_bytes()) for path in paths]

    def said(self, run: FlowRun, start: str) -> str:
        """The rest of the line in the run's log that begins with ``start``."""
        of_the_run = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run.id]))

        def line() -> str | None:
            logged = self.deployed.client.read_logs(log_filter=of_the_run, limit=200)
            return next((each.message for each in logged if each.message.startswith(start)), None)

        return str(self.deployed.soon(line)).removeprefix(start)


@contextmanager
def scene(site: Site, artifacts: Path) -> Iterator[Scene]:
    shutil.copytree(site.prepared_artifacts, artifacts, dirs_exist_ok=True)
    with ExitStack() as stack:
        yield Scene(site, artifacts, stack)


def _kill_flow_process(scene: Scene) -> None:
    scene.kill_flow_process(scene.child)


def _kill_parents_flow_process(scene: Scene) -> None:
    scene.kill_flow_process(scene.parent)


def _kill_worker(scene: Scene) -> None:
    scene.worker.kill()


def _kill_both(scene: Scene) -> None:
    # The worker first: it would tell the server of the other's end.
    scene.worker.kill()
    scene.kill_flow_process(scene.child)


def _terminate_worker(scene: Scene) -> None:
    scene.worker.terminate()


def _kill_server(scene: Scene) -> None:
    scene.deployed.server.kill()
    scene.deployed.server.wait()
    scene.deployed.start_server()


def _restart_postgres(scene: Scene) -> None:
    assert scene.site.postgres is not None
    scene.site.postgres.restart(seconds_away=5)
    scene.deployed.await_server()


def _cancel_parent(scene: Scene) -> None:
    scene.deployed.client.set_flow_run_state(scene.parent.id, Cancelling())


def _cancel_child(scene: Scene) -> None:
    scene.deployed.client.set_flow_run_state(scene.child.id, Cancelling())


@dataclass(frozen=True)
class Fault:
    """What happens, and how child and parent have to end."""

    name: str
    happen: Callable[[Scene], None]
    child: str
    parent: str
    worker_is_gone: bool = False


FAULTS = [
    Fault("kill -9 of the training's process", _kill_flow_process, "Crashed", "Failed"),
    Fault("kill -9 of its worker", _kill_worker, "Crashed", "Failed", worker_is_gone=True),
    Fault("kill -9 of both", _kill_both, "Crashed", "Failed", worker_is_gone=True),
    Fault("SIGTERM to the worker", _terminate_worker, "Crashed", "Failed", worker_is_gone=True),
    Fault("kill -9 of the main flow's process", _kill_parents_flow_process, "Completed", "Crashed"),
    Fault("kill -9 of the server, started again", _kill_server, "Completed", "Completed"),
    Fault("Postgres restarted, 5 s away", _restart_postgres, "Completed", "Completed"),
    Fault("cancel of the main flow's run", _cancel_parent, "Cancelled", "Cancelled"),
    Fault("cancel of the training's run", _cancel_child, "Cancelled", "Failed"),
]


@pytest.mark.parametrize("fault", FAULTS, ids=[fault.name.replace(" ", "-") for fault in FAULTS])
def test_a_fault_ends_both_runs_and_the_next_goes_on(
    site: Site, fault: Fault, tmp_path: Path, record_row: Callable[[Row], None]
) -> None:
    if fault.happen is _restart_postgres and site.postgres is None:
        pytest.skip("no Postgres in it")
    with scene(site, tmp_path / "artifacts") as now:
        happened = datetime.now(UTC)
        fault.happen(now)
        child, parent = site.deployed.end_of(now.child.id), site.deployed.end_of(now.parent.id)
        assert (child.state_name, parent.state_name) == (fault.child, fault.parent), (child.state, parent.state)
        _demand_no_process_left(now, child, parent)

        if fault.worker_is_gone:
            now.start_worker()
        again = site.deployed.end_of(now.start().id)
        went_on = _went_on(now, child, parent, again)
        record_row(Row(fault.name, site.database, _end(child, happened), _end(parent, happened), went_on))


def _demand_no_process_left(now: Scene, *runs: FlowRun) -> None:
    # Its last word and its end are not one moment.
    now.deployed.soon(lambda: not now.processes(*runs))


def _end(run: FlowRun, happened: datetime) -> tuple[str, float]:
    assert run.state is not None
    return str(run.state_name), (run.state.timestamp - happened).total_seconds()


def _went_on(now: Scene, child: FlowRun, parent: FlowRun, again: FlowRun) -> str:
    """How the second run came to its end, which has to be one version in a store that is whole."""
    verified = now.verify()
    assert verified.returncode == 0, verified.stderr
    (manifest,) = now.manifests()
    assert list(now.artifacts.glob("checkpoints/*.npz")) == []
    if parent.state_name == "Completed":
        assert manifest["flow_run_id"] == str(parent.id)
        assert again.state_name == "Nothing new", again.state
        return "nothing to do"
    assert again.state_name == "Completed", again.state
    assert manifest["flow_run_id"] == str(again.id)
    if child.state_name == "Completed":
        assert manifest["trained_by"]["flow_run_id"] == str(child.id)
        return "used what was trained"
    (next_child,) = now.deployed.children(again)
    epoch = int(now.said(next_child, "resuming after epoch ").partition(" ")[0])
    assert now.epochs_done <= epoch < EPOCHS
    return f"went on after epoch {epoch} of {EPOCHS}"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own, so that it can be full and nothing else is."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", folder]).returncode:
        pytest.skip("a small tmpfs has to be mounted, which needs root and the right to mount")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_full_disk_fails_both_runs_with_its_name_and_the_next_goes_on(
    site: Site, small_disk: Path, record_row: Callable[[Row], None]
) -> None:
    with scene(site, small_disk / "artifacts") as now:
        happened = datetime.now(UTC)
        filler = _fill(small_disk)
        child, parent = site.deployed.end_of(now.child.id), site.deployed.end_of(now.parent.id)
        assert (child.state_name, parent.state_name) == ("Failed", "Failed"), (child.state, parent.state)
        assert "No space left on device" in str(parent.state and parent.state.message)
        _demand_no_process_left(now, child, parent)

        filler.unlink()
        again = site.deployed.end_of(now.start().id)
        went_on = _went_on(now, child, parent, again)
        record_row(Row("disk full", site.database, _end(child, happened), _end(parent, happened), went_on))


def _fill(disk: Path) -> Path:
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(1 << 16))
        except OSError:
            return filler


def test_two_runs_of_the_same_at_once_train_once(site: Site, tmp_path: Path, record_row: Callable[[Row], None]) -> None:
    with scene(site, tmp_path / "artifacts") as now:
        happened = datetime.now(UTC)
        second = now.start()
        parent, other = site.deployed.end_of(now.parent.id), site.deployed.end_of(second.id)
        assert (parent.state_name, other.state_name) == ("Completed", "Nothing new"), (parent.state, other.state)
        child = site.deployed.end_of(now.child.id)
        assert child.state_name == "Completed"
        _demand_no_process_left(now, child, parent, other)
        _went_on(now, child, parent, other)
        went_on = f"{other.state_name}, {_end(other, happened)[1]:.0f} s"
        record_row(
            Row("the same run twice at once", site.database, _end(child, happened), _end(parent, happened), went_on)
        )
