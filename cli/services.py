"""Run the deployed project on this machine: a Prefect server, its deployments, and one worker per work pool.

``up`` starts what is missing, ``down`` stops what ``up`` started, ``status`` reports what runs. All three use
``services/state.json`` in the artifacts folder. It identifies a process by pid and the moment of its start, because the
system reuses pids.
"""

import contextlib
import fcntl
import os
import platform
import secrets
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING
from uuid import uuid4

import httpx
import psutil
from pydantic import BaseModel, Field, ValidationError

from cli.deploy import pool_names, work_pools
from cli.placeholders import AUTH_STRINGS, DATABASE_URLS, require_chosen
from cli.prefect_toml import remove_prefect_toml, settings_of_up, write_prefect_toml
from cli.printed_commands import runnable
from cli.server_process import (
    HOST,
    Access,
    access_of,
    environment,
    free_port,
    is_loopback,
    prefect_settings,
    project_settings,
    reported_cause,
    restore_sigint,
    start_mark,
    ui_origins,
    wait_or_kill,
    wait_until_healthy,
)
from schemas.config import PROJECT_ROOT, data_folder, python_command
from schemas.errors import ServiceFailed, WrongUsage
from schemas.layout import Artifacts
from tasks.runtime.files import PRIVATE_FILE, PRIVATE_FOLDER, SECRET_FILE, atomic_write
from tasks.runtime.locks import lock
from tasks.runtime.log_rotation import rotate_logs

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

SERVER = "server"
PREFECT_DEFAULT_PORT = 4200

_MARKER = "FASHION_ANN_SERVICES"
_AUTH, _CLIENT_AUTH = AUTH_STRINGS
_LISTEN = "PREFECT_SERVER_API_HOST"
_ORIGINS = "PREFECT_SERVER_API_CORS_ALLOWED_ORIGINS"
_CSRF = "PREFECT_SERVER_API_CSRF_PROTECTION_ENABLED"
_DATABASE = DATABASE_URLS[0]
_DATA_DIR = "FASHION_ANN_DATA_DIR"
_ALL_ADDRESSES = "0.0.0.0"  # noqa: S104  # used only if the user sets it
# Settings of the server that a flow run must not see.
SERVER_SECRETS = (_AUTH, *DATABASE_URLS)

# The first start creates the database, which took 13 s on an idle machine.
_SECONDS_TO_START = 180
_SECONDS_TO_DEPLOY = 300
# A terminated flow run first reports its state to the server.
_SECONDS_TO_STOP = 20
# Two `up` in different artifacts folders may choose the same port.
_PORTS_TRIED = 3
_LOCK_SECONDS = 600


class Process(BaseModel):
    """A process that ``up`` started. ``started`` is its `start_mark`, ``url`` the API that it serves or uses.

    ``logged`` is the size that its log had before the start.
    """

    pid: int
    started: str
    url: str
    logged: int

    def alive(self) -> psutil.Process | None:
        """Return the process if it is still the one that was started."""
        try:
            process = psutil.Process(self.pid)
            return process if start_mark(process) == self.started and process.status() != psutil.STATUS_ZOMBIE else None
        except psutil.NoSuchProcess:
            return None


class State(BaseModel):
    """The content of ``state.json``.

    It keeps the port of a stopped server and the end of its workers' names, so that both stay the same: the host name
    may change, and other machines may have the same one.
    """

    port: int | None
    machine: str | None = None
    processes: dict[str, Process]

    @classmethod
    def read(cls, path: Path) -> "State":
        """Return the recorded state, an empty one if there is no file."""
        try:
            return cls.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return cls(port=None, processes={})
        except ValidationError as error:
            fault = error.errors()[0]
            pids = ", ".join(str(process.pid) for process in _marked(path.parent))
            first = f"First end the processes of these services: {pids}. " if pids else ""
            raise ServiceFailed(
                f"{path} was expected to list the services as this version writes it, received "
                f"{'.'.join(map(str, fault['loc'])) or 'a file'}: {fault['msg']}. {first}Remove the file, then run "
                "`fashion-ann up`."
            ) from error

    def write(self, path: Path) -> None:
        """Replace ``state.json`` atomically."""
        with atomic_write(path, mode=PRIVATE_FILE) as temporary:
            temporary.write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")

    def alive(self, name: str) -> psutil.Process | None:
        """Return the process of a service, None if it does not run."""
        return self.processes[name].alive() if name in self.processes else None


