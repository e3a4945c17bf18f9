"""The deployed project on this machine: a Prefect server, what is deployed to it, and a worker for each pool.

``up`` starts what is missing, ``down`` stops what ``up`` started, ``status`` says what runs. All three go by
``services/state.json`` of the artifacts folder: the processes by pid and time of start, so that a number that the
system has given to another process since is left alone.
"""

import contextlib
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import psutil

from cli.deploy import pool_names
from cli.server_process import (
    HOST,
    ServerUnavailable,
    authorization,
    end,
    environment,
    free_port,
    hear_interrupts,
    wait_until_healthy,
)
from schemas.config import PROJECT_ROOT, data_folder
from schemas.errors import FashionAnnError
from tasks.runtime.files import atomic_write

SERVER = "server"
# Where Prefect listens unless it is told otherwise: the address that its documentation shows.
USUAL_PORT = 4200

_MARK = "FASHION_ANN_SERVICES"
_AUTH, _CLIENT_AUTH = "PREFECT_SERVER_API_AUTH_STRING", "PREFECT_API_AUTH_STRING"
_DATABASE = "PREFECT_API_DATABASE_CONNECTION_URL"
_DATA_DIR = "FASHION_ANN_DATA_DIR"
# What the server holds and a flow run has no need to see.
_SECRETS_OF_THE_SERVER = (_AUTH, _DATABASE, "PREFECT_SERVER_DATABASE_CONNECTION_URL")
_SETTINGS_HEADER = (
    "# Written by `fashion-ann up`, removed by `fashion-ann down`: for Prefect's commands in this folder.\n"
)

# A first start makes the database, which took 13 s on an idle machine.
_SECONDS_TO_START = 180
_SECONDS_TO_DEPLOY = 300
_SECONDS_FOR_THE_OTHER = 600
# A flow run that is asked to end tells the server so before it does.
_SECONDS_TO_END = 20
# The clock may have been set since; a pid is not given away again as soon as this.
_SAME_START_SECONDS = 2


class ServiceFailed(FashionAnnError):
    """One of the services did not start, or cannot be used as it runs."""


class NotRunning(FashionAnnError):
    """``status`` found a service that does not run."""


@dataclass(frozen=True)
class Process:
    """A process that ``up`` started; ``url`` is the API that it is or works for."""

    pid: int
    started: float
    url: str


@dataclass(frozen=True)
class State:
    """What ``state.json`` says. The port is kept when the server ends, so that its addresses stay."""

    port: int | None = None
    processes: Mapping[str, Process] = field(default_factory=dict)


@dataclass(frozen=True)
class Service:
    """One line of ``status``. ``says`` is "running", or what is wrong."""

    name: str
    running: bool
    says: str
    pid: int | None
    log: Path


@dataclass(frozen=True)
class Status:
    """``url`` is None before the first ``up``; ``note`` says how a bare `prefect` command finds the server."""

    url: str | None
    logs: Path
    services: tuple[Service, ...]
    note: str

    @property
    def ui(self) -> str | None:
        return None if self.url is None else self.url.removesuffix("/api")


@dataclass(frozen=True)
class _Place:
    """Where the services of an artifacts folder keep what they write."""

    artifacts: Path

    @property
    def folder(self) -> Path:
        return self.artifacts / "services"

    @property
    def state(self) -> Path:
        return self.folder / "state.json"

    @property
    def logs(self) -> Path:
        return self.folder / "logs"

    @property
    def home(self) -> Path:
        """PREFECT_HOME of the services. One of their own: two servers on one sqlite database mix their deployments."""
        return self.folder / "prefect"

    def log(self, name: str) -> Path:
        return self.logs / f"{name}.log"


def worker_of(pool: str) -> str:
    """The service's name; that of the worker in Prefect is ``worker_name``."""
    return f"worker-{pool}"


def worker_name(pool: str) -> str:
    """What the server and the manifests call the worker: with its machine, since a pool may have several."""
    return f"{pool}-{platform.node()}"


# --- up ---


def up(artifacts_dir: Path) -> Status:
    """Start what does not run, deploy, and return when every worker has reported to the server."""
    place = _Place(artifacts_dir)
    secrets = _secrets()
    with _alone(place):
        state = read_state(place.state)
        url, state = _server(place, state, secrets)
        _demand_the_same_data(state)
        write_prefect_toml(PROJECT_ROOT / "prefect.toml", url)
        shared = _environment(place, url, secrets)
        _deploy(place, shared)
        for pool in pool_names():
            state = _worker(place, state, pool, url, shared)
        _await_workers(place, state, url, secrets.get(_AUTH))
    return status(artifacts_dir)


