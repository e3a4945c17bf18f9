"""Run a flow in this process, on the configured Prefect API or on an embedded server that ends with this process."""

import atexit
import ctypes
import gc
import importlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

from cli.arguments import stops_raised
from cli.prefect_toml import settings_of_up
from cli.server_database import is_current
from cli.server_main import Start
from cli.server_process import (
    HOST,
    api_problem,
    prefect_settings,
    project_settings,
    reported_cause,
    require_home,
    stop_tree,
    wait_until_healthy,
)
from cli.terminal import Progress, Screen
from schemas.config import PROJECT_ROOT, python_command
from schemas.errors import LockHeld, LocksUnavailable, ServerUnavailable
from tasks.runtime.events import StageStarted, emit
from tasks.runtime.locks import lock

if TYPE_CHECKING:
    from prefect.settings import Settings

_SECONDS_TO_STOP = 5
_SERVER_VARIABLES = {
    "PREFECT_UI_ENABLED": "0",
    # No flow of this project has blocks. Both, because the memo would report the blocks as registered to other servers.
    "PREFECT_API_BLOCKS_REGISTER_ON_START": "0",
    "PREFECT_MEMOIZE_BLOCK_AUTO_REGISTRATION": "0",
}


Result = TypeVar("Result")


def run_flow(
    name: str, parameters: Mapping[str, Any], returns: type[Result], progress: Progress, *, quiet: bool
) -> Result:
    """Run the flow ``name`` of flows/NAME.py in this process, and return its result, a ``returns``.

    parameters: those of the flow, with ``artifacts_dir``. The run is shown on the terminal unless ``quiet``.
    ``progress`` is updated while the flow runs, so it is up to date also when the run is stopped. Raises
    `ServerUnavailable` if the configured API cannot be used.
    """
    artifacts_dir: Path = parameters["artifacts_dir"]
    gc.disable()  # until the imports have ended
    for variable, value in project_settings().items():
        os.environ.setdefault(variable, value)
    # Read without Prefect, whose import takes 0.7 s: the server imports its modules at the same time.
    address = os.environ.get("PREFECT_API_URL", settings_of_up(PROJECT_ROOT / "prefect.toml").get("url"))
    screen = None if address else Screen(artifacts_dir, progress, quiet=quiet)
    server = None if screen is None else _start_server(screen.log)
    settings = prefect_settings()
    if settings.api.url:
        if server is not None:  # the address is in a profile of Prefect or in another of its files
            server.process.kill()
            server = None
        if (problem := api_problem()) is not None:
            raise ServerUnavailable(str(problem))
    screen = screen or Screen(artifacts_dir, progress, quiet=quiet)
    with stops_raised(), screen.showing(), _prefect_api(server, screen.log, name):
        flow = _load(name)
        gc.freeze()
        gc.enable()
        screen.take_over_logging()
        result = flow(**parameters)
    if not isinstance(result, returns):
        raise TypeError(f"The flow was expected to return a {returns.__name__}, it returned {result!r}.")
    return result


def _load(name: str) -> Callable[..., object]:
    flow: Callable[..., object] = getattr(importlib.import_module(f"flows.{name}"), name)
    return flow


@dataclass(frozen=True)
class _Server:
    """An embedded server, whose process has started. It waits for the order to open its database."""

    process: subprocess.Popen[str]
    url: str
    password: str