class Service(BaseModel):
    """The status of one service. ``says`` is "running" or a description of the problem."""

    name: str
    running: bool
    says: str
    pid: int | None
    log: Path


class Status(BaseModel):
    """The status of all services. ``url`` is None before the first ``up``. ``note``: how `prefect` finds the server.

    ``access`` is None if the server does not run. ``password_file`` contains the password that ``up`` made for it.
    """

    url: str | None
    ui: str | None
    logs: Path
    services: list[Service]
    access: Access | None
    password_file: Path | None
    note: str = Field(exclude=True)


class ServicePaths:
    """The files of the services of one artifacts folder."""

    def __init__(self, artifacts_dir: Path) -> None:
        self.folder = Artifacts(artifacts_dir).services
        self.logs = Artifacts(artifacts_dir).service_logs
        self.state = self.folder / "state.json"
        self.lock = self.folder / "lock"
        self.password = self.folder / "password"
        # The services' own PREFECT_HOME: two servers on one sqlite database would mix their deployments.
        self.home = self.folder / "prefect"

    def create(self) -> None:
        """Create the folders, closed to other users: Prefect's files in its home have weaker permissions."""
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        self.folder.mkdir(PRIVATE_FOLDER, exist_ok=True)
        with contextlib.suppress(PermissionError):  # the folder of another user
            self.folder.chmod(self.folder.stat().st_mode & ~(0o777 ^ PRIVATE_FOLDER))  # of an earlier version
        for folder in (self.home, self.logs):
            folder.mkdir(exist_ok=True)

    def log(self, name: str) -> Path:
        return self.logs / f"{name}.log"


def service_of(role: str) -> str:
    """Return the service that is the worker of the pool for ``role``. Prefect's name for it is `worker_name`."""
    return f"worker-{role}"


def worker_name(role: str, state: State) -> str:
    """Return the worker's name on the server and in manifests. A pool may have workers on several machines."""
    return f"{role}-{state.machine}"


# --- up ---


def up(artifacts_dir: Path, *, no_auth: bool = False) -> Status:
    """Start what does not run, deploy, and return once every worker has reported to the server.

    A new server requires a password, unless ``no_auth`` is true.
    """
    paths = ServicePaths(artifacts_dir)
    settings = _server_settings(no_auth)  # the first import of Prefect, which reports unreadable settings
    from prefect.client.orchestration import SyncPrefectClient

    require_chosen(settings)
    _require_process_pools()
    paths.create()  # a file there is named now, not in a failed start's log
    with _exclusive(paths):
        state = State.read(paths.state)
        state.machine = state.machine or f"{platform.node()}-{uuid4().hex[:4]}"
        rotate_logs(paths.logs)
        # A server that runs without a password keeps running, because its workers have none.
        open_server = (server := state.alive(SERVER)) is not None and not server.environ().get(_AUTH)
        made = None if no_auth or open_server or _AUTH in settings else _password(paths.password)
        if made is not None:
            settings[_AUTH] = made
        url = _ensure_server(paths, state, settings)
        _require_same_data(state)
        write_prefect_toml(PROJECT_ROOT / "prefect.toml", url, made)
        variables = worker_environment(artifacts_dir, url, settings)
        _deploy(paths, variables)
        with SyncPrefectClient(url, auth_string=settings.get(_AUTH)) as client:
            earlier = {role: _ensure_worker(paths, state, role, client, url, variables) for role in pool_names()}
            _await_workers(paths, state, client, earlier)
    return status(artifacts_dir)


def _require_process_pools() -> None:
    for pool in work_pools().values():
        if pool["type"] != "process":
            raise WrongUsage(
                f"Work pool {pool['name']} is of type {pool['type']}, and `fashion-ann up` starts process workers "
                "only. Run `fashion-ann deploy` with your own server, and start that pool's worker yourself."
            )


def _require_same_data(state: State) -> None:
    """Raise `ServiceFailed` if a worker uses another data folder: its flow runs would silently keep using that one."""
    requested = data_folder()
    for name in map(service_of, pool_names()):
        if (process := state.alive(name)) is None:
            continue
        current = process.environ().get(_DATA_DIR)
        if current is not None and Path(current).resolve() != requested.resolve():
            raise ServiceFailed(
                f"{name} (process {process.pid}) was started for the data in {current}, but {requested} is requested. "
                f"Run `fashion-ann down`, then `fashion-ann up`. Or set {_DATA_DIR}={current}."
            )