def _demand_the_same_data(state: State) -> None:
    """A worker hands its folders to the runs that it starts; one that runs would keep to its own without a word."""
    ours = data_folder()
    for pool in pool_names():
        known = state.processes.get(worker_of(pool))
        if known is None or (process := alive(known)) is None:
            continue
        theirs = process.environ().get(_DATA_DIR)
        if theirs is not None and Path(theirs).resolve() != ours.resolve():
            raise ServiceFailed(
                f"{worker_of(pool)} (process {known.pid}) was started for the data in {theirs}, and now it is to be "
                f"{ours}. `fashion-ann down`, then `fashion-ann up` starts all anew; or set {_DATA_DIR}={theirs}."
            )


def _secrets() -> dict[str, str]:
    """Password and database of the server, from wherever Prefect reads settings in the checkout (.env for one)."""
    # Prefect reads its files as it is imported, and the services are started there, too.
    with contextlib.chdir(PROJECT_ROOT):
        from prefect.settings import get_current_settings

        server = get_current_settings().server
    found = {}
    if server.api.auth_string is not None:
        found[_AUTH] = server.api.auth_string.get_secret_value()
    # Unset it holds Prefect's default, which would be a file of another home.
    if "connection_url" in server.database.model_fields_set and server.database.connection_url is not None:
        found[_DATABASE] = server.database.connection_url.get_secret_value()
    return found


def _environment(place: _Place, url: str, secrets: Mapping[str, str]) -> dict[str, str]:
    """What workers, and the flow runs that they start, are given."""
    given = environment(
        **{_MARK: str(place.folder), "PREFECT_HOME": str(place.home), "PREFECT_API_URL": url},
        # Where this command was called from, relative folders mean something else than where the workers run.
        FASHION_ANN_ARTIFACTS_DIR=str(place.artifacts),
        **{_DATA_DIR: str(data_folder())},
        **({_CLIENT_AUTH: secrets[_AUTH]} if _AUTH in secrets else {}),
    )
    return {"PREFECT_WORKER_QUERY_SECONDS": "2", **_without_secrets(given)}


def _without_secrets(variables: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in variables.items() if name not in _SECRETS_OF_THE_SERVER}


def _server(place: _Place, state: State, secrets: Mapping[str, str]) -> tuple[str, State]:
    known = state.processes.get(SERVER)
    if known is not None and (process := alive(known)) is not None:
        if differing := [name for name in (_AUTH, _DATABASE) if process.environ().get(name) != secrets.get(name)]:
            raise ServiceFailed(
                f"The server that runs (process {known.pid}) was started with another {' and '.join(differing)} than "
                "is set now, or with none. Set what it was started with, or stop it first: `fashion-ann down`."
            )
        fault = wait_until_healthy(known.url, _SECONDS_TO_START, lambda: None if process.is_running() else -1)
        if fault is not None:
            raise ServiceFailed(
                f"The server that runs (process {known.pid}) {fault}. Its log is {place.log(SERVER)}. "
                "`fashion-ann down`, then `fashion-ann up` starts it anew."
            )
        return known.url, state
    port = free_port([*([] if state.port is None else [state.port]), USUAL_PORT])
    url = f"http://{HOST}:{port}/api"
    own = environment(**{_MARK: str(place.folder), "PREFECT_HOME": str(place.home), "PREFECT_API_URL": url})
    state = State(port, state.processes)
    command = ["server", "start", "--host", HOST, "--port", str(port)]
    child, state = _start(place, state, SERVER, command, {**_without_secrets(own), **secrets}, url)
    fault = wait_until_healthy(url, _SECONDS_TO_START, child.poll)
    if fault is not None:
        _end_started(place, state, SERVER, child)
        raise ServiceFailed(_told(place, SERVER, fault))
    return url, state


def _start(
    place: _Place, state: State, name: str, command: list[str], variables: Mapping[str, str], url: str
) -> tuple["subprocess.Popen[bytes]", State]:
    """Start `prefect COMMAND`, recorded before anything else can fail."""
    place.logs.mkdir(parents=True, exist_ok=True)
    with place.log(name).open("ab") as log:
        child = subprocess.Popen(  # noqa: S603  # our own interpreter
            [sys.executable, "-m", "prefect", *command],
            env={**variables, "PYTHONUNBUFFERED": "1"},
            cwd=PROJECT_ROOT,  # where the deployments' entrypoints are, and Prefect's settings
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            # Neither the end of the terminal nor its Ctrl-C is for them.
            start_new_session=True,
            preexec_fn=hear_interrupts,
        )
    started = psutil.Process(child.pid).create_time()
    state = State(state.port, {**state.processes, name: Process(child.pid, started, url)})
    write_state(place.state, state)
    return child, state


