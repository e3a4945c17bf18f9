"""Faults of process, worker, server, database and disk while the gpu worker trains.

Real processes and a real server, on sqlite and on Postgres. After each fault the tests check how parent and child end,
that no process is left, that the store is intact, and that a second run resumes from the last checkpoint. All tests of
one database share a server and a store. Each has its own seed, so that they share only the ingested data.
"""

import json
import os
import shutil
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId
from prefect.client.schemas.objects import FlowRun
from prefect.states import Cancelling, Late

from cli.server_process import has_ended
from schemas.config import PROJECT_ROOT
from tasks.model.warm_up import WORKER
from tasks.registry.store import ModelStore
from tests.deployed.conftest import Deployed, csrf_headers, deployed_at, stop
from tests.deployed.postgres import Postgres
from tests.deployed.table import Row
from tests.faulty_files import fill_disk
from tests.field_faults import field_fault
from tests.sample import SAMPLE

ON_DEMAND, NIGHTLY = "train-fashion-mnist/on-demand", "train-fashion-mnist/nightly"
WATCH = "watch-data/scheduled"
# Enough that a fault comes before the last epoch, and few because the second run has to finish them.
EPOCHS = 100
# Prefect renews the lease of a concurrency slot every 225 s. Here it does so every 60 s, to save time.
RENEW_OFTEN = """
import sys

if "prefect" in " ".join(sys.orig_argv):
    from prefect.concurrency import _leases

    _leases._RENEWAL_FRACTION = 0.2
"""
# The automation for dead runs fires 100 s after the last heartbeat. By default the server drops it 60 s later.
SECONDS_WITHOUT_POWER = 170
# A worker that was away for six hours.
LATE_CHECKS = 37
_numbers = count(1)


class Site:
    """A server with its database, and the one worker of its gpu pool."""

    def __init__(self, deployed: Deployed, database: str, postgres: Postgres | None) -> None:
        self.deployed = deployed
        self.database = database
        self.postgres = postgres
        self.worker: subprocess.Popen[bytes] | None = None

    def ensure_worker(self) -> subprocess.Popen[bytes]:
        """Return the running gpu worker, or start one."""
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
    (patch := tmp_path_factory.mktemp("patch")).joinpath("sitecustomize.py").write_text(RENEW_OFTEN)
    path = os.pathsep.join((str(patch), str(PROJECT_ROOT)))
    with deployed_at(tmp_path_factory.mktemp("faults"), webhook[0], address, PYTHONPATH=path) as deployed:
        site = Site(deployed, request.param, postgres)
        try:
            yield site
        finally:
            site.stop_worker()


