"""Ports, health, problems of an API, and the end of server processes."""

import base64
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import psutil
import pytest
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

from cli.server_process import (
    api_problem,
    authorization,
    environment,
    free_port,
    has_ended,
    last_words,
    project_settings,
    stop_tree,
    wait_for_end,
    wait_or_kill,
    wait_until_healthy,
)

PASSWORD = "user:secret"  # noqa: S105  # of the server below


class ProtectedApi(BaseHTTPRequestHandler):
    """Answers like Prefect's server behind basic auth: /api/health needs no password."""

    def do_GET(self) -> None:
        expected = "Basic " + base64.b64encode(PASSWORD.encode()).decode()
        authorized = self.path == "/api/health" or self.headers["Authorization"] == expected
        self.send_response((200 if self.path.startswith("/api/") else 404) if authorized else 401)
        self.end_headers()

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture
def protected() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), ProtectedApi) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_takes_the_preferred_port_if_it_is_free() -> None:
    preferred = free_port()
    assert free_port([preferred]) == preferred
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", preferred))
        listener.listen()
        assert free_port([preferred]) not in (0, preferred)


def test_waits_for_health_until_the_process_ends_or_time_is_up(protected: str) -> None:
    assert wait_until_healthy(f"{protected}/api", 60, lambda: None) is None
    dead = f"http://127.0.0.1:{free_port()}/api"
    assert wait_until_healthy(dead, 600, lambda: 3) == "ended with status 3"
    assert wait_until_healthy(dead, 0.1, lambda: None) == "did not answer in 0.1 s"


@pytest.mark.parametrize(
    ("path", "auth_string", "parts"),
    [
        ("/api", None, ["PREFECT_API_AUTH_STRING=user:password", "401", "none was received"]),
        ("/api", "someone:else", ["a different one was received"]),
        ("", PASSWORD, ["404", "end in /api"]),
        ("/api", PASSWORD, None),
    ],
    ids=["no password", "wrong password", "address without /api", "right"],
)
def test_names_the_problem_of_an_api(
    protected: str, path: str, auth_string: str | None, parts: list[str] | None
) -> None:
    with temporary_settings({PREFECT_API_URL: protected + path, PREFECT_API_AUTH_STRING: auth_string}):
        problem = api_problem()
    if parts is None:
        assert problem is None
        return
    for part in parts:
        assert part in str(problem)
    assert "someone" not in str(problem)


def test_no_password_gives_no_header() -> None:
    assert authorization(None) == {}


def test_last_words_are_one_short_line() -> None:
    assert last_words(b"x" * 700 + b"\n  failed\xff\n").endswith("x failed\N{REPLACEMENT CHARACTER}")
    assert len(last_words(b"x" * 700)) == 600
    assert last_words(b"\n") == "none"


def test_kills_a_process_tree_that_ignores_sigterm() -> None:
    stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(600)"
    parent = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {stubborn!r}]).wait()"
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "\n"
        (child,) = psutil.Process(process.pid).children()
        stop_tree(process.pid, 0.2)
        assert process.wait(timeout=10) < 0
    wait_or_kill([child], 10)  # until its new parent has removed it
    assert has_ended(child)


def test_zombie_counts_as_ended() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        child = psutil.Process(process.pid)
        while child.status() != psutil.STATUS_ZOMBIE:
            os.sched_yield()
        assert wait_for_end([child], 0) == []


def test_user_variables_override_project_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    name, value = next(iter(project_settings().items()))
    monkeypatch.delenv(name, raising=False)
    assert environment()[name] == value
    monkeypatch.setenv(name, "the user's")
    assert environment()[name] == "the user's"
    assert environment(**{name: "ours"})[name] == "ours"
