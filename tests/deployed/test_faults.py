"""What becomes of a run whose process, worker, server, database or disk fails while the gpu worker trains.

Real processes against a real server, on sqlite and on Postgres. After every fault: how parent and child end, that no
process is left, that the store is whole, and that a second run of the same parameters goes on from the last checkpoint.
All of them share one server and one store a database; each has a seed of its own, so that nothing but the data that was
ingested is shared by what they make.
"""

import json
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
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

from cli.server_process import has_ended
from tasks.model import fit
from tasks.registry.store import ModelStore
from tests.deployed.conftest import Deployed, deployed_at, stop
from tests.deployed.postgres import Postgres
from tests.deployed.table import Row

ON_DEMAND = "train-fashion-mnist/on-demand"
# Long enough that a fault comes before the last of them, short because the second run has to end it.
EPOCHS = 100
_numbers = count(1)


class Site:
    """A server with its database, and the one worker that its gpu pool has at a time."""

    def __init__(self, deployed: Deployed, database: str, postgres: Postgres | None) -> None:
        self.deployed = deployed
        self.database = database
        self.postgres = postgres
        self.worker: subprocess.Popen[bytes] | None = None

    def demand_worker(self) -> subprocess.Popen[bytes]:
        """The gpu worker that runs, or a new one."""
        if self.worker is None or self.worker.poll() is not None:
            self.worker = self.deployed.start_worker("gpu", f"gpu-{next(_numbers)}")
        return self.worker

    def stop_worker(self) -> None:
        if self.worker is not None:
            stop(self.worker)


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in ("sqlite", "Postgres")],
)
def site(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, webhook: tuple[str, Any]
) -> Iterator[Site]:
    postgres: Postgres | None = request.getfixturevalue("postgres") if request.param == "Postgres" else None
    address = None if postgres is None else postgres.new_database("faults")
    with deployed_at(tmp_path_factory.mktemp("faults"), webhook[0], address) as deployed:
        made = Site(deployed, request.param, postgres)
        try:
            yield made
        finally:
            made.stop_worker()


class Scene:
    """A run that `in_training` has begun: training goes on on the gpu worker, or stands still in the middle of it."""

    def __init__(self, site: Site, artifacts: Path | None) -> None:
        self.site = site
        self.deployed = site.deployed
        self.seed = next(_numbers)
        self.artifacts = artifacts or site.deployed.artifacts
        self.worker = site.demand_worker()
        self._before = {*self._trainers(), *self._checkpoints()}
        self.parent = self.start()
        # Found seconds before its first epoch. From there on the server is not asked: its answer may take all of
        # training.
        (self.trainer,) = self.deployed.soon(lambda: self._trainers() - self._before)

    def hold(self) -> None:
        """Stop the process that trains (SIGSTOP) after its third epoch or soon after."""
        self.epochs_done = self.deployed.soon(self._epochs_kept, every=0.01)
        with suppress(psutil.NoSuchProcess):
            self.trainer.suspend()
        self.deployed.soon(self._trainer_stands, every=0.01)
        (self.child,) = self.deployed.children(self.parent)

    def let_train(self) -> None:
        with suppress(psutil.NoSuchProcess):  # it was killed where it stood
            self.trainer.resume()

    def start(self) -> FlowRun:
        parameters = _parameters(self.seed, EPOCHS, self.artifacts)
        return self.deployed.client.read_flow_run(self.deployed.start(ON_DEMAND, **parameters))

    def _checkpoints(self) -> set[Path]:
        return set(self.artifacts.glob("checkpoints/*.npz"))

    def _trainers(self) -> set[psutil.Process]:
        """The processes that train for this server."""
        found = set()
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if fit.__name__ in process.cmdline() and process.environ().get("PREFECT_API_URL") == self.deployed.url:
                    found.add(process)
        return found

    def _trainer_stands(self) -> bool:
        assert not has_ended(self.trainer), "training was over before it could be held"
        return bool(self.trainer.status() == psutil.STATUS_STOPPED)

    def _epochs_kept(self) -> int:
        """How many epochs the checkpoint holds; a fault comes after some of them."""
        assert not has_ended(self.trainer), "training was over before it could be held"
        for checkpoint in self._checkpoints() - self._before:
            with suppress(FileNotFoundError), np.load(checkpoint, allow_pickle=False) as saved:
                epochs = len(json.loads(saved["history"].tobytes()))
                return epochs if epochs >= 3 else 0
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

    def flow_process(self, run: FlowRun) -> psutil.Process:
        return self.processes(run)[0]

    def demand_no_process_left(self, *runs: FlowRun) -> None:
        # Its last word and its end are not one moment.
        self.deployed.soon(lambda: not self.processes(*runs))

    def said(self, run: FlowRun, start: str) -> str:
        """The rest of the line in the run's log that begins with ``start``."""
        of_the_run = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run.id]))

        def line() -> str | None:
            logged = self.deployed.client.read_logs(log_filter=of_the_run, limit=200)
            return next((each.message for each in logged if each.message.startswith(start)), None)

        return str(self.deployed.soon(line, seconds=60)).removeprefix(start)

    def run_again(self) -> str:
        """A second run of the same parameters, and how it came to its end: one version, in a store that is whole."""
        self.site.demand_worker()
        again = self.deployed.end_of(self.start().id)
        (manifest,) = (made for made in _whole_store(self.artifacts) if made["seed"] == self.seed)
        child, parent = (self.deployed.client.read_flow_run(run.id) for run in (self.child, self.parent))
        if parent.state_name == "Completed":
            assert manifest["flow_run_id"] == str(parent.id)
            assert again.state_name == "Nothing new", again.state
            return "nothing to do"
        assert again.state_name == "Completed", again.state
        assert manifest["flow_run_id"] == str(again.id)
        if child.state_name == "Completed":
            assert manifest["trained_by"]["flow_run_id"] == str(child.id)
            return "used what was trained"
        (next_child,) = self.deployed.children(again)
        epoch = int(self.said(next_child, "resuming after epoch ").partition(" ")[0])
        assert self.epochs_done <= epoch < EPOCHS
        return f"went on after epoch {epoch} of {EPOCHS}"