class SuspendedRun:
    """A run that trains on the gpu worker, or whose training is suspended."""

    def __init__(self, site: Site, artifacts: Path | None, deployment: str) -> None:
        self.site = site
        self.deployment = deployment
        self.deployed = site.deployed
        self.seed = next(_numbers)
        self.artifacts = artifacts or site.deployed.artifacts
        self.worker = site.ensure_worker()
        self._before = {*self._trainers(), *self._checkpoints()}
        self.parent = self.start()
        # The process appears seconds before its first epoch. From here on no request to the server: its response could
        # take longer than the training.
        (self.trainer,) = self.deployed.wait_for(lambda: self._trainers() - self._before)

    def suspend(self) -> None:
        """Stop the training process (SIGSTOP) soon after its third epoch."""
        self.epochs_done = self.deployed.wait_for(self._epochs_saved, every=0.01)
        with suppress(psutil.NoSuchProcess):
            self.trainer.suspend()
        self.deployed.wait_for(self._is_suspended, every=0.01)
        (self.child,) = self.deployed.children(self.parent)

    def resume(self) -> None:
        with suppress(psutil.NoSuchProcess):  # it was killed while suspended
            self.trainer.resume()

    def start(self) -> FlowRun:
        parameters = _parameters(self.seed, EPOCHS, self.artifacts)
        return self.deployed.client.read_flow_run(self.deployed.start(self.deployment, **parameters))

    def _checkpoints(self) -> set[Path]:
        return set(self.artifacts.glob("checkpoints/*.npz"))

    def _trainers(self) -> set[psutil.Process]:
        """Return the training processes of this server, which their worker forked."""
        trainers = set()
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                forked = all(WORKER in each.cmdline() for each in (process, *process.parents()[:1]))
                if forked and process.environ().get("PREFECT_API_URL") == self.deployed.url:
                    trainers.add(process)
        return trainers

    def _is_suspended(self) -> bool:
        assert not has_ended(self.trainer), "training ended before it could be suspended"
        return bool(self.trainer.status() == psutil.STATUS_STOPPED)

    def _epochs_saved(self) -> int:
        """Return the number of epochs in the checkpoint, 0 before the third."""
        assert not has_ended(self.trainer), "training ended before it could be suspended"
        for checkpoint in self._checkpoints() - self._before:
            with suppress(FileNotFoundError), np.load(checkpoint, allow_pickle=False) as saved:
                epochs = len(json.loads(saved["history"].tobytes()))
                return epochs if epochs >= 3 else 0
        return 0

    def processes(self, *runs: FlowRun) -> list[psutil.Process]:
        """Return the processes that a worker started for the runs, and their descendants, even if a parent is gone."""
        ids = {str(run.id) for run in runs}
        processes = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get("PREFECT__FLOW_RUN_ID") in ids:
                    processes.append(process)
        return sorted(processes, key=lambda process: process.create_time())

    def flow_process(self, run: FlowRun) -> psutil.Process:
        return self.processes(run)[0]

    def require_no_process_left(self, *runs: FlowRun) -> None:
        # A process ends shortly after its last report.
        self.deployed.wait_for(lambda: not self.processes(*runs))

    def logged(self, run: FlowRun, start: str) -> str:
        """Return the rest of the line in the run's log that starts with ``start``."""
        log_filter = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run.id]))

        def line() -> str | None:
            records = self.deployed.client.read_logs(log_filter, limit=200)
            return next((each.message for each in records if each.message.startswith(start)), None)

        return str(self.deployed.wait_for(line, seconds=60)).removeprefix(start)

    def run_again(self) -> str:
        """Run the same parameters again, and return how the run got its version. Check the store."""
        self.site.ensure_worker()
        again = self.deployed.end_of(self.start().id)
        (manifest,) = (each for each in intact_manifests(self.artifacts) if each["seed"] == self.seed)
        child, parent = (self.deployed.client.read_flow_run(run.id) for run in (self.child, self.parent))
        if parent.state_name == "Completed":
            assert manifest["flow_run_id"] == str(parent.id)
            assert again.state_name == "Nothing new", again.state
            return "nothing to do"
        assert again.state_name == "Completed", again.state
        assert manifest["flow_run_id"] == str(again.id)
        if child.state_name == "Completed":
            assert manifest["trained_by"]["flow_run_id"] == str(child.id)
            return "reused the trained model"
        (next_child,) = self.deployed.children(again)
        epoch = int(self.logged(next_child, "resuming after epoch ").partition(" ")[0])
        assert self.epochs_done <= epoch < EPOCHS
        return f"resumed after epoch {epoch} of {EPOCHS}"


@contextmanager
def suspended_run(site: Site, artifacts: Path | None = None, deployment: str = ON_DEMAND) -> Iterator[SuspendedRun]:
    """Start a run and suspend its training in the middle, so that the machine's speed does not decide the outcome.

    It resumes at the end of the block at the latest, because a suspended training would block the gpu pool.
    """
    run = SuspendedRun(site, artifacts, deployment)
    try:
        run.suspend()
        yield run
    finally:
        run.resume()


def _parameters(seed: int, epochs: int, artifacts: Path) -> dict[str, Any]:
    return {
        "artifacts_dir": str(artifacts),
        "train_on": "gpu",
        "training": {"epochs": epochs, "validation_size": 100, "seed": seed},
        "promotion": {"minimum_accuracy": 0, "minimum_recall": 0},
    }


def intact_manifests(artifacts: Path) -> list[dict[str, Any]]:
    """Return the manifests of all versions, after a check of each file's digest."""
    store = ModelStore.of(artifacts, "fashion-mnist")
    versions = [store.version(number) for number in store.numbers()]
    for version in versions:
        version.check()
    return [version.manifest.as_json() for version in versions]


def _kill_flow_process(run: SuspendedRun) -> None:
    run.flow_process(run.child).kill()


