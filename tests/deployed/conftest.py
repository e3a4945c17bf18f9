"""A Prefect server and workers as separate processes, each with its own home."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import psutil
import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterParentFlowRunId
from prefect.client.schemas.objects import FlowRun
from prefect.settings import PREFECT_API_URL, temporary_settings

from cli.deploy import pool_names
from cli.server_process import free_port, restore_sigint
from schemas.config import PROJECT_ROOT
from tests.deployed.postgres import MISSING, Postgres, binaries, postgres_cluster
from tests.deployed.table import DATABASES, Row, write_table
from tests.sample import SAMPLE

_SECONDS_FOR_A_RUN = 600
_FAULTS, _ROW = "test_faults.py", "row of the faults table"


def stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(timeout=30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def csrf_headers(url: str) -> dict[str, str]:
    """Return the headers that the server requires of requests that may change something."""
    token = httpx.get(f"{url}/csrf-token", params={"client": "test"}, timeout=120).raise_for_status().json()
    return {"Prefect-Csrf-Client": token["client"], "Prefect-Csrf-Token": token["token"]}


class Deployed:
    """A server with everything deployed, and a client for it. The data is the committed sample."""

    def __init__(
        self, home: Path, url: str, client: SyncPrefectClient, database: str | None = None, **environment: str
    ) -> None:
        self.home = home
        self.url = url
        self.artifacts = home / "artifacts"
        self.client = client
        self.server_log = home / "server.log"
        # Not for workers and flow runs.
        self._server_only = {} if database is None else {"PREFECT_API_DATABASE_CONNECTION_URL": database}
        self.environment = {
            **os.environ,
            # Test the code of this checkout, not an installed package.
            "PYTHONPATH": str(PROJECT_ROOT),
            "PREFECT_API_URL": url,
            "PREFECT_HOME": str(home / "prefect"),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_WORKER_QUERY_SECONDS": "1",
            "FASHION_ANN_DATA_DIR": str(SAMPLE),
            "FASHION_ANN_ARTIFACTS_DIR": str(self.artifacts),
            **environment,
        }
        self._workers: list[subprocess.Popen[bytes]] = []

    def start_server(self) -> None:
        """Start the server in the checkout, as containers and units do. A restart uses the same address."""
        address = httpx.URL(self.url)
        listen = ["--host", address.host, "--port", str(address.port)]
        with self.server_log.open("ab") as log:
            self.server = subprocess.Popen(
                [sys.executable, "-m", "prefect", "server", "start", *listen],
                cwd=PROJECT_ROOT,
                env={**self.environment, **self._server_only},
                stdout=log,
                stderr=log,
            )
        self.await_server()

    def await_server(self) -> None:
        """Wait until the server and its database are ready."""
        deadline = time.monotonic() + 120
        while True:
            assert self.server.poll() is None, "the server ended"
            assert time.monotonic() < deadline, "the server did not become ready"
            try:
                if httpx.get(f"{self.url}/ready", timeout=5).status_code == httpx.codes.OK:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.2)

    def command(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run `python -m` in a folder outside the checkout."""
        return subprocess.run(
            [sys.executable, "-m", *arguments],
            cwd=self.home,
            env={**self.environment, "NO_COLOR": "1", "COLUMNS": "200", **environment},
            capture_output=True,
            text=True,
            timeout=_SECONDS_FOR_A_RUN,
        )

    @contextmanager
    def worker(self, role: str, name: str, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
        """Run a worker until the end of the block, see `start_worker`."""
        process = self.start_worker(role, name, **environment)
        try:
            yield process
        finally:
            stop(process)

    def start_worker(self, role: str, name: str, **environment: str) -> subprocess.Popen[bytes]:
        """Start a worker that shares only the server and the artifacts with the others, as on another machine."""
        with (self.home / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "prefect", "worker", "start", "--pool", pool_names()[role], "--name", name],
                cwd=self.home,
                env={**self.environment, "PREFECT_HOME": str(self.home / name), **environment},
                stdout=log,
                stderr=log,
                preexec_fn=restore_sigint,
            )
        self._workers.append(process)
        return process

    def kill_everything(self) -> None:
        """Kill server, workers, flow runs and what they started, as a power cut does."""
        # Workers first: one that sees the end of a flow run would report it to the server.
        for service in (*self._workers, self.server):
            service.kill()
            service.wait()
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get("PREFECT_API_URL") == self.url:
                    process.kill()

    def stop_workers(self) -> None:
        for worker in self._workers:
            stop(worker)

    def start(self, name: str, **parameters: Any) -> UUID:
        deployment = self.client.read_deployment_by_name(name)
        return self.client.create_flow_run_from_deployment(deployment.id, parameters=parameters).id

    def run(self, name: str, **parameters: Any) -> FlowRun:
        return self.end_of(self.start(name, **parameters))

    def end_of(self, run_id: UUID) -> FlowRun:
        def ended() -> FlowRun | None:
            run = self.client.read_flow_run(run_id)
            return run if run.state is not None and run.state.is_final() else None

        return self.wait_for(ended)

    def wait_for(self, check: Callable[[], Any], seconds: float = _SECONDS_FOR_A_RUN, every: float = 0.3) -> Any:
        deadline = time.monotonic() + seconds
        while not (result := check()):
            assert time.monotonic() < deadline, "the condition was not met in time"
            time.sleep(every)
        return result

    def runs_of(self, name: str) -> list[FlowRun]:
        deployment = self.client.read_deployment_by_name(name)
        return [run for run in self.client.read_flow_runs() if run.deployment_id == deployment.id]

    def children(self, run: FlowRun) -> list[FlowRun]:
        by_parent = FlowRunFilter(parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=[run.id]))
        return self.client.read_flow_runs(flow_run_filter=by_parent)

    def versions_of(self, run: FlowRun) -> list[dict[str, Any]]:
        """Return the manifests of the versions that the run created."""
        paths = sorted(self.artifacts.glob("models/fashion-mnist/versions/*/manifest.json"))
        manifests: list[dict[str, Any]] = [json.loads(path.read_bytes()) for path in paths]
        return [manifest for manifest in manifests if manifest["flow_run_id"] == str(run.id)]


