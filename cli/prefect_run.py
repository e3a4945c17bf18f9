"""Run a flow in this process, on the Prefect API that is configured or on an embedded server that ends with us."""

import atexit
import ctypes
import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from cli.server_process import (
    HOST,
    ServerUnavailable,
    free_port,
    project_settings,
    refusal,
    stop_tree,
    wait_until_healthy,
)
from schemas.config import BadRows, DeviceChoice, PromotionConfig, TrainingConfig
from schemas.contract import DatasetName
from schemas.references import ModelVersion

_SECONDS_TO_END = 5


def run_training_flow(
    dataset: DatasetName,
    data_dir: Path,
    artifacts_dir: Path,
    training: TrainingConfig,
    promotion: PromotionConfig,
    device: DeviceChoice,
    bad_rows: BadRows,
) -> ModelVersion:
    """Run train-fashion-mnist here and return what it returns."""
    _apply_project_settings()
    with _prefect_api():
        from flows.train_fashion_mnist import train_fashion_mnist

        _let_the_stages_speak()
        made = train_fashion_mnist(
            dataset=dataset,
            data_dir=data_dir,
            artifacts_dir=artifacts_dir,
            training=training,
            promotion=promotion,
            device=device,
            bad_rows=bad_rows,
        )
    if not isinstance(made, ModelVersion):
        raise TypeError(f"The flow was expected to return a ModelVersion, it returned {made!r}.")
    return made


def _let_the_stages_speak() -> None:
    """On the terminal: what our stages say, and warnings. The run's log on the server keeps the engine's words, too.

    An error reaches the terminal once, as the command's own last line, and not as the engine's traceback before it.
    """
    logging.getLogger("tasks").setLevel(logging.INFO)

    def for_people(record: logging.LogRecord) -> bool:
        engine = record.name.startswith(("prefect.flow_runs", "prefect.task_runs"))
        return record.name.startswith("tasks.") or (record.levelno >= logging.WARNING and not engine)

    for handler in logging.getLogger().handlers:
        handler.addFilter(for_people)


def _apply_project_settings() -> None:
    """A variable that is set already wins."""
    for name, value in project_settings().items():
        os.environ.setdefault(name, value)


@contextmanager
def _prefect_api() -> Iterator[None]:
    """An API for the flows of this process: the configured one, else an embedded server.

    It is the server that Prefect itself would embed, started by us for three reasons: it boots while this process is
    still importing; this process need not import the server (2 s and 60 MB); and the kernel ends it when this process
    is killed, where Prefect's own would run on for ever.
    """
    from prefect.settings import (
        PREFECT_API_URL,
        PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
        get_current_settings,
        temporary_settings,
    )

    settings = get_current_settings()
    if settings.api.url is not None:
        if (fault := refusal()) is not None:
            raise ServerUnavailable(str(fault))
        yield
        return
    with tempfile.TemporaryFile() as log:
        process, url = _start_server(log)
        # While the server boots: the flows, and what the first stage with something to do will need. That one in a
        # thread, since a run that has nothing to do goes on without it.
        import flows.train_fashion_mnist  # noqa: F401
        from tasks.expectations import import_great_expectations

        threading.Thread(target=import_great_expectations, daemon=True).start()
        _demand_health(process, url, settings.server.ephemeral.startup_timeout_seconds, log)
        # Nobody is left to hear a heartbeat when this process dies, and ending its thread costs a second a flow.
        with temporary_settings({PREFECT_API_URL: url, PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
            yield


def _start_server(log: IO[bytes]) -> tuple[subprocess.Popen[bytes], str]:
    import prefect

    port = free_port()
    process = subprocess.Popen(  # noqa: S603  # our own interpreter, fixed arguments
        [
            *(sys.executable, "-m", "uvicorn", "--app-dir", str(prefect.__module_path__.parent)),
            *("--factory", "prefect.server.api.server:create_app", "--host", HOST, "--port", str(port)),
            *("--log-level", "error", "--lifespan", "on"),
        ],
        env={**os.environ, "PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"},
        stdout=log,
        stderr=log,
        # This process has no second thread yet, so code between fork and exec is safe.
        preexec_fn=_end_with_parent if sys.platform == "linux" else None,
        # Ctrl-C is ours to handle: the server has to outlive it by the flow's last state.
        process_group=0,
    )
    # Not before the exit: Prefect sends the last logs and events from hooks that run just before `atexit`'s, and would
    # try for a minute to reach a server that is gone.
    atexit.register(stop_tree, process.pid, _SECONDS_TO_END)
    return process, f"http://{HOST}:{port}/api"


def _end_with_parent() -> None:
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def _demand_health(process: subprocess.Popen[bytes], url: str, patience: float, log: IO[bytes]) -> None:
    if (fault := wait_until_healthy(url, patience, process.poll)) is None:
        return
    log.seek(0)
    said = " ".join(log.read().decode(errors="replace").split())[-600:]
    raise ServerUnavailable(
        f"The embedded Prefect server {fault}. It said: {said or 'nothing'} "
        "PREFECT_HOME must be a folder that can be written to. Set PREFECT_API_URL to use a server of your own."
    )