def _kill_parents_flow_process(run: SuspendedRun) -> None:
    run.flow_process(run.parent).kill()


def _kill_worker(run: SuspendedRun) -> None:
    run.worker.kill()


def _kill_both(run: SuspendedRun) -> None:
    # The worker first, because it would report the end of the other to the server.
    run.worker.kill()
    run.flow_process(run.child).kill()


def _terminate_worker(run: SuspendedRun) -> None:
    run.worker.terminate()


def _kill_server(run: SuspendedRun) -> None:
    run.resume()  # its reports find no server
    _restart_server(run)


def _restart_server(run: SuspendedRun) -> None:
    run.deployed.server.kill()
    run.deployed.server.wait()
    run.deployed.start_server()


def _kill_server_before_renewal(run: SuspendedRun) -> None:
    restarted = time.time()
    _restart_server(run)
    leases = run.deployed.home / "prefect" / "concurrency_leases"

    def both_renewed() -> bool:
        assert run.processes(run.parent), "the run was terminated"
        renewed = [path for path in leases.glob("*-*.json") if path.stat().st_mtime > restarted]
        return len(renewed) >= 2

    run.deployed.wait_for(both_renewed)


def _cut_power(run: SuspendedRun) -> None:
    run.deployed.kill_everything()
    time.sleep(SECONDS_WITHOUT_POWER)
    run.deployed.start_server()
    # As after a boot: no `deploy`.
    run.deployed.start_worker("cpu", f"cpu-{next(_numbers)}")
    run.site.ensure_worker()


def _restart_postgres(run: SuspendedRun) -> None:
    assert run.site.postgres is not None
    run.resume()
    run.site.postgres.restart(seconds_away=5)
    run.deployed.await_server()


def _cancel_parent(run: SuspendedRun) -> None:
    run.deployed.client.set_flow_run_state(run.parent.id, Cancelling())


def _cancel_child(run: SuspendedRun) -> None:
    run.deployed.client.set_flow_run_state(run.child.id, Cancelling())


@dataclass(frozen=True)
class Fault:
    """A fault of a suspended training, and the expected final states of child and parent.

    deployment: of the main flow. That of the training has a concurrency limit.
    marked_by_automation: the automation for dead runs ends the child.
    arrives_late: training stays suspended until the flow's process has ended. It would finish before the fault arrives.
    """

    name: str
    happen: Callable[[SuspendedRun], None]
    child: str
    parent: str
    marked_by_automation: bool = False
    arrives_late: bool = False
    deployment: str = ON_DEMAND


LOST_LEASE = Fault(
    "kill -9 of the server, then a restart before both concurrency leases are renewed",
    *(_kill_server_before_renewal, "Completed", "Completed"),
    deployment=NIGHTLY,
)
POWER_CUT = Fault(
    f"kill -9 of every process; after {SECONDS_WITHOUT_POWER} s server and workers start without `deploy`",
    *(_cut_power, "Crashed", "Crashed"),
    marked_by_automation=True,
    deployment=NIGHTLY,
)
FAULTS = [
    Fault("kill -9 of the training process", _kill_flow_process, "Crashed", "Failed"),
    Fault("kill -9 of the main flow's process", _kill_parents_flow_process, "Completed", "Crashed"),
    # The flow's process notices it at the next report of the training.
    Fault("kill -9 of the gpu worker", _kill_worker, "Crashed", "Failed"),
    Fault("kill -9 of the training process and the gpu worker", _kill_both, "Crashed", "Failed", True),
    Fault("SIGTERM to the gpu worker", _terminate_worker, "Crashed", "Failed", True, arrives_late=True),
    Fault("kill -9 of the server, then a restart", _kill_server, "Completed", "Completed"),
    Fault("cancel of the main flow's run", _cancel_parent, "Cancelled", "Cancelled", arrives_late=True),
    Fault("cancel of the fit-model run", _cancel_child, "Cancelled", "Failed", arrives_late=True),
]
RESTART = Fault("restart of Postgres, down for 5 s", _restart_postgres, "Completed", "Completed")


