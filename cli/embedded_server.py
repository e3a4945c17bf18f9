"""Run a flow in this process, on the configured Prefect API or on an embedded server that ends with this process."""

import atexit
import ctypes
import os
import secrets
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psutil

from cli.server_process import (
    HOST,
    api_problem,
    free_port,
    prefect_settings,
    project_settings,
    reported_cause,
    require_home,
    stop_tree,
    wait_until_healthy,
)
from cli.terminal import Progress, Screen
from schemas.config import BadRows, DeviceChoice, Note, PromotionConfig, TrainingConfig, python_command
from schemas.contract import DatasetName
from schemas.errors import LockHeld, LocksUnavailable, ServerUnavailable
from schemas.references import ModelVersion
from tasks.runtime.events import StageStarted, emit
from tasks.runtime.locks import lock

_SECONDS_TO_STOP = 5


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
    fetch: bool = False,
    note: Note | None = None,
    quiet: bool,
) -> ModelVersion:
    """Run train-fashion-mnist in this process, show it on the terminal unless ``quiet``, and return its version.

    ``progress`` is updated while the flow runs, so it is up to date also when the run is stopped. Raises
    `ServerUnavailable` if the configured API cannot be used.
    """
    for name, value in project_settings().items():
        os.environ.setdefault(name, value)
    settings = prefect_settings()
    configured = bool(settings.api.url)
    if configured and (problem := api_problem()) is not None:
        raise ServerUnavailable(str(problem))
    if not configured:
        require_home(settings.home)
    screen = Screen(artifacts_dir, progress, quiet=quiet)
    server = None if configured else _start_server(screen.log)
    with screen.showing(), _prefect_api(server, screen.log):
        from flows.train_fashion_mnist import train_fashion_mnist

        screen.take_over_logging()
        version = train_fashion_mnist(
            dataset=dataset,
            data_dir=data_dir,
            artifacts_dir=artifacts_dir,
            training=training,
            promotion=promotion,
            device=device,
            bad_rows=bad_rows,
            fetch=fetch,
            note=note,
        )
    if not isinstance(version, ModelVersion):
        raise TypeError(f"The flow was expected to return a ModelVersion, it returned {version!r}.")
    return version


@dataclass(frozen=True)
class _Server:
    """An embedded server. ``starting`` holds a lock until it is closed, as soon as the server answers."""

    process: subprocess.Popen[bytes]
    url: str
    password: str
    starting: ExitStack


@contextmanager
def _prefect_api(server: _Server | None, log: IO[bytes]) -> Iterator[None]:
    """Provide an API for the flows of this process: the configured one, or ``server``, which writes to ``log``.

    The server is the one that Prefect itself would embed. This process starts it for three reasons:

    - it boots while this process is still importing;
    - this process need not import the server (2 s and 60 MB);
    - the kernel ends it when this process is killed. Prefect's own would keep running.
    """
    from prefect.settings import (
        PREFECT_API_AUTH_STRING,
        PREFECT_API_URL,
        PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
        temporary_settings,
    )

    emit(StageStarted("start", None))
    # The server boots during these imports. That of Great Expectations runs in a thread, because only a stage that
    # misses its cache needs it.
    import flows.train_fashion_mnist  # noqa: F401

    if server is None:
        yield
        return
    from tasks.checks.expectations import import_great_expectations

    threading.Thread(target=import_great_expectations, daemon=True).start()
    settings = prefect_settings()
    seconds = settings.server.ephemeral.startup_timeout_seconds
    process = server.process
    if (problem := wait_until_healthy(server.url, seconds, process.poll, psutil.Process(process.pid))) is not None:
        log.seek(0)
        more = "Set PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS to wait longer. " if process.poll() is None else ""
        raise ServerUnavailable(
            f"The embedded Prefect server {problem}. {reported_cause(log.read(), f'in PREFECT_HOME {settings.home}')}"
            f"{more}Set PREFECT_API_URL to use your own server."
        )
    server.starting.close()
    done = threading.Event()
    threading.Thread(target=_exit_with_server, args=(process, done), daemon=True).start()
    updates = {
        PREFECT_API_URL: server.url,
        PREFECT_API_AUTH_STRING: server.password,
        # The server dies with this process, so no automation would miss a heartbeat. Joining its thread costs 1 s per
        # flow.
        PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None,
    }
    with temporary_settings(updates):
        try:
            yield
        finally:
            done.set()


def _exit_with_server(process: subprocess.Popen[bytes], done: threading.Event) -> None:
    """Exit at once if the server ends before ``done``. Prefect's client would retry for minutes and name no cause.

    The effect is that of a SIGKILL of this process, which every stage survives. Child processes end with it.
    """
    killed = process.wait() == -signal.SIGKILL
    # SIGTERM may have gone to the whole process group. Then this process is about to end and prints its own message.
    if done.wait(0 if killed else _SECONDS_TO_STOP):
        return
    if sys.stderr.isatty():
        os.write(sys.stderr.fileno(), b"\n\x1b[?25h")  # show the cursor, which the live view may have hidden
    cause = " (SIGKILL, as the system sends when memory runs out)" if killed else ""
    sys.stderr.write(
        f"fashion-ann: The embedded Prefect server ended with status {process.returncode} while it was in use{cause}. "
        "Finished stages are kept. Run the same command again to continue.\n"
    )
    sys.stderr.flush()
    os._exit(1)


def _start_server(log: IO[bytes]) -> _Server:
    """Start the server in its own process and return it. It requires the configured password, else a random one.

    Two servers that start at once on a new database would both create its tables, and one would fail: hence the lock.
    """
    import prefect

    settings = prefect_settings()
    starting = ExitStack()
    seconds = settings.server.ephemeral.startup_timeout_seconds
    # Continue without the lock if the file system has none, or if another server takes longer than its time limit.
    with suppress(LockHeld, LocksUnavailable, OSError):
        path = settings.home / ".fashion-ann-starts.lock"
        starting.enter_context(lock(path, waiting="waiting for another embedded server to start", seconds=seconds))
    port = free_port()
    configured = settings.server.api.auth_string
    password = configured.get_secret_value() if configured else secrets.token_urlsafe()
    process = subprocess.Popen(  # noqa: S603  # our own interpreter, fixed arguments
        [
            *python_command("uvicorn", "--app-dir", str(prefect.__module_path__.parent)),
            *("--factory", "prefect.server.api.server:create_app", "--host", HOST, "--port", str(port)),
            *("--log-level", "error", "--lifespan", "on"),
        ],
        env={
            **os.environ,
            "PREFECT_SERVER_API_AUTH_STRING": password,
            "PREFECT_UI_ENABLED": "0",
            "PREFECT__SERVER_EPHEMERAL": "1",
            "PREFECT__SERVER_FINAL": "1",
        },
        stdout=log,
        stderr=log,
        # Safe because this process has no second thread yet.
        preexec_fn=_end_with_parent if sys.platform == "linux" else None,
        # Ctrl-C must not reach the server: the flow still has to report its last state to it.
        process_group=0,
    )
    # Not before the exit: hooks that run just before those of `atexit` send Prefect's last logs and events. Without a
    # server they would retry for a minute.
    atexit.register(stop_tree, process.pid, _SECONDS_TO_STOP)
    return _Server(process, f"http://{HOST}:{port}/api", password, starting)


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # 1: PR_SET_PDEATHSIG