def _server_settings(no_auth: bool) -> dict[str, str]:
    """Return the server's password, database, address and origins, from any place where Prefect reads settings.

    Raises `WrongUsage` if ``no_auth`` contradicts them.
    """
    settings = prefect_settings()
    server, variables = settings.server, {_LISTEN: settings.server.api.host}
    # A password that the user set only for clients is sent to this server, too.
    password, client = server.api.auth_string, settings.api.auth_string
    if client and client.get_secret_value() != settings_of_up(PROJECT_ROOT / "prefect.toml").get("auth_string"):
        password = password or (None if no_auth else client)
    if password:
        variables[_AUTH] = password.get_secret_value()
    # If unset, the setting contains Prefect's default, a file in another home.
    if "connection_url" in server.database.model_fields_set and server.database.connection_url is not None:
        variables[_DATABASE] = server.database.connection_url.get_secret_value()
    variables[_CSRF] = str(server.api.csrf_protection_enabled)
    if server.api.cors_allowed_origins != project_settings()[_ORIGINS]:
        variables[_ORIGINS] = server.api.cors_allowed_origins
    if no_auth and _AUTH in variables:
        raise WrongUsage(f"--no-auth contradicts {_AUTH}, which is set. Remove one of the two.")
    if no_auth and not is_loopback(server.api.host):
        raise WrongUsage(
            f"--no-auth was expected with a loopback address, received {_LISTEN}={server.api.host}: every machine that "
            "reaches it could run commands as you. Remove one of the two."
        )
    return variables


def _password(path: Path) -> str:
    """Return the "user:password" in ``path``, where the first call writes a random one. Only its owner may read it."""
    with contextlib.suppress(FileNotFoundError):
        path.chmod(SECRET_FILE)
        if text := path.read_text(encoding="utf-8").strip():
            return text
    text = f"admin:{secrets.token_urlsafe(24)}"
    with atomic_write(path, mode=SECRET_FILE) as temporary:
        temporary.write_text(f"{text}\n", encoding="utf-8")
    return text