def check_fault(fault: Fault, site: Site, record_row: Callable[[Row], None]) -> None:
    with suspended_run(site, deployment=fault.deployment) as run:
        happened = datetime.now(UTC)
        flow = run.flow_process(run.child)
        fault.happen(run)
        if fault.arrives_late:
            site.deployed.wait_for(lambda: has_ended(flow))
        run.resume()
        child, parent = site.deployed.end_of(run.child.id), site.deployed.end_of(run.parent.id)
    assert (child.state_name, parent.state_name) == (fault.child, fault.parent), (child.state, parent.state)
    assert ("No heartbeat for" in str(child.state and child.state.message)) == fault.marked_by_automation, child.state
    run.require_no_process_left(child, parent)
    record_row(Row(fault.name, site.database, _end(child, happened), _end(parent, happened), run.run_again()))


def _end(run: FlowRun, happened: datetime) -> tuple[str, float]:
    assert run.state is not None
    return str(run.state_name), (run.state.timestamp - happened).total_seconds()


def test_no_gpu_worker_fails_the_run_and_the_next_trains(site: Site, record_row: Callable[[Row], None]) -> None:
    parameters = {**_parameters(next(_numbers), 1, site.deployed.artifacts), "gpu_worker_seconds": 3}
    site.stop_worker()
    happened = datetime.now(UTC)
    parent = site.deployed.run(ON_DEMAND, **parameters)
    (child,) = site.deployed.children(parent)
    assert (child.state_name, parent.state_name) == ("Cancelled", "Failed"), (child.state, parent.state)
    assert "No worker picked up the training" in str(parent.state and parent.state.message)

    site.ensure_worker()
    again = site.deployed.run(ON_DEMAND, **{**parameters, "gpu_worker_seconds": 60})
    assert again.state_name == "Completed", again.state
    trained = "trained from the start"
    record_row(Row("no gpu worker for 3 s", site.database, _end(child, happened), _end(parent, happened), trained))


@pytest.mark.parametrize("fault", FAULTS, ids=[fault.name.replace(" ", "-") for fault in FAULTS])
def test_fault_ends_both_runs_and_the_next_resumes(site: Site, fault: Fault, record_row: Callable[[Row], None]) -> None:
    check_fault(fault, site, record_row)


@field_fault(
    "state lost by a restart",
    "The server is killed and started again while a run holds concurrency slots",
    "The next renewals of both leases succeed, and both runs complete",
)
def test_run_with_a_slot_outlives_a_restart(site: Site, record_row: Callable[[Row], None]) -> None:
    check_fault(LOST_LEASE, site, record_row)


@field_fault(
    "state lost by a restart",
    "After a power cut of minutes, server and worker start again, without `deploy`",
    "Both dead runs are marked Crashed, and the next run of `nightly` gets the slot and resumes from the checkpoint",
)
def test_power_cut_ends_both_runs_and_frees_nightly(site: Site, record_row: Callable[[Row], None]) -> None:
    check_fault(POWER_CUT, site, record_row)


def _late_runs(deployed: Deployed, name: str, number: int, **parameters: Any) -> list[FlowRun]:
    """Create runs that were scheduled every ten minutes and are late."""
    deployment, now = deployed.client.read_deployment_by_name(name), datetime.now(UTC)
    return [
        deployed.client.create_flow_run_from_deployment(
            deployment.id,
            parameters=parameters,
            state=Late(scheduled_time=now - timedelta(minutes=10 * (number - each))),
        )
        for each in range(number)
    ]


@pytest.fixture
def incomplete(tmp_path: Path) -> Path:
    """Return a data folder without a test split. A check for new data announces nothing there."""
    shutil.copy(SAMPLE / "fashion-mnist_train.csv.gz", tmp_path)
    return tmp_path