def _end_started(place: _Place, state: State, name: str, child: "subprocess.Popen[bytes]") -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(child.pid)
        process.terminate()
        end([process], _SECONDS_TO_END)
    write_state(place.state, State(state.port, {key: kept for key, kept in state.processes.items() if key != name}))


def _told(place: _Place, name: str, fault: str) -> str:
    """What a service did, with the end of what it said."""
    log = place.log(name)
    said = " ".join(log.read_text(encoding="utf-8", errors="replace").split())[-600:] if log.exists() else ""
    return (
        f"{name} {fault}. It said: {said or 'nothing'} Its log is {log}. What runs is kept: mend this and repeat "
        "`fashion-ann up`, or stop all with `fashion-ann down`."
    )


def _deploy(place: _Place, variables: Mapping[str, str]) -> None:
    """Pools, deployments and automations. A process of its own, whose Prefect knows this server and no other."""
    with place.log("deploy").open("ab") as log:
        try:
            done = subprocess.run(  # our own interpreter and program
                [sys.executable, "-m", "cli.main", "deploy"],
                env=dict(variables),
                cwd=PROJECT_ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                timeout=_SECONDS_TO_DEPLOY,
            )
        except subprocess.TimeoutExpired as error:
            raise ServiceFailed(_told(place, "deploy", f"did not end in {_SECONDS_TO_DEPLOY} s")) from error
    if done.returncode:
        raise ServiceFailed(_told(place, "deploy", f"ended with status {done.returncode}"))


def _worker(place: _Place, state: State, pool: str, url: str, variables: Mapping[str, str]) -> State:
    name = worker_of(pool)
    known = state.processes.get(name)
    if known is not None and (process := alive(known)) is not None:
        # A `down` that was killed may have left it suspended.
        process.resume()
        if known.url == url:
            return state
        # The server had to move to another port; this one would ask the old one for ever.
        process.terminate()
        end([process], _SECONDS_TO_END)
    command = ["worker", "start", "--pool", pool, "--type", "process", "--name", worker_name(pool)]
    _, state = _start(place, state, name, [*command, "--install-policy", "never"], variables, url)
    return state


def _await_workers(place: _Place, state: State, url: str, auth_string: str | None) -> None:
    """Until each worker has polled the server since it was started: then it takes up runs."""
    deadline = time.monotonic() + _SECONDS_TO_START
    waiting = list(pool_names())
    with httpx.Client(headers=authorization(auth_string), timeout=30) as client:
        while waiting:
            pool = waiting[0]
            name = worker_of(pool)
            if alive(state.processes[name]) is None:
                raise ServiceFailed(_told(place, name, "ended"))
            if time.monotonic() > deadline:
                raise ServiceFailed(_told(place, name, f"did not report to the server in {_SECONDS_TO_START} s"))
            if _last_seen(client, url, pool) > state.processes[name].started:
                waiting.remove(pool)
            else:
                time.sleep(0.2)


def _last_seen(client: httpx.Client, url: str, pool: str) -> float:
    """When the pool's worker of this machine last reported, in seconds since 1970; 0 for never or nobody knows."""
    with contextlib.suppress(httpx.HTTPError):
        answer = client.post(f"{url}/work_pools/{pool}/workers/filter", json={})
        answer.raise_for_status()
        for worker in answer.json():
            if worker["name"] == worker_name(pool) and worker["last_heartbeat_time"] is not None:
                return datetime.fromisoformat(worker["last_heartbeat_time"]).timestamp()
    return 0


# --- down ---


def down(artifacts_dir: Path) -> list[str]:
    """Stop all that runs, flow runs too, and say what that was. What they wrote stays."""
    place = _Place(artifacts_dir)
    if not place.folder.exists():
        return []
    with _alone(place):
        state = read_state(place.state)
        running = {name: process for name, known in state.processes.items() if (process := alive(known)) is not None}
        server = running.pop(SERVER, None)
        # Suspended they take up no run that waits for the place of one that ends now.
        for worker in running.values():
            worker.suspend()
        spared = {process.pid for process in (server, *running.values()) if process is not None}
        runs = [process for process in _marked(place) if process.pid not in spared]
        _terminate(runs)
        for worker in running.values():
            worker.terminate()
            worker.resume()
        end([*running.values()], _SECONDS_TO_END)
        if server is not None:
            server.terminate()
            end([server], _SECONDS_TO_END)
        # What came into being in between.
        _terminate(_marked(place))
        stopped = [*([f"{len(runs)} processes of flow runs"] if runs else []), *running]
        write_state(place.state, State(state.port))
    remove_prefect_toml(PROJECT_ROOT / "prefect.toml", {known.url for known in state.processes.values()})
    return [*stopped, *([] if server is None else [SERVER])]


