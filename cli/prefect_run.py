"""Run a flow in this process, on the Prefect API that is configured or on an embedded server that ends with us."""

import atexit
import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from filelock import BaseFileLock, FileLock

from cli.server_process import (
    HOST,
    ServerUnavailable,
    free_port,
    project_settings,
    refusal,
    stop_tree,
    wait_until_healthy,
)
from cli.terminal import Progress, Screen
from schemas.config import BadRows, DeviceChoice, PromotionConfig, TrainingConfig
from schemas.contract import DatasetName
from schemas.references import ModelVersion
from tasks.runtime.events import StageStarted, emit

_SECONDS_TO_END = 5
_SHOW_CURSOR = "\n\x1b[?25h"
_KILLED = " (SIGKILL, as the system does when memory runs out)"


def run_training_flow(
    dataset: DatasetName,
    data_dir: Path,
    artifacts_dir: Path,
    training: TrainingConfig,
    promotion: PromotionConfig,
    device: DeviceChoice,
    bad_rows: BadRows,
    progress: Progress,
    *,
    quiet: bool,
) -> ModelVersion:
    """Run train-fashion-mnist here, shown on the terminal unless ``quiet``, and return what it returns.

    ``progress`` follows what was done, also when the run is stopped.
    """
    _apply_project_settings()
    configured = _configured_api()
    screen = Screen(artifacts_dir, progress, quiet=quiet)
    server = None if configured else _start_server(screen.log)
    with screen.showing(), _prefect_api(server, screen.log):
        from flows.train_fashion_mnist import train_fashion_mnist

        screen.take_over_logging()
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


def _apply_project_settings() -> None:
    """A variable that is set already wins."""
    for name, value in project_settings().items():
        os.environ.setdefault(name, value)


def _configured_api() -> bool:
    """Whether the settings name an API; raises `ServerUnavailable` when it cannot be used."""
    from prefect.settings import get_current_settings

    if get_current_settings().api.url is None:
        return False
    if (fault := refusal()) is not None:
        raise ServerUnavailable(str(fault))
    return True


@contextmanager
def _prefect_api(server: tuple[subprocess.Popen[bytes], str, BaseFileLock] | None, log: IO[bytes]) -> Iterator[None]:
    """An API for the flows of this process: the configured one, else that of ``server``, which writes to ``log``.

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

    emit(StageStarted("start", None))
    # While the server boots: the flows, and what the first stage with something to do will need. That one in a
    # thread, since a run that has nothing to do goes on without it.
    import flows.train_fashion_mnist  # noqa: F401

    if server is None:
        yield
        return
    process, url, starting = server
    from tasks.checks.expectations import import_great_expectations

    threading.Thread(target=import_great_expectations, daemon=True).start()
    _demand_health(process, url, get_current_settings().server.ephemeral.startup_timeout_seconds, log)
    starting.release()
    done = threading.Event()
    threading.Thread(target=_end_with_server, args=(process, done), daemon=True).start()
    # Nobody is left to hear a heartbeat when this process dies, and ending its thread costs a second a flow.
    with temporary_settings({PREFECT_API_URL: url, PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        try:
            yield
        finally:
            done.set()


def _end_with_server(process: subprocess.Popen[bytes], done: threading.Event) -> None:
    """End at once when the server does before ``done``: Prefect's client tries for minutes to reach it, and names no
    cause. It is as if this process had been killed, which every stage is made for; what it started ends with it."""
    process.wait()
    # SIGTERM may have gone to all processes of a group: then this one is about to end, and says so itself.
    if done.wait(0 if process.returncode == -signal.SIGKILL else _SECONDS_TO_END):
        return
    # The display may have hidden the cursor.
    print(
        f"{_SHOW_CURSOR if sys.stderr.isatty() else ''}fashion-ann: The embedded Prefect server ended with status "
        f"{process.returncode} while it was in use{_KILLED if process.returncode == -signal.SIGKILL else ''}. What was "
        "finished is kept; run again to go on.",
        file=sys.stderr,
        flush=True,
    )
    os._exit(1)


def _start_server(log: IO[bytes]) -> tuple[subprocess.Popen[bytes], str, BaseFileLock]:
    """Process, address, and the lock that is to be released once it answers: of two servers that start at once on the
    new database of a home, one fails on the tables that the other is making."""
    import prefect
    from prefect.settings import get_current_settings

    settings = get_current_settings()
    starting = FileLock(settings.home / ".fashion-ann-starts.lock")
    # Of a home that cannot be written to the server tells; one that takes longer to start than it may is waited for no
    # longer, either.
    with suppress(OSError):
        settings.home.mkdir(parents=True, exist_ok=True)
        starting.acquire(timeout=settings.server.ephemeral.startup_timeout_seconds)
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
    return process, f"http://{HOST}:{port}/api", starting


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
