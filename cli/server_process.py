"""A Prefect server as a process: a free port for it, waiting until it answers, why it does not, and its end."""

import base64
import os
import signal
import socket
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import psutil

from schemas.config import PROJECT_ROOT
from schemas.errors import FashionAnnError

HOST = "127.0.0.1"
_SECONDS_BETWEEN_QUESTIONS = 0.05
_SECONDS_FOR_AN_ANSWER = 10


class ServerUnavailable(FashionAnnError):
    """A Prefect server did not start, does not answer, or refuses us."""


def project_settings() -> dict[str, str]:
    """[tool.prefect] of pyproject.toml as environment variables.

    Prefect reads that table from the working directory alone; these make it hold wherever a command is called from.
    """
    table = tomllib.loads((PROJECT_ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["prefect"]
    return dict(_variables(table, "PREFECT"))


def _variables(table: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    for key, value in table.items():
        name = f"{prefix}_{key.upper()}"
        if isinstance(value, dict):
            yield from _variables(value, name)
        else:
            yield name, str(value)


def free_port(preferred: Sequence[int] = ()) -> int:
    """The first of the preferred ports of 127.0.0.1 that nobody listens on, else any free one."""
    for port in (*preferred, 0):
        with socket.socket() as candidate:
            # What is left of a server that was just stopped is no listener.
            candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with suppress(OSError):
                candidate.bind((HOST, port))
                return int(candidate.getsockname()[1])
    raise ServerUnavailable(f"{HOST} has no free port: expected one to start a Prefect server on. Stop what listens.")


def wait_until_healthy(url: str, patience: float, status: Callable[[], int | None]) -> str | None:
    """None as soon as the API answers; else what its process did: ended by itself, or did not answer in time.

    ``status`` is the process's exit status, None as long as it runs.
    """
    import httpx

    deadline = time.monotonic() + patience
    with httpx.Client() as client:
        while (ended := status()) is None and time.monotonic() < deadline:
            with suppress(httpx.TransportError):
                if client.get(f"{url}/health", timeout=5).status_code == httpx.codes.OK:
                    return None
            time.sleep(_SECONDS_BETWEEN_QUESTIONS)
    return f"did not answer in {patience:g} s" if ended is None else f"ended with status {ended}"


def authorization(auth_string: str | None) -> dict[str, str]:
    """The HTTP header of basic auth for "user:password", none for None."""
    if auth_string is None:
        return {}
    return {"Authorization": f"Basic {base64.b64encode(auth_string.encode()).decode()}"}


@dataclass(frozen=True)
class Refusal:
    """Why an API cannot be used: a phrase with its address, and sentences of what to do."""

    says: str
    cure: str

    def __str__(self) -> str:
        return f"{self.says[0].upper()}{self.says[1:]}. {self.cure}"


def refusal() -> Refusal | None:
    """Why the configured API cannot be used, or None. Prefect's own client would try for a minute, and name no cure."""
    import httpx
    from prefect.settings import get_current_settings

    settings = get_current_settings()
    url, given = settings.api.url, settings.api.auth_string
    # /health answers to anyone. Cloud has no other page for this, and keys instead of passwords.
    page = "health" if settings.connected_to_cloud else "admin/version"
    expected = f"the API at {url} was expected to answer"
    try:
        answer = httpx.get(
            f"{url}/{page}",
            headers=authorization(None if given is None else given.get_secret_value()),
            timeout=_SECONDS_FOR_AN_ANSWER,
        )
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return Refusal(
            f"{expected}: {str(error).rstrip('.') or type(error).__name__}",
            "Start that server (`fashion-ann up` starts that of this checkout), or unset PREFECT_API_URL (and what the "
            "profile or prefect.toml says) to run on an embedded one.",
        )
    if answer.status_code == httpx.codes.UNAUTHORIZED:
        return Refusal(
            f"the API at {url} expects a user and password (status 401), {'none' if given is None else 'another'} was "
            "received",
            "Set PREFECT_API_AUTH_STRING=user:password, as the server has it in PREFECT_SERVER_API_AUTH_STRING.",
        )
    if answer.status_code != httpx.codes.OK:
        return Refusal(
            f"{expected}: /{page} has status {answer.status_code}",
            "PREFECT_API_URL has to name a Prefect server, and to end in /api.",
        )
    return None


def hear_interrupts() -> None:
    """For ``preexec_fn``: a shell's background job ignores SIGINT, and so would all that it starts.

    A worker of Prefect's ends by it, also when it is told to with SIGTERM; else it goes on until it is killed.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def stop_tree(pid: int, patience: float) -> None:
    """Ask a process to end; what is left of it and of all below it after ``patience`` seconds is killed."""
    with suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid)
        tree = [root, *root.children(recursive=True)]
        root.terminate()
        end(tree, patience)


def end(processes: Sequence[psutil.Process], patience: float) -> None:
    """Wait for processes that were asked to end, then kill the rest."""
    left = _left_of(processes, patience)
    for process in left:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    _left_of(left, patience)


def _left_of(processes: Sequence[psutil.Process], patience: float) -> list[psutil.Process]:
    deadline = time.monotonic() + patience
    left = [process for process in processes if not has_ended(process)]
    while left and time.monotonic() < deadline:
        time.sleep(_SECONDS_BETWEEN_QUESTIONS)
        left = [process for process in left if not has_ended(process)]
    return left


def has_ended(process: psutil.Process) -> bool:
    """A zombie has: nobody but its parent can do more about it."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def environment(**variables: str) -> dict[str, str]:
    """Of a Prefect process of ours: ``variables``, what the user set, the project's settings, in this order."""
    return {**project_settings(), **os.environ, **variables}