def _terminate(processes: list[psutil.Process]) -> None:
    """A flow run answers SIGTERM by telling the server that it crashed."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    end(processes, _SECONDS_TO_END)


def _marked(place: _Place) -> list[psutil.Process]:
    """Every process that a service of ours started, whoever is its parent by now: it inherited our variable."""
    found = []
    for process in psutil.process_iter():
        # Others' processes do not show theirs, and some have just ended.
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid != os.getpid() and process.environ().get(_MARK) == str(place.folder):
                found.append(process)
    return found


# --- status ---


def status(artifacts_dir: Path) -> Status:
    """What runs. Changes nothing, and does not wait."""
    place = _Place(artifacts_dir)
    state = read_state(place.state)
    services = []
    for name in (SERVER, *map(worker_of, pool_names())):
        known = state.processes.get(name)
        says = "not started" if known is None else "running" if alive(known) is not None else "died"
        if known is not None and says == "running" and name == SERVER:
            fault = wait_until_healthy(known.url, 5, lambda: None)
            says = "running" if fault is None else f"runs, but {fault}"
        pid = known.pid if known is not None and says != "died" else None
        services.append(Service(name, says == "running", says, pid, place.log(name)))
    server = state.processes.get(SERVER)
    url = None if server is None else server.url
    return Status(url, place.logs, tuple(services), _note(url))


def _note(url: str | None) -> str:
    if url is None:
        return "`fashion-ann up` starts all."
    told = f"export PREFECT_API_URL={url}"
    if (set_to := os.environ.get("PREFECT_API_URL")) not in (None, url):
        return f"Here PREFECT_API_URL is {set_to}, which wins: {told}"
    path = PROJECT_ROOT / "prefect.toml"
    if path.exists() and path.read_text(encoding="utf-8") == prefect_toml(url):
        return f"`prefect` finds this server in {PROJECT_ROOT}; elsewhere: {told}"
    return f"{path} is not ours, so `prefect` is told by: {told}"


def as_json(found: Status) -> dict[str, Any]:
    """The answer of ``status --json``."""
    services = [{**asdict(service), "log": str(service.log)} for service in found.services]
    return {"url": found.url, "ui": found.ui, "logs": str(found.logs), "services": services}


# --- what is kept ---


def alive(known: Process) -> psutil.Process | None:
    """The process, if it still is the one that was started."""
    try:
        process = psutil.Process(known.pid)
        same = abs(process.create_time() - known.started) < _SAME_START_SECONDS
        return process if same and process.status() != psutil.STATUS_ZOMBIE else None
    except psutil.NoSuchProcess:
        return None


def read_state(path: Path) -> State:
    """Of a file that is not there: nothing was started."""
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
        return State(read["port"], {name: Process(**known) for name, known in read["processes"].items()})
    except FileNotFoundError:
        return State()
    except (ValueError, KeyError, TypeError) as error:
        raise ServiceFailed(
            f"{path} was expected to name the processes of the services, it cannot be read: {error}. Stop them by "
            f"hand, if any runs, and remove the file."
        ) from error


def write_state(path: Path, state: State) -> None:
    """Whole or not at all."""
    _write(path, json.dumps(asdict(state), indent=2) + "\n")


def prefect_toml(url: str) -> str:
    """The settings file with which a `prefect` command in the checkout reaches the server. No password is in it."""
    return f'{_SETTINGS_HEADER}[api]\nurl = "{url}"\n'


def write_prefect_toml(path: Path, url: str) -> None:
    """Not over a file that the user wrote."""
    if not path.exists() or path.read_text(encoding="utf-8").startswith(_SETTINGS_HEADER):
        _write(path, prefect_toml(url))


def remove_prefect_toml(path: Path, urls: set[str]) -> None:
    """If it names one of the servers that were stopped."""
    if path.exists() and path.read_text(encoding="utf-8") in map(prefect_toml, urls):
        path.unlink()


def _write(path: Path, text: str) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def _alone(place: _Place) -> Iterator[None]:
    """One ``up`` or ``down`` at a time; the second waits, and then finds what the first has done."""
    from filelock import FileLock, Timeout

    place.folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(place.folder / "lock", timeout=_SECONDS_FOR_THE_OTHER):
            yield
    except Timeout as error:
        raise ServerUnavailable(
            f"Another `fashion-ann up` or `down` has held {place.folder / 'lock'} for {_SECONDS_FOR_THE_OTHER} s. Wait "
            "for it, or end it."
        ) from error
