"""A server's process from outside: ports, health, what a refused client is told, and its end."""

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
    _left_of,
    authorization,
    end,
    environment,
    free_port,
    project_settings,
    refusal,
    stop_tree,
    wait_until_healthy,
)

PASSWORD = "somebody:secret"  # noqa: S105  # of the server below


class _Guarded(BaseHTTPRequestHandler):
    """As Prefect's server behind basic auth: /api/health is for anyone."""

    def do_GET(self) -> None:
        expected = "Basic " + base64.b64encode(PASSWORD.encode()).decode()
        known = self.path == "/api/health" or self.headers["Authorization"] == expected
        self.send_response((200 if self.path.startswith("/api/") else 404) if known else 401)
        self.end_headers()

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture
def guarded() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), _Guarded) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_preferred_port_is_taken_unless_somebody_listens_on_it() -> None:
    preferred = free_port()
    assert free_port([preferred]) == preferred
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", preferred))
        listener.listen()
        other = free_port([preferred])
        assert other not in (0, preferred)


def test_the_wait_ends_with_the_server_and_not_with_the_patience(guarded: str) -> None:
    assert wait_until_healthy(f"{guarded}/api", 60, lambda: None) is None
    dead = f"http://127.0.0.1:{free_port()}/api"
    assert wait_until_healthy(dead, 600, lambda: 3) == "ended with status 3"
    assert wait_until_healthy(dead, 0.1, lambda: None) == "did not answer in 0.1 s"


def test_the_password_is_demanded_by_name_and_then_it_is_let_in(guarded: str) -> None:
    with temporary_settings({PREFECT_API_URL: f"{guarded}/api"}):
        told = str(refusal())
        assert "PREFECT_API_AUTH_STRING=user:password" in told
        assert "401" in told
        assert "none was received" in told
    with temporary_settings({PREFECT_API_URL: f"{guarded}/api", PREFECT_API_AUTH_STRING: "somebody:else"}):
        told = str(refusal())
        assert "another was received" in told
        assert "somebody" not in told
    with temporary_settings({PREFECT_API_URL: f"{guarded}/api", PREFECT_API_AUTH_STRING: PASSWORD}):
        assert refusal() is None


def test_an_address_without_api_is_told(guarded: str) -> None:
    with temporary_settings({PREFECT_API_URL: guarded, PREFECT_API_AUTH_STRING: PASSWORD}):
        told = str(refusal())
    assert "404" in told
    assert "end in /api" in told


def test_no_password_is_no_header() -> None:
    assert authorization(None) == {}


def test_a_process_that_will_not_end_is_killed_with_all_below_it() -> None:
    stubborn = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('on', flush=True); time.sleep(600)"
    )
    parent = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {stubborn!r}]).wait()"
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "on\n"
        (child,) = psutil.Process(process.pid).children()
        stop_tree(process.pid, 0.2)
        assert process.wait(timeout=10) < 0
    end([child], 10)  # reaped by whoever inherited it
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_a_zombie_counts_as_ended() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        child = psutil.Process(process.pid)
        while child.status() != psutil.STATUS_ZOMBIE:
            os.sched_yield()
        # Its parent has not asked yet: waiting until it is gone would take the whole patience.
        assert _left_of([child], 0) == []


def test_the_users_variables_win_over_the_projects_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    name, value = next(iter(project_settings().items()))
    monkeypatch.delenv(name, raising=False)
    assert environment()[name] == value
    monkeypatch.setenv(name, "the user's")
    assert environment()[name] == "the user's"
    assert environment(**{name: "ours"})[name] == "ours"