def worker_environment(artifacts_dir: Path, url: str, settings: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of workers and of the flow runs that they start: it contains no secret of the server."""
    return {
        "PREFECT_WORKER_QUERY_SECONDS": "2",
        **_environment(ServicePaths(artifacts_dir), url),
        # Workers have another working directory, so they need absolute folders.
        "FASHION_ANN_ARTIFACTS_DIR": str(artifacts_dir),
        _DATA_DIR: str(data_folder()),
        **({_CLIENT_AUTH: settings[_AUTH]} if _AUTH in settings else {}),
    }


def _environment(paths: ServicePaths, url: str) -> dict[str, str]:
    """Return the environment of every service, without the server's secrets."""
    marker = str(paths.folder.resolve())
    variables = environment(**{_MARKER: marker, "PREFECT_HOME": str(paths.home), "PREFECT_API_URL": url})
    return {name: value for name, value in variables.items() if name not in SERVER_SECRETS}


def _ensure_server(paths: ServicePaths, state: State, settings: Mapping[str, str]) -> str:
    """Return the URL of the API of the running server, or of a new one."""
    listen = settings[_LISTEN]
    if (process := state.alive(SERVER)) is not None:
        current = {_LISTEN: HOST, **process.environ()}
        if differing := [name for name in (_AUTH, _DATABASE, _LISTEN) if current.get(name) != settings.get(name)]:
            raise ServiceFailed(
                f"The running server (process {process.pid}) was started with a different {' and '.join(differing)}, "
                "or without. Restore the earlier value, or stop the server first with `fashion-ann down`."
            )
        url = state.processes[SERVER].url
        problem = wait_until_healthy(url, _SECONDS_TO_START, lambda: None if process.is_running() else -1, process)
        if problem is not None:
            raise ServiceFailed(
                f"The running server (process {process.pid}) {problem}. Its log is {paths.log(SERVER)}. "
                "Run `fashion-ann down`, then `fashion-ann up` to restart it."
            )
        return url
    ports = 0
    while True:
        ports += 1
        state.port = free_port([state.port or PREFECT_DEFAULT_PORT, PREFECT_DEFAULT_PORT], listen)
        url = f"http://{HOST if listen == _ALL_ADDRESSES else listen}:{state.port}/api"
        command = ["server", "start", "--host", listen, "--port", str(state.port)]
        with _server_lock(paths) as lock_file:
            if _DATABASE not in settings:
                _require_unused_database(paths.home / "prefect.db")
            variables = {**_environment(paths, url), _ORIGINS: ",".join(ui_origins(url)), **settings}
            child = _start(paths, state, SERVER, command, variables, url, pass_fds=(lock_file.fileno(),))
        server = psutil.Process(child.pid)
        problem = wait_until_healthy(url, _SECONDS_TO_START, child.poll, server)
        if problem is None:
            return url
        with contextlib.suppress(psutil.NoSuchProcess):
            _stop(server)
        known = state.processes.pop(SERVER)
        state.write(paths.state)
        if b"in use" not in _output(paths, SERVER, known.logged) or ports == _PORTS_TRIED:
            where = f"of {_DATABASE}" if _DATABASE in settings else f"in {paths.home}"
            raise ServiceFailed(_failure(paths, SERVER, problem, known.logged, where))


def _server_lock(paths: ServicePaths) -> IO[bytes]:
    """Return the lock file that a server holds as long as it runs: the kernel releases it.

    Raises `ServiceFailed` if another process holds it. ``state.json`` may be lost, and its pids mean nothing in another
    container. A second server on the same database would start every scheduled run twice.
    """
    file = (paths.folder / "server.lock").open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        where = "of it on this machine or in this container. Run the command where it was started, or stop it by hand."
        if pids := ", ".join(str(process.pid) for process in _marked(paths.folder)):
            where = f"of it. Run `fashion-ann down` to end the processes of its services: {pids}."
        raise ServiceFailed(
            f"The server of {paths.folder} is running, because {file.name} is locked. {paths.state.name} lists no "
            f"process {where}"
        ) from error
    return file


def _require_unused_database(database: Path) -> None:
    """Raise `ServiceFailed` if a process uses the sqlite database, for example a server that was started by hand.

    Each connection of sqlite in WAL mode holds a shared lock on byte 128 of this file, as long as it is open.
    """
    try:
        with database.with_name(f"{database.name}-shm").open("r+b") as file:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 128)
    except BlockingIOError as error:
        raise ServiceFailed(
            f"A process that `fashion-ann up` did not start uses {database}, as a Prefect server with PREFECT_HOME "
            f"{database.parent} does. Stop it, then run `fashion-ann up`: two servers would start every scheduled run "
            "twice."
        ) from error
    except OSError:  # no such file, or a file system without locks
        pass


def _start(
    paths: ServicePaths,
    state: State,
    name: str,
    command: list[str],
    variables: Mapping[str, str],
    url: str,
    pass_fds: tuple[int, ...] = (),
) -> subprocess.Popen[bytes]:
    """Start `prefect COMMAND` and record it in ``state.json`` before any later step can fail."""
    with _append(paths.log(name)) as log:
        logged = log.tell()
        child = subprocess.Popen(  # noqa: S603  # our own interpreter
            python_command("prefect", *command),
            env={**variables, "PYTHONUNBUFFERED": "1"},
            cwd=PROJECT_ROOT,  # contains the entrypoints of the deployments and Prefect's settings
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            # Ctrl-C and the end of the terminal do not reach it.
            start_new_session=True,
            preexec_fn=restore_sigint,
            pass_fds=pass_fds,
        )
    started = start_mark(psutil.Process(child.pid))
    state.processes[name] = Process(pid=child.pid, started=started, url=url, logged=logged)
    state.write(paths.state)
    return child


def _append(log: Path) -> IO[bytes]:
    log.touch(PRIVATE_FILE)
    return log.open("ab")


def _output(paths: ServicePaths, name: str, logged: int) -> bytes:
    """Return what a service logged since its log had the size ``logged``."""
    with contextlib.suppress(FileNotFoundError), paths.log(name).open("rb") as log:
        # A rotated log is smaller.
        log.seek(logged if logged <= log.seek(0, os.SEEK_END) else 0)
        return log.read()
    return b""