@contextmanager
def in_training(site: Site, artifacts: Path | None = None) -> Iterator[Scene]:
    """A run whose training stands still in the middle, so that no speed of the machine decides what a fault finds. It
    goes on when it is let, and at the latest behind the block: one that stood still would keep the gpu pool's place."""
    now = Scene(site, artifacts)
    try:
        now.hold()
        yield now
    finally:
        now.let_train()


def _parameters(seed: int, epochs: int, artifacts: Path) -> dict[str, Any]:
    return {
        "artifacts_dir": str(artifacts),
        "train_on": "gpu",
        "training": {"epochs": epochs, "validation_size": 100, "seed": seed},
        "promotion": {"minimum_accuracy": 0, "minimum_recall": 0},
    }


def _whole_store(artifacts: Path) -> list[dict[str, Any]]:
    """Return the manifests of all versions after checking their files."""
    store = ModelStore.of(artifacts, "fashion-mnist")
    versions = [store.version(number) for number in store.numbers()]
    for version in versions:
        version.check()
    return [version.manifest.as_json() for version in versions]


def _kill_flow_process(now: Scene) -> None:
    now.flow_process(now.child).kill()


def _kill_parents_flow_process(now: Scene) -> None:
    now.flow_process(now.parent).kill()


def _kill_worker(now: Scene) -> None:
    now.worker.kill()


def _kill_both(now: Scene) -> None:
    # The worker first: it would tell the server of the other's end.
    now.worker.kill()
    now.flow_process(now.child).kill()


def _terminate_worker(now: Scene) -> None:
    now.worker.terminate()


def _kill_server(now: Scene) -> None:
    now.let_train()  # what it tells of itself finds no server
    now.deployed.server.kill()
    now.deployed.server.wait()
    now.deployed.start_server()


def _restart_postgres(now: Scene) -> None:
    assert now.site.postgres is not None
    now.let_train()
    now.site.postgres.restart(seconds_away=5)
    now.deployed.await_server()


def _cancel_parent(now: Scene) -> None:
    now.deployed.client.set_flow_run_state(now.parent.id, Cancelling())


def _cancel_child(now: Scene) -> None:
    now.deployed.client.set_flow_run_state(now.child.id, Cancelling())


@dataclass(frozen=True)
class Fault:
    """What happens to a training that stands still, how child and parent have to end, whether the automation for dead
    runs has to tell so, and whether it takes a while to arrive: training stands until then, as it would be over."""

    name: str
    happen: Callable[[Scene], None]
    child: str
    parent: str
    marked_by_automation: bool = False
    arrives_late: bool = False


FAULTS = [
    Fault("kill -9 of the training's process", _kill_flow_process, "Crashed", "Failed"),
    Fault("kill -9 of the main flow's process", _kill_parents_flow_process, "Completed", "Crashed"),
    # The flow's process learns of it only when training next tells it something.
    Fault("kill -9 of the gpu worker", _kill_worker, "Crashed", "Failed"),
    Fault("kill -9 of the training's process and the gpu worker", _kill_both, "Crashed", "Failed", True),
    Fault("SIGTERM to the gpu worker", _terminate_worker, "Crashed", "Failed", True, arrives_late=True),
    Fault("kill -9 of the server, started again", _kill_server, "Completed", "Completed"),
    Fault("cancel of the main flow's run", _cancel_parent, "Cancelled", "Cancelled", arrives_late=True),
    Fault("cancel of the training's run", _cancel_child, "Cancelled", "Failed", arrives_late=True),
]
RESTART = Fault("Postgres restarted, 5 s away", _restart_postgres, "Completed", "Completed")