@pytest.fixture(scope="session")
def webhook() -> Iterator[tuple[str, list[dict[str, str]]]]:
    """Return the address of a webhook, and the list of messages that it receives."""
    received: list[dict[str, str]] = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:  # http.server calls this name
            received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, format: str, *arguments: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/", received
    server.shutdown()


@contextmanager
def deployed_at(home: Path, notify: str, database: str | None = None, **environment: str) -> Iterator[Deployed]:
    """Start a server on ``database`` (default: sqlite), deploy everything, and start a worker for the cpu pool."""
    url = f"http://127.0.0.1:{free_port()}/api"
    with temporary_settings({PREFECT_API_URL: url}), get_client(sync_client=True) as client:
        deployed = Deployed(home, url, client, database, **environment)
        try:
            deployed.start_server()
            done = deployed.command("cli.main", "deploy", FASHION_ANN_NOTIFY=notify)
            assert done.returncode == 0, done.stderr
            # Its schedule would announce the sample during a test. A pause would keep the runs that exist already.
            watch = client.read_deployment_by_name("watch-data/scheduled")
            for schedule in watch.schedules:
                client.update_deployment_schedule(watch.id, schedule.id, active=False)
            for run in client.read_flow_runs():
                if run.deployment_id == watch.id:
                    client.delete_flow_run(run.id)
            deployed.cpu_worker = deployed.start_worker("cpu", "cpu-worker")
            yield deployed
        finally:
            deployed.stop_workers()
            stop(deployed.server)


@pytest.fixture(scope="session")
def deployed(
    postgres: Postgres, tmp_path_factory: pytest.TempPathFactory, webhook: tuple[str, Any]
) -> Iterator[Deployed]:
    """Return one server for the session, with a worker for the cpu pool and none for the gpu pool.

    On Postgres, because Prefect's server loses events if its sqlite is locked for long on a busy machine.
    """
    address = postgres.new_database("deployed")
    with deployed_at(tmp_path_factory.mktemp("deployed"), webhook[0], address) as deployed:
        yield deployed


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """Return a cluster for the session, from Debian's package, which `make test-deployed` installs."""
    programs = binaries()
    assert programs is not None, MISSING
    with postgres_cluster(programs) as cluster:
        yield cluster


@pytest.fixture
def record_row(record_property: Callable[[str, object], None]) -> Callable[[Row], None]:
    """Record a row of the table as a property of the test, which pytest-xdist sends to its main process."""
    return lambda row: record_property(_ROW, asdict(row))


class FaultsTable:
    """Write docs/faults.md at the end of the session, if all faults were tested and passed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[Row] = []
        self.complete = True

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if _FAULTS not in report.nodeid:
            return
        self.complete &= report.passed
        if report.when == "call":
            self.rows += [Row(**value) for name, value in report.user_properties if name == _ROW]

    def pytest_sessionfinish(self) -> None:
        if self.complete and {row.database for row in self.rows} == set(DATABASES):
            write_table(self.path, self.rows)


def pytest_configure(config: pytest.Config) -> None:
    path = os.environ.get("FAULTS_TABLE")
    if path and not hasattr(config, "workerinput"):
        config.pluginmanager.register(FaultsTable(Path(path)))