def _failure(paths: ServicePaths, name: str, problem: str, logged: int, database: str = "") -> str:
    """Return the error message for a service, with the cause or the end of its output since ``logged``."""
    cause = reported_cause(_output(paths, name, logged), database)
    return (
        f"{name} {problem}. {cause}Its log is {paths.log(name)}. Started services keep running. Fix the cause and "
        "repeat `fashion-ann up`, or stop everything with `fashion-ann down`."
    )


def _deploy(paths: ServicePaths, variables: Mapping[str, str]) -> None:
    """Deploy pools, deployments and automations in a subprocess, where Prefect's settings name this server."""
    with _append(paths.log("deploy")) as log:
        logged = log.tell()
        try:
            done = subprocess.run(  # noqa: S603  # our own interpreter and program
                python_command("cli.main", "deploy"),
                env=dict(variables),
                cwd=PROJECT_ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                timeout=_SECONDS_TO_DEPLOY,
            )
        except subprocess.TimeoutExpired as error:
            raise ServiceFailed(_failure(paths, "deploy", f"did not end in {_SECONDS_TO_DEPLOY} s", logged)) from error
    if done.returncode:
        raise ServiceFailed(_failure(paths, "deploy", f"ended with status {done.returncode}", logged))


def _ensure_worker(
    paths: ServicePaths,
    state: State,
    role: str,
    client: "SyncPrefectClient",
    url: str,
    variables: Mapping[str, str],
) -> datetime | None:
    """Start the worker for ``role`` unless it runs. Return the heartbeat that the server had of an earlier one."""
    name, pool = service_of(role), pool_names()[role]
    if (process := state.alive(name)) is not None:
        # A `down` that was killed may have left it suspended.
        process.resume()
        password = variables.get(_CLIENT_AUTH) or ""
        same_server = state.processes[name].url == url and process.environ().get(_CLIENT_AUTH, "") == password
        if same_server and pool in process.cmdline():
            return None
        # The server has another port or password now, or the pool another name: this worker would get no runs.
        _stop(process)
    earlier = _last_heartbeat(client, role, state)
    command = ["worker", "start", "--pool", pool, "--type", "process", "--name", worker_name(role, state)]
    _start(paths, state, name, [*command, "--install-policy", "never"], variables, url)
    return earlier


def _await_workers(
    paths: ServicePaths, state: State, client: "SyncPrefectClient", earlier: Mapping[str, datetime | None]
) -> None:
    """Wait until each worker has polled the server since its start. From then on it picks up runs."""
    deadline = time.monotonic() + _SECONDS_TO_START
    for role, heartbeat in earlier.items():
        name = service_of(role)
        # Compared for equality: the clock may have been set since the earlier one.
        while _last_heartbeat(client, role, state) in (None, heartbeat):
            problem = f"did not report to the server in {_SECONDS_TO_START} s"
            if (dead := state.alive(name) is None) or time.monotonic() > deadline:
                raise ServiceFailed(_failure(paths, name, "ended" if dead else problem, state.processes[name].logged))
            time.sleep(0.2)


def _last_heartbeat(client: "SyncPrefectClient", role: str, state: State) -> datetime | None:
    """Return the time of the last heartbeat of our worker for ``role``, None if the server has none."""
    with contextlib.suppress(httpx.HTTPError):
        for worker in client.read_workers_for_work_pool(pool_names()[role]):
            if worker.name == worker_name(role, state):
                return worker.last_heartbeat_time
    return None


# --- down ---


def down(artifacts_dir: Path) -> list[str]:
    """Stop everything that ``up`` started, flow runs too, and return what was stopped. Their files stay."""
    paths = ServicePaths(artifacts_dir)
    if not paths.folder.exists():
        return []
    with _exclusive(paths):
        state = State.read(paths.state)
        running = {name: process for name in state.processes if (process := state.alive(name)) is not None}
        services = {process.pid for process in running.values()}
        kind = "processes of flow runs"
        if (server := running.pop(SERVER, None)) is None:
            try:
                _server_lock(paths).close()
            except ServiceFailed:
                if not _marked(paths.folder):
                    raise
                kind = "processes"  # the services are among them: state.json was lost
        # A suspended worker cannot pick up a queued run when one ends and frees its place.
        for worker in running.values():
            worker.suspend()
        runs = [process for process in _marked(paths.folder) if process.pid not in services]
        _stop(*runs)
        for worker in running.values():
            worker.terminate()
            worker.resume()
        wait_or_kill([*running.values()], _SECONDS_TO_STOP)
        if server is not None:
            _stop(server)
        # Processes that were started in the meantime.
        _stop(*_marked(paths.folder))
        state.model_copy(update={"processes": {}}).write(paths.state)
    remove_prefect_toml(PROJECT_ROOT / "prefect.toml", {known.url for known in state.processes.values()})
    stopped = [f"{len(runs)} {kind}"] if runs else []
    return [*stopped, *running, *([] if server is None else [SERVER])]


