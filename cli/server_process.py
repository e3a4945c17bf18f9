"""Start, check and stop a Prefect server process."""

import base64
import ipaddress
import logging
import os
import re
import signal
import socket
import tempfile
import time
import tomllib
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import psutil
from pydantic import BaseModel, ValidationError

from cli.prefect_toml import settings_of_up
from schemas.config import PROJECT_ROOT
from schemas.errors import ServerUnavailable

if TYPE_CHECKING:
    from prefect.settings import Settings

HOST = "127.0.0.1"
_FOREIGN_ORIGIN, _ALLOW_ORIGIN = "http://origin.invalid", "Access-Control-Allow-Origin"
_POLL_SECONDS = 0.02
_QUOTED_LINES, _QUOTED_CHARACTERS = 20, 2_000  # long enough for an exception and its causes
_TRACEBACK = re.compile(r"^Traceback \(most recent call last\):\n|^  File \".*\n(?:    .*\n)*", re.MULTILINE)
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def project_settings() -> dict[str, str]:
    """Return [tool.prefect] of pyproject.toml as environment variables.

    Prefect reads that table only from the working directory. The variables apply wherever a command is called from.
    """
    table = tomllib.loads((PROJECT_ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["prefect"]

    def variables(table: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
        for key, value in table.items():
            name = f"{prefix}_{key.upper()}"
            yield from variables(value, name) if isinstance(value, dict) else [(name, str(value))]

    return dict(variables(table, "PREFECT"))


def prefect_settings() -> "Settings":
    """Return Prefect's settings, which it reads when it is first imported. Raises `ServerUnavailable`."""
    try:
        with warnings.catch_warnings():
            # Both repeat the error that is raised below.
            warnings.filterwarnings("ignore", "Failed to load profiles")
            logging.disable(logging.ERROR)
            from prefect.settings import get_current_settings

            settings = get_current_settings()
    except (OSError, ValueError) as error:  # ValueError: of pydantic, pydantic-settings or tomllib
        problem = str(error)
        if isinstance(error, ValidationError):  # without its input, which may be a password
            faults = (f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
            problem = f"{error.title}: {'; '.join(faults)}"
        raise ServerUnavailable(
            f"Prefect's settings cannot be read: {problem}. They are in variables PREFECT_.., in .env and prefect.toml "
            "of the checkout, and in the file of the profiles (PREFECT_PROFILES_PATH)."
        ) from error
    finally:
        logging.disable(logging.NOTSET)
    secret, of_up = settings.api.auth_string, {"url": "", **settings_of_up(PROJECT_ROOT / "prefect.toml")}
    password = secret and secret.get_secret_value()
    # The password is for the server of `up` only. Prefect would also send it to the server of PREFECT_API_URL.
    if password and password == of_up.get("auth_string") and not _is_same_server(settings.api.url, of_up["url"]):
        settings.api.auth_string = None
        os.environ["PREFECT_API_AUTH_STRING"] = ""
    return settings


def _is_same_server(url: str | None, other: str) -> bool:
    """Return whether two URLs lead to the same server, also under different names of this machine."""
    with suppress(httpx.InvalidURL):
        one, two = httpx.URL(url or ""), httpx.URL(other)
        return one.port == two.port and (one.host == two.host or (is_loopback(one.host) and is_loopback(two.host)))
    return False


def require_home(home: Path) -> None:
    """Create Prefect's home if it is missing. Raises `ServerUnavailable` if no file can be created there."""
    try:
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=home):
            pass
    except OSError as error:
        raise ServerUnavailable(
            f"PREFECT_HOME {home} cannot be written to ({error.strerror}), and the embedded Prefect server stores its "
            "database there. Set PREFECT_HOME to a folder that you may write to, or PREFECT_API_URL to use your own "
            "server."
        ) from error


def environment(**variables: str) -> dict[str, str]:
    """Return the environment of a Prefect process: ``variables`` override the user's, which override the project's."""
    return {**project_settings(), **os.environ, **variables}


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches the address."""
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def free_port(preferred: Sequence[int] = (), host: str = HOST) -> int:
    """Return the first preferred port of ``host`` without a listener, else any free port."""
    for port in (*preferred, 0):
        with socket.socket() as candidate:
            # Connections that a stopped server left in TIME_WAIT do not occupy its port.
            candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with suppress(OSError):
                candidate.bind((host, port))
                return int(candidate.getsockname()[1])
    raise ServerUnavailable(
        f"{host} has no free port: expected one to start a Prefect server on, at an IPv4 address of this machine. Stop "
        "another server first."
    )


def wait_until_healthy(
    url: str, seconds: float, status: Callable[[], int | None], server: psutil.Process | None = None
) -> str | None:
    """Return None as soon as the API answers, else a phrase for why it did not: the process ended, or too slow.

    ``status`` returns the exit status of the server's process, None while it runs. With ``server`` only an answer of
    that process counts: another server may have taken the port first.
    """
    deadline = time.monotonic() + seconds
    with httpx.Client() as client:
        while (ended := status()) is None and time.monotonic() < deadline:
            with suppress(httpx.TransportError):
                healthy = client.get(f"{url}/health", timeout=5).status_code == httpx.codes.OK
                if healthy and (server is None or _listens(server, httpx.URL(url).port)):
                    return None
            time.sleep(_POLL_SECONDS)
    return f"did not answer in {seconds:g} s" if ended is None else f"ended with status {ended}"


def _listens(process: psutil.Process, port: int | None) -> bool:
    """Return whether a process listens on ``port``, True if this user may not see its sockets."""
    try:
        sockets = process.net_connections("tcp4")
    except psutil.AccessDenied:
        return True
    except psutil.NoSuchProcess:
        return False
    return any(socket.laddr.port == port for socket in sockets if socket.status == psutil.CONN_LISTEN)


def start_mark(process: psutil.Process) -> str:
    """Return a mark that distinguishes a process from all others with its pid, also after the clock is set.

    On Linux psutil adds the start time to the boot time, which moves with the clock. Other kernels record the time of
    the start.
    """
    if not psutil.LINUX:
        return repr(process.create_time())
    try:
        fields = Path(f"/proc/{process.pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2]
    except (FileNotFoundError, ProcessLookupError) as error:
        raise psutil.NoSuchProcess(process.pid) from error
    return f"{fields.split()[19]} ticks after boot {_BOOT_ID.read_text(encoding='utf-8').strip()}"


def reported_cause(output: bytes, database: str) -> str:
    """Return sentences on why a Prefect process failed: a cause that ``output`` names, else its last lines."""
    if revision := re.search(rb"Can't locate revision identified by '(\w+)'", output):
        return (
            f"The database {database} was written by another version of Prefect: Prefect {metadata.version('prefect')} "
            f"does not contain its revision {revision[1].decode()}. Use that version, or move the database away to "
            "start with an empty one. "
        )
    if damage := re.search(rb"file is not a database|database disk image is malformed", output):
        return (
            f"The database {database} is damaged ({damage[0].decode()}). Move it away: the server then starts with an "
            "empty one. It has the history of runs, and no version or other artifact. "
        )
    return last_words(output)


def last_words(output: bytes) -> str:
    """Return a sentence with the last lines of a process's output. Of tracebacks it has the exceptions only."""
    text = _TRACEBACK.sub("", "\n".join(output.decode(errors="replace").splitlines()))
    lines = [f"  {line.rstrip()}" for line in text.split("\n") if line.strip()]
    text = "\n".join(lines[-_QUOTED_LINES:])[-_QUOTED_CHARACTERS:]
    return f"Its last output:\n{text}\n" if text else "It printed nothing. "


def authorization(auth_string: str | None) -> dict[str, str]:
    """Return the HTTP header of basic auth for "user:password", no header for None."""
    return {} if auth_string is None else {"Authorization": f"Basic {base64.b64encode(auth_string.encode()).decode()}"}


@dataclass(frozen=True)
class ApiProblem:
    """Why an API cannot be used, as a phrase with its address, and sentences with the fix."""

    description: str
    fix: str

    def __str__(self) -> str:
        return f"{self.description[0].upper()}{self.description[1:]}. {self.fix}"


def api_problem() -> ApiProblem | None:
    """Return why the configured API cannot be used, or None. Prefect's client would retry for a minute instead."""
    settings = prefect_settings()
    url = settings.api.url
    auth_string = settings.api.auth_string or None  # Compose passes an unset variable as an empty one
    # /health needs no password, so it cannot check one. Cloud has no other page for this, and keys, not passwords.
    page = "health" if settings.connected_to_cloud else "admin/version"
    expected = f"the API at {url} was expected to answer"
    try:
        response = httpx.get(
            f"{url}/{page}",
            headers=authorization(None if auth_string is None else auth_string.get_secret_value()),
            timeout=httpx.Timeout(60, connect=10),  # a server on a busy machine needed 10 s
        )
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return ApiProblem(
            f"{expected}: {str(error).rstrip('.') or type(error).__name__}",
            "Start that server (`fashion-ann up` starts the one of this checkout). Or remove PREFECT_API_URL from the "
            "environment, the profile and prefect.toml to run on an embedded server.",
        )
    if response.status_code == httpx.codes.UNAUTHORIZED:
        received = "none was" if auth_string is None else "a different one was"
        return ApiProblem(
            f"the API at {url} expects a user and password (status 401), {received} received",
            "Set PREFECT_API_AUTH_STRING=user:password, as in the server's PREFECT_SERVER_API_AUTH_STRING. "
            "For a server of `fashion-ann up`, `fashion-ann status` prints the command.",
        )
    if response.status_code != httpx.codes.OK:
        return ApiProblem(
            f"{expected}: /{page} has status {response.status_code}",
            "PREFECT_API_URL must be the address of a Prefect server and end in /api.",
        )
    return None


class Access(BaseModel):
    """Access to a server, as its answers show it.

    Pages of ``origins`` can read its answers; "*" stands for any page. ``addresses`` are those of this machine at which
    it listens.
    """

    password: bool
    csrf: bool
    origins: list[str]
    addresses: list[str]

    def __str__(self) -> str:
        return (
            f"{'password required' if self.password else 'NO PASSWORD'}, "
            f"CSRF protection {'on' if self.csrf else 'OFF'}, origins: {', '.join(self.origins) or 'none'}, "
            f"listens on: {', '.join(self.addresses) or 'no port of this machine'}"
        )


def ui_origins(url: str) -> list[str]:
    """Return the origins of the UI of the server with the API ``url``: under its address, and of this machine."""
    address = httpx.URL(url)
    hosts = ("127.0.0.1", "localhost", address.host) if is_loopback(address.host) else (address.host,)
    port = f":{address.port}" if address.port else ""
    return [f"{address.scheme}://{host}{port}" for host in dict.fromkeys(hosts)]


def access_of(url: str, origins: Iterable[str] = ()) -> Access | None:
    """Return who can use the server with the API ``url``, None if it does not answer. Changes nothing on it.

    origins: further ones to try, beside those of the UI.
    """
    page, preflight = f"{url}/flows/filter", {"Access-Control-Request-Method": "POST"}
    with suppress(httpx.HTTPError), httpx.Client(timeout=10) as client:
        allowed = {
            origin: client.options(page, headers={**preflight, "Origin": origin}).headers.get(_ALLOW_ORIGIN)
            for origin in (_FOREIGN_ORIGIN, *ui_origins(url), *origins)
        }
        return Access(
            password=client.get(f"{url}/admin/version").status_code == httpx.codes.UNAUTHORIZED,
            csrf=client.post(page, json={}).status_code == httpx.codes.FORBIDDEN,
            origins=["*"] if allowed.pop(_FOREIGN_ORIGIN) else [origin for origin, answer in allowed.items() if answer],
            addresses=_listeners(httpx.URL(url)),
        )
    return None


def _listeners(url: httpx.URL) -> list[str]:
    """Return the addresses at which a process listens on the port of ``url``, none if ``url`` is another machine's."""
    ours = {address.address for interface in psutil.net_if_addrs().values() for address in interface}
    if not is_loopback(url.host) and url.host not in ours:
        return []
    with suppress(psutil.AccessDenied):
        found = (socket.laddr for socket in psutil.net_connections("tcp") if socket.status == psutil.CONN_LISTEN)
        return sorted({f"{address.ip}:{url.port}" for address in found if address and address.port == url.port})
    return []


def restore_sigint() -> None:
    """Handle SIGINT again, as a ``preexec_fn``: a shell's background job ignores it, and its children inherit that.

    A Prefect worker stops by SIGINT, which it sends itself on SIGTERM. If it ignores SIGINT it runs until it is killed.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def stop_tree(pid: int, seconds: float) -> None:
    """Terminate a process, and kill it and its descendants if any is alive after ``seconds``."""
    with suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid)
        tree = [root, *root.children(recursive=True)]
        root.terminate()
        wait_or_kill(tree, seconds)


def wait_or_kill(processes: Sequence[psutil.Process], seconds: float) -> None:
    """Wait ``seconds`` for terminated processes to end, then kill the rest."""
    alive = wait_for_end(processes, seconds)
    for process in alive:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    wait_for_end(alive, seconds)


def wait_for_end(processes: Sequence[psutil.Process], seconds: float) -> list[psutil.Process]:
    """Return the processes that are still alive after at most ``seconds``."""
    deadline = time.monotonic() + seconds
    while (alive := [process for process in processes if not has_ended(process)]) and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
    return alive


def has_ended(process: psutil.Process) -> bool:
    """Return whether a process has ended. A zombie has: only its parent can remove it."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