def _is_felt(fault: Fault, site: Site, record_row: Callable[[Row], None]) -> None:
    with in_training(site) as now:
        happened = datetime.now(UTC)
        flow = now.flow_process(now.child)
        fault.happen(now)
        if fault.arrives_late:
            site.deployed.soon(lambda: has_ended(flow))
        now.let_train()
        child, parent = site.deployed.end_of(now.child.id), site.deployed.end_of(now.parent.id)
    assert (child.state_name, parent.state_name) == (fault.child, fault.parent), (child.state, parent.state)
    assert ("No heartbeat for" in str(child.state and child.state.message)) == fault.marked_by_automation, child.state
    now.demand_no_process_left(child, parent)
    record_row(Row(fault.name, site.database, _end(child, happened), _end(parent, happened), now.run_again()))


def _end(run: FlowRun, happened: datetime) -> tuple[str, float]:
    assert run.state is not None
    return str(run.state_name), (run.state.timestamp - happened).total_seconds()


def test_without_a_gpu_worker_the_run_fails_and_the_next_trains(site: Site, record_row: Callable[[Row], None]) -> None:
    parameters = {**_parameters(next(_numbers), 1, site.deployed.artifacts), "gpu_worker_seconds": 3}
    site.stop_worker()
    happened = datetime.now(UTC)
    parent = site.deployed.run(ON_DEMAND, **parameters)
    (child,) = site.deployed.children(parent)
    assert (child.state_name, parent.state_name) == ("Cancelled", "Failed"), (child.state, parent.state)
    assert "No worker picked up the training" in str(parent.state and parent.state.message)

    site.demand_worker()
    again = site.deployed.run(ON_DEMAND, **parameters)
    assert again.state_name == "Completed", again.state
    trained = "trained from the start"
    record_row(Row("no gpu worker for 3 s", site.database, _end(child, happened), _end(parent, happened), trained))


@pytest.mark.parametrize("fault", FAULTS, ids=[fault.name.replace(" ", "-") for fault in FAULTS])
def test_a_fault_ends_both_runs_and_the_next_goes_on(
    site: Site, fault: Fault, record_row: Callable[[Row], None]
) -> None:
    _is_felt(fault, site, record_row)


@pytest.mark.parametrize("site", [pytest.param("Postgres", marks=pytest.mark.xdist_group("Postgres"))], indirect=True)
def test_a_restart_of_postgres_ends_no_run(site: Site, record_row: Callable[[Row], None]) -> None:
    _is_felt(RESTART, site, record_row)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own, so that it can be full and nothing else is."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", folder], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"a small tmpfs has to be mounted, which needs root: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_full_disk_fails_both_runs_with_its_name_and_the_next_goes_on(
    site: Site, small_disk: Path, record_row: Callable[[Row], None]
) -> None:
    with in_training(site, small_disk / "artifacts") as now:
        happened = datetime.now(UTC)
        filler = _fill(small_disk)
        now.let_train()
        child, parent = site.deployed.end_of(now.child.id), site.deployed.end_of(now.parent.id)
    assert (child.state_name, parent.state_name) == ("Failed", "Failed"), (child.state, parent.state)
    assert "No space left on device" in str(parent.state and parent.state.message)
    now.demand_no_process_left(child, parent)

    filler.unlink()
    record_row(Row("disk full", site.database, _end(child, happened), _end(parent, happened), now.run_again()))


def _fill(disk: Path) -> Path:
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(1 << 16))
        except OSError:
            return filler


def test_two_runs_of_the_same_at_once_train_once(site: Site, record_row: Callable[[Row], None]) -> None:
    with in_training(site) as now:
        happened = datetime.now(UTC)
        second = now.start()
        # It has come to its own training, too.
        site.deployed.soon(lambda: site.deployed.children(second))
        now.let_train()
        parent, other = site.deployed.end_of(now.parent.id), site.deployed.end_of(second.id)
    assert (parent.state_name, other.state_name) == ("Completed", "Nothing new"), (parent.state, other.state)
    child = site.deployed.end_of(now.child.id)
    assert child.state_name == "Completed"
    now.demand_no_process_left(child, parent, other)
    (manifest,) = (made for made in _whole_store(now.artifacts) if made["seed"] == now.seed)
    assert manifest["flow_run_id"] == str(parent.id)
    went_on = f"{other.state_name}, {_end(other, happened)[1]:.0f} s"
    record_row(Row("the same run twice at once", site.database, _end(child, happened), _end(parent, happened), went_on))


def test_after_all_of_it_every_version_verifies_and_nothing_is_left_over(site: Site) -> None:
    verified = site.deployed.command("cli.main", "verify", "--all", "--json")
    assert verified.returncode == 0, verified.stderr
    assert len(json.loads(verified.stdout)) >= len(FAULTS)
    left = [*site.deployed.artifacts.rglob("*.tmp"), *site.deployed.artifacts.glob("checkpoints/*")]
    assert left == []