@field_fault(
    "state lost by a restart",
    "A worker returns to 37 late checks and two late runs of `nightly`",
    "The server answers every request; one check runs, the others end as Superseded; `nightly` trains once",
)
def test_worker_returns_to_late_runs(site: Site, incomplete: Path, record_row: Callable[[Row], None]) -> None:
    deployed = site.deployed
    parameters = {**_parameters(next(_numbers), 1, deployed.artifacts), "train_on": "here"}
    deployed.stop_workers()
    checks = _late_runs(deployed, WATCH, LATE_CHECKS, data_dir=str(incomplete))
    nights = _late_runs(deployed, NIGHTLY, 2, **parameters)
    logged = deployed.server_log.stat().st_size
    happened = datetime.now(UTC)
    with _answered_requests(deployed.url) as failures:
        deployed.start_worker("cpu", f"cpu-{next(_numbers)}")
        check_ends = Counter(deployed.end_of(run.id).state_name for run in checks)
        night_ends = {deployed.end_of(run.id).state_name: run.id for run in nights}
    assert check_ends == {"Nothing new": 1, "Superseded": LATE_CHECKS - 1}
    assert night_ends.keys() in ({"Completed", "Cancelled"}, {"Completed", "Nothing new"})
    assert failures == []
    assert b"database is locked" not in deployed.server_log.read_bytes()[logged:]
    parent = deployed.client.read_flow_run(night_ends["Completed"])
    (child,) = deployed.children(parent)
    fault, second_run = f"a worker returns to {LATE_CHECKS} late checks and two late runs", "one check, one training"
    record_row(Row(fault, site.database, _end(child, happened), _end(parent, happened), second_run))


@contextmanager
def _answered_requests(url: str) -> Iterator[list[str]]:
    """Send requests during the block, and yield a list that receives those that failed or took 30 s."""
    failures: list[str] = []
    headers, done = csrf_headers(url), threading.Event()

    def send() -> None:
        with httpx.Client(timeout=30, headers=headers) as client:
            while not done.wait(0.3):
                for path in ("flow_runs/count", "work_pools/filter"):
                    try:
                        client.post(f"{url}/{path}", json={}).raise_for_status()
                    except httpx.HTTPError as error:
                        failures.append(f"{path}: {error!r}")

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield failures
    finally:
        done.set()
        thread.join()


@pytest.mark.parametrize("site", [pytest.param("Postgres", marks=pytest.mark.xdist_group("Postgres"))], indirect=True)
def test_restart_of_postgres_ends_no_run(site: Site, record_row: Callable[[Row], None]) -> None:
    check_fault(RESTART, site, record_row)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a separate small disk that a test can fill."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", folder], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"mounting a tmpfs needs root: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def test_full_disk_fails_both_runs_and_the_next_resumes(
    site: Site, small_disk: Path, record_row: Callable[[Row], None]
) -> None:
    with suspended_run(site, small_disk / "artifacts") as run:
        happened = datetime.now(UTC)
        filler = fill_disk(small_disk)
        run.resume()
        child, parent = site.deployed.end_of(run.child.id), site.deployed.end_of(run.parent.id)
    assert (child.state_name, parent.state_name) == ("Failed", "Failed"), (child.state, parent.state)
    assert "No space left on device" in str(parent.state and parent.state.message)
    run.require_no_process_left(child, parent)

    filler.unlink()
    record_row(Row("disk full", site.database, _end(child, happened), _end(parent, happened), run.run_again()))


def test_two_identical_runs_at_once_train_once(site: Site, record_row: Callable[[Row], None]) -> None:
    with suspended_run(site) as run:
        happened = datetime.now(UTC)
        second = run.start()
        # The second run has reached its own training.
        site.deployed.wait_for(lambda: site.deployed.children(second))
        run.resume()
        parent, other = site.deployed.end_of(run.parent.id), site.deployed.end_of(second.id)
    assert (parent.state_name, other.state_name) == ("Completed", "Nothing new"), (parent.state, other.state)
    child = site.deployed.end_of(run.child.id)
    assert child.state_name == "Completed"
    run.require_no_process_left(child, parent, other)
    (manifest,) = (each for each in intact_manifests(run.artifacts) if each["seed"] == run.seed)
    assert manifest["flow_run_id"] == str(parent.id)
    second_run = f"{other.state_name}, {_end(other, happened)[1]:.0f} s"
    record_row(
        Row("two identical runs at once", site.database, _end(child, happened), _end(parent, happened), second_run)
    )


def test_all_versions_verify_and_no_leftovers_remain(site: Site) -> None:
    verified = site.deployed.command("cli.main", "verify", "--all", "--json")
    assert verified.returncode == 0, verified.stderr
    assert len(json.loads(verified.stdout)) >= len(FAULTS)
    leftovers = [*site.deployed.artifacts.rglob("*.tmp"), *site.deployed.artifacts.glob("checkpoints/*")]
    assert leftovers == []
