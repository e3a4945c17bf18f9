"""A Prefect server and workers as people run them: processes of their own, each with a home of its own."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterParentFlowRunId
from prefect.client.schemas.objects import FlowRun
from prefect.settings import PREFECT_API_URL, temporary_settings

from cli.server_process import free_port, restore_sigint
from schemas.config import PROJECT_ROOT
from tests.deployed.postgres import MISSING, Postgres, binaries, postgres_cluster
from tests.deployed.table import DATABASES, Row, write_table
from tests.sample import SAMPLE

_SECONDS_FOR_A_RUN = 600
_FAULTS, _ROW = "test_faults.py", "row of the table of faults"


def stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(timeout=30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


class Deployed:
    """A server with everything deployed, and a client on it. Data is the committed sample."""

    def __init__(self, home: Path, url: str, client: SyncPrefectClient, database: str | None = None) -> None:
        self.home = home
        self.url = url
        self.artifacts = home / "artifacts"
        self.client = client
        self.server_log = home / "server.log"
        # Workers and flow runs have no need to know it.
        self._of_the_server = {} if database is None else {"PREFECT_API_DATABASE_CONNECTION_URL": database}
        self.environment = {
            **os.environ,
            # The code under test is this checkout's, whatever the environment has installed.
            "PYTHONPATH": str(PROJECT_ROOT),
            "PREFECT_API_URL": url,
            "PREFECT_HOME": str(home / "prefect"),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_WORKER_QUERY_SECONDS": "1",
            "FASHION_ANN_DATA_DIR": str(SAMPLE),
            "FASHION_ANN_ARTIFACTS_DIR": str(self.artifacts),
        }

    def start_server(self) -> None:
        """At the address that it had before, if it was there before."""
        address = httpx.URL(self.url)
        listen = ["--host", address.host, "--port", str(address.port)]
        with self.server_log.open("ab") as log:
            self.server = subprocess.Popen(
                [sys.executable, "-m", "prefect", "server", "start", *listen],
                cwd=self.home,
                env={**self.environment, **self._of_the_server},
                stdout=log,
                stderr=log,
            )
        self.await_server()

    def await_server(self) -> None:
        """Until it answers, and its database answers it."""
        deadline = time.monotonic() + 120
        while True:
            assert self.server.poll() is None, "the server ended"
            assert time.monotonic() < deadline, "the server never answered"
            try:
                if httpx.get(f"{self.url}/ready", timeout=5).status_code == httpx.codes.OK:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.2)

    def command(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """A command of the environment's, from a folder that is not the checkout."""
        return subprocess.run(
            [sys.executable, "-m", *arguments],
            cwd=self.home,
            env={**self.environment, "NO_COLOR": "1", "COLUMNS": "200", **environment},
            capture_output=True,
            text=True,
            timeout=_SECONDS_FOR_A_RUN,
        )

    @contextmanager
    def worker(self, pool: str, name: str, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
        """As `start_worker`, for as long as the block."""
        process = self.start_worker(pool, name, **environment)
        try:
            yield process
        finally:
            stop(process)

    def start_worker(self, pool: str, name: str, **environment: str) -> subprocess.Popen[bytes]:
        """A worker as on another machine: nothing but the server and the artifacts is shared with the others."""
        with (self.home / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "prefect", "worker", "start", "--pool", pool, "--name", name],
                cwd=self.home,
                env={**self.environment, "PREFECT_HOME": str(self.home / name), **environment},
                stdout=log,
                stderr=log,
                preexec_fn=restore_sigint,
            )

    def start(self, name: str, **parameters: Any) -> UUID:
        deployment = self.client.read_deployment_by_name(name)
        return self.client.create_flow_run_from_deployment(deployment.id, parameters=parameters).id

    def run(self, name: str, **parameters: Any) -> FlowRun:
        return self.end_of(self.start(name, **parameters))

    def end_of(self, run_id: UUID) -> FlowRun:
        def ended() -> FlowRun | None:
            run = self.client.read_flow_run(run_id)
            return run if run.state is not None and run.state.is_final() else None

        return self.soon(ended)

    def soon(self, look: Callable[[], Any], seconds: float = _SECONDS_FOR_A_RUN, every: float = 0.3) -> Any:
        deadline = time.monotonic() + seconds
        while not (found := look()):
            assert time.monotonic() < deadline, "it never happened"
            time.sleep(every)
        return found

    def runs_of(self, name: str) -> list[FlowRun]:
        deployment = self.client.read_deployment_by_name(name)
        return [run for run in self.client.read_flow_runs() if run.deployment_id == deployment.id]

    def children(self, run: FlowRun) -> list[FlowRun]:
        by_parent = FlowRunFilter(parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=[run.id]))
        return self.client.read_flow_runs(flow_run_filter=by_parent)

    def made_by(self, run: FlowRun) -> list[dict[str, Any]]:
        """The manifests that name the run."""
        paths = sorted(self.artifacts.glob("models/fashion-mnist/versions/*/manifest.json"))
        manifests: list[dict[str, Any]] = [json.loads(path.read_bytes()) for path in paths]
        return [manifest for manifest in manifests if manifest["flow_run_id"] == str(run.id)]


