"""MLflow's own server, and its server of a registered model.

`make test-mlflow` installs the first in an environment of its own, from requirements/mlflow-server.lock. The second
runs in that of the tests, because it loads a model with Keras.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from cli.server_process import HOST, free_port
from schemas.config import PROJECT_ROOT

BIN = Path(os.environ.get("MLFLOW_BIN", PROJECT_ROOT / ".venv" / "mlflow-server" / "bin"))
_SECONDS_TO_START = 240


@contextmanager
def tracking_server(folder: Path, database: str) -> Iterator[str]:
    """Run `mlflow server` on a database, with artifacts in ``folder``, and yield its address."""
    port = free_port()
    command = [BIN / "mlflow", "server", "--host", HOST, "--port", str(port), "--workers", "1"]
    stores = ["--backend-store-uri", database, "--artifacts-destination", str(folder / "artifacts")]
    variables = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with _process([*command, *stores], f"http://{HOST}:{port}/health", folder / "server.log", variables):
        yield f"http://{HOST}:{port}"


@contextmanager
def model_server(folder: Path, model: str, tracking: str) -> Iterator[str]:
    """Run `mlflow models serve` for a registered model, and yield its address."""
    port = free_port()
    programs = Path(sys.executable).parent
    command = [programs / "mlflow", "models", "serve", "--model-uri", model, "--env-manager", "local"]
    variables = {"MLFLOW_TRACKING_URI": tracking, "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}
    address = [*command, "--host", HOST, "--port", str(port)]
    with _process(address, f"http://{HOST}:{port}/ping", folder / "serve.log", variables):
        yield f"http://{HOST}:{port}"


@contextmanager
def _process(command: list[str | Path], ready: str, log: Path, variables: dict[str, str]) -> Iterator[None]:
    # A group of its own, because the program starts others. Not in the checkout, where it would write.
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, env={**os.environ, **variables}, cwd=log.parent, process_group=0
        )
    try:
        deadline = time.monotonic() + _SECONDS_TO_START
        while not _answers(ready):
            assert process.poll() is None, log.read_text(errors="replace")[-3000:]
            assert time.monotonic() < deadline, log.read_text(errors="replace")[-3000:]
            time.sleep(0.2)
        yield
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5).is_success
    except httpx.TransportError:
        return False