def _stop(*processes: psutil.Process) -> None:
    """Terminate processes and kill those that remain. A flow run reports to the server that it crashed."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    wait_or_kill(processes, _SECONDS_TO_STOP)


def _marked(folder: Path) -> list[psutil.Process]:
    """Return all processes that descend from our services. They inherit a variable, even if their parent is gone."""
    marked, marker = [], str(folder.resolve())  # resolved, because a link may lead to the folder
    for process in psutil.process_iter():
        # The environment of another user's process is not readable, and a process may just have ended.
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid != os.getpid() and process.environ().get(_MARKER) == marker:
                marked.append(process)
    return marked


# --- status ---


def status(artifacts_dir: Path) -> Status:
    """Return what runs. Changes nothing."""
    paths = ServicePaths(artifacts_dir)
    state = State.read(paths.state)
    url = state.processes[SERVER].url if SERVER in state.processes else None
    services = []
    for name in (SERVER, *map(service_of, pool_names())):
        process = state.alive(name)
        text = "running" if process else "died" if name in state.processes else "not started"
        if process and url and name == SERVER and (problem := wait_until_healthy(url, 5, lambda: None, process)):
            text = f"runs, but {problem}"
        pid = process.pid if process else None
        services.append(Service(name=name, running=text == "running", says=text, pid=pid, log=paths.log(name)))
    ui = url and url.removesuffix("/api")
    server = state.alive(SERVER)
    variables = _environment_of(server) if server else {}
    return Status(
        url=url,
        ui=ui,
        logs=paths.logs,
        services=services,
        access=access_of(url, variables.get(_ORIGINS, "").split(",")) if url and server else None,
        password_file=paths.password if _AUTH in variables and variables[_AUTH] == _read(paths.password) else None,
        note=_note(paths, url),
    )


def _environment_of(process: psutil.Process) -> dict[str, str]:
    """Return the variables of a process, none if this user may not read them."""
    with contextlib.suppress(psutil.Error, OSError):
        return process.environ()
    return {}


def _read(password_file: Path) -> str | None:
    with contextlib.suppress(OSError):
        return password_file.read_text(encoding="utf-8").strip()
    return None


def _note(paths: ServicePaths, url: str | None) -> str:
    if url is None and (pids := ", ".join(str(process.pid) for process in _marked(paths.folder))):
        return f"{paths.state.name} lists none of the services' processes {pids}. Run `fashion-ann down` to end them."
    if url is None:
        return "Run `fashion-ann up` to start everything."
    export = f"export PREFECT_API_URL={url}"
    if paths.password.exists():
        export += f' {_CLIENT_AUTH}="$(cat {shlex.quote(str(paths.password))})"'
    if (current := os.environ.get("PREFECT_API_URL")) not in (None, url):
        return f"PREFECT_API_URL is {current} in this shell and takes precedence. To use this server: {export}"
    path = PROJECT_ROOT / "prefect.toml"
    if settings_of_up(path).get("url") == url:
        return f"`prefect` finds this server in {PROJECT_ROOT}. In other folders: {export}"
    return f"{path} does not name this server, so `prefect` does not find it. To use it: {export}"


@contextlib.contextmanager
def _exclusive(paths: ServicePaths) -> Iterator[None]:
    """Run one ``up`` or ``down`` at a time. A second one waits."""
    with lock(paths.lock) as held:
        if held:
            yield
            return
    waiting = f"waiting for another `fashion-ann up` or `down`, which holds {paths.lock}"
    print(runnable(waiting), file=sys.stderr)
    with lock(paths.lock, waiting=waiting, seconds=_LOCK_SECONDS):
        yield