@pytest.fixture(scope="session")
def webhook() -> Iterator[tuple[str, list[dict[str, str]]]]:
    """The address of a webhook, and what it has received."""
    received: list[dict[str, str]] = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:  # the name that http.server calls
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
def deployed_at(home: Path, notify: str, database: str | None = None) -> Iterator[Deployed]:
    """A server, sqlite unless there is a ``database``, everything deployed to it, and a worker for the cpu pool."""
    url = f"http://127.0.0.1:{free_port()}/api"
    with temporary_settings({PREFECT_API_URL: url}), get_client(sync_client=True) as client:
        made = Deployed(home, url, client, database)
        try:
            made.start_server()
            done = made.command("cli.main", "deploy", FASHION_ANN_NOTIFY=notify)
            assert done.returncode == 0, done.stderr
            # Its own schedule would announce the sample in the middle of some test. A pause would leave the runs that
            # are scheduled already.
            watch = client.read_deployment_by_name("watch-data/scheduled")
            for schedule in watch.schedules:
                client.update_deployment_schedule(watch.id, schedule.id, active=False)
            for run in client.read_flow_runs():
                if run.deployment_id == watch.id:
                    client.delete_flow_run(run.id)
            with made.worker("cpu", "cpu-worker"):
                yield made
        finally:
            stop(made.server)


@pytest.fixture(scope="session")
def deployed(
    postgres: Postgres, tmp_path_factory: pytest.TempPathFactory, webhook: tuple[str, Any]
) -> Iterator[Deployed]:
    """One server for the session, with a worker for the cpu pool and none for the gpu pool.

    On Postgres: on a busy machine Prefect's server loses events when its sqlite is locked for long.
    """
    address = postgres.new_database("deployed")
    with deployed_at(tmp_path_factory.mktemp("deployed"), webhook[0], address) as made:
        yield made


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A cluster for the session, of Debian's package: `make test-deployed` sees to it."""
    programs = binaries()
    assert programs is not None, MISSING
    with postgres_cluster(programs) as cluster:
        yield cluster


@pytest.fixture
def record_row(record_property: Callable[[str, object], None]) -> Callable[[Row], None]:
    """Keeps a row of the table of faults, as a property of the test: that reaches the main process of pytest-xdist."""
    return lambda row: record_property(_ROW, asdict(row))


class FaultsTable:
    """Writes docs/faults.md when all is over, if all faults were tried and passed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[Row] = []
        self.whole = True

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if _FAULTS not in report.nodeid:
            return
        self.whole &= report.passed
        if report.when == "call":
            self.rows += [Row(**value) for name, value in report.user_properties if name == _ROW]

    def pytest_sessionfinish(self) -> None:
        if self.whole and {row.database for row in self.rows} == set(DATABASES):
            write_table(self.path, self.rows)


def pytest_configure(config: pytest.Config) -> None:
    path = os.environ.get("FAULTS_TABLE")
    if path and not hasattr(config, "workerinput"):
        config.pluginmanager.register(FaultsTable(Path(path)))