@contextmanager
def _prefect_api(server: _Server | None, log: IO[bytes], name: str) -> Iterator[None]:
    """Provide an API for the flow ``name``: the configured one, or ``server``, which writes to ``log``.

    The server is the one that Prefect itself would embed. This process starts it for three reasons:

    - it boots while this process is still importing;
    - this process need not import the server (2 s and 60 MB);
    - the kernel ends it when this process is killed. Prefect's own would keep running.
    """
    from prefect.settings import (
        PREFECT_API_AUTH_STRING,
        PREFECT_API_URL,
        PREFECT_CLIENT_SERVER_VERSION_CHECK_ENABLED,
        PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
        temporary_settings,
    )

    emit(StageStarted("start", None))
    if server is None:
        yield
        return
    settings = prefect_settings()
    seconds = settings.server.ephemeral.startup_timeout_seconds
    process = server.process
    with _lone_start(settings.home, seconds):
        _order_start(server, settings)
        _prepare_run(name)
        problem = wait_until_healthy(server.url, seconds, process.poll)
    if problem is not None:
        log.seek(0)
        more = "Set PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS to wait longer. " if process.poll() is None else ""
        raise ServerUnavailable(
            f"The embedded Prefect server {problem}. {reported_cause(log.read(), f'in PREFECT_HOME {settings.home}')}"
            f"{more}Set PREFECT_API_URL to use your own server."
        )
    done = threading.Event()
    threading.Thread(target=_exit_with_server, args=(process, done), daemon=True).start()
    updates = {
        PREFECT_API_URL: server.url,
        PREFECT_API_AUTH_STRING: server.password,
        PREFECT_CLIENT_SERVER_VERSION_CHECK_ENABLED: False,  # both are of the same installation
        # The server dies with this process, so no automation would miss a heartbeat. Joining its thread costs 1 s per
        # flow.
        PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None,
    }
    with temporary_settings(updates):
        try:
            yield
        finally:
            done.set()


def _prepare_run(name: str) -> None:
    """Do what a run would do later, while the server starts on another core: 0.5 s."""
    import fastapi.encoders  # noqa: F401
    import prefect.flow_engine
    import prefect.task_engine  # noqa: F401

    from tasks.runtime.fingerprint import code_digest

    _load(name)
    code_digest((f"flows.{name}",))  # parses the code of every stage


def _exit_with_server(process: subprocess.Popen[str], done: threading.Event) -> None:
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
    """Start the process of a server, which requires a random password, and return before it has imported anything."""
    password = secrets.token_urlsafe()
    listener = socket.socket()  # the server inherits it, so that no other process can take its port
    with listener:
        listener.bind((HOST, 0))
        process = subprocess.Popen(  # noqa: S603  # our own interpreter, fixed arguments
            python_command("cli.server_main", str(listener.fileno())),
            env={**os.environ, "PREFECT_SERVER_API_AUTH_STRING": password, **_SERVER_VARIABLES},
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            pass_fds=[listener.fileno()],
            # Safe because this process has no second thread yet.
            preexec_fn=_end_with_parent if sys.platform == "linux" else None,
            # Ctrl-C must not reach the server: the flow still has to report its last state to it.
            process_group=0,
            text=True,
        )
        url = f"http://{HOST}:{listener.getsockname()[1]}/api"
    # Not before the exit: hooks that run just before those of `atexit` send Prefect's last logs and events. Without a
    # server they would retry for a minute.
    atexit.register(stop_tree, process.pid, _SECONDS_TO_STOP)
    return _Server(process, url, password)


@contextmanager
def _lone_start(home: Path, seconds: float) -> Iterator[None]:
    """Let no other embedded server of ``home`` start in this block. Raises `ServerUnavailable` as `require_home` does.

    Two servers that start at once on a new database would both create its tables, and one would fail.
    """
    require_home(home)
    with ExitStack() as stack:
        # Continue without the lock if the file system has none, or if another server takes longer than its time limit.
        with suppress(LockHeld, LocksUnavailable, OSError):
            path = home / ".fashion-ann-starts.lock"
            stack.enter_context(lock(path, waiting="waiting for another embedded server to start", seconds=seconds))
        yield


def _order_start(server: _Server, settings: "Settings") -> None:
    """Create the database if it is missing, and let the server open it."""
    url = settings.server.database.connection_url
    order = Start(migrate=url is None or not is_current(url.get_secret_value()))
    with suppress(BrokenPipeError):  # it ended; `wait_until_healthy` reports that
        print(json.dumps(order), file=server.process.stdin, flush=True)


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # 1: PR_SET_PDEATHSIG
