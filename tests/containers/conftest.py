"""The project as containers: our own engine, the images, and compose with Postgres and a worker for the cpu pool."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

from cli.server_process import free_port, restore_sigint
from schemas.config import PROJECT_ROOT
from tests.containers.engine import PYTHON_IMAGE, Engine
from tests.sample import SAMPLE

AUTH = "tests:oak7wren"
REVISION = "0123456789abcdef0123456789abcdef01234567"
# Two epochs on a thousand images stay below the default quality floor.
QUICK = {
    "training": {"epochs": 2, "validation_size": 100},
    "promotion": {"minimum_accuracy": 0, "minimum_recall": 0},
}


class Stack(NamedTuple):
    """Running containers, and a client of their server. ``port`` is that of the server on this host."""

    engine: Engine
    client: SyncPrefectClient
    port: int
    home: Path

    def compose(self, *arguments: str, **environment: str) -> str:
        """Run `docker compose` as a user does in the checkout, and return its output."""
        variables = {
            "POSTGRES_PASSWORD": "elm4finch",
            "PREFECT_SERVER_API_AUTH_STRING": AUTH,
            "FASHION_ANN_PORT": str(self.port),
            "PYTHON_IMAGE": PYTHON_IMAGE,
            "REVISION": REVISION,
        }
        return self.engine.docker("compose", "--progress=plain", *arguments, **variables | environment)

    def in_worker(self, *command: str) -> str:
        return self.compose("exec", "--no-TTY", "worker-cpu", *command)

    @contextmanager
    def worker(self, pool: str, kind: str) -> Iterator[None]:
        """Run a worker on this host until the end of the block. It starts containers on the engine of the stack."""
        environment = {
            **self.engine.environment,
            "PREFECT_API_URL": f"http://127.0.0.1:{self.port}/api",
            "PREFECT_API_AUTH_STRING": AUTH,
            "PREFECT_UI_URL": f"http://127.0.0.1:{self.port}",
            "PREFECT_HOME": str(self.home / "prefect"),
            "PREFECT_WORKER_QUERY_SECONDS": "1",
        }
        command = ["worker", "start", "--pool", pool, "--type", kind, "--install-policy", "never"]
        with (self.home / f"{pool}.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "prefect", *command],
                cwd=self.home,
                env=environment,
                stdout=log,
                stderr=log,
                preexec_fn=restore_sigint,  # Prefect ends a worker with it
            )
        try:
            yield
        finally:
            process.terminate()
            try:
                process.wait(timeout=60)
            finally:
                process.kill()

    def start(self, name: str, **parameters: Any) -> FlowRun:
        deployment = self.client.read_deployment_by_name(name)
        return self.client.create_flow_run_from_deployment(deployment.id, parameters=parameters)

    def end_of(self, run: FlowRun) -> FlowRun:
        """Wait for the final state of a run."""

        def ended() -> FlowRun | None:
            current = self.client.read_flow_run(run.id)
            return current if current.state is not None and current.state.is_final() else None

        return wait_for(ended)  # type: ignore[no-any-return]


def wait_for(check: Callable[[], Any], seconds: float = 400) -> Any:
    """Wait until ``check`` returns a true value, and return it."""
    deadline = time.monotonic() + seconds
    while not (result := check()):
        assert time.monotonic() < deadline, "the condition was not met in time"
        time.sleep(1)
    return result


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    assert os.geteuid() == 0, "a Docker engine needs root"
    engine = Engine(tmp_path_factory.mktemp("engine"))
    with engine.running():
        engine.install_plugins()
        engine.build_base_images()
        yield engine


@pytest.fixture(scope="session")
def stack(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Build the cpu image, start compose, and copy the committed sample into the data volume."""
    port = free_port()
    settings = {PREFECT_API_URL: f"http://127.0.0.1:{port}/api", PREFECT_API_AUTH_STRING: AUTH}
    with temporary_settings(settings), get_client(sync_client=True) as client:
        stack = Stack(engine, client, port, tmp_path_factory.mktemp("workers"))
        stack.compose("up", "--build", "--detach", "worker-cpu")
        for deployment in client.read_deployments():  # a scheduled run would train, too
            for schedule in deployment.schedules:
                client.update_deployment_schedule(deployment.id, schedule.id, active=False)
        for csv in SAMPLE.glob("*.csv.gz"):
            stack.compose("cp", str(csv.relative_to(PROJECT_ROOT)), "worker-cpu:/data/")
        yield stack
        stack.compose("down", "--volumes", "--timeout", "1")
