"""Ports, health, problems of an API, and the end of server processes."""

import base64
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib import metadata
from pathlib import Path

import psutil
import pytest
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

from cli.server_process import (
    api_problem,
    authorization,
    environment,
    free_port,
    has_ended,
    is_loopback,
    last_words,
    project_settings,
    reported_cause,
    stop_tree,
    ui_origins,
    wait_for_end,
    wait_or_kill,
    wait_until_healthy,
)
from schemas.config import PROJECT_ROOT
from tests.field_faults import field_fault

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
        ("/api", "", ["401", "none was received"]),
        ("/api", "someone:else", ["a different one was received"]),
        ("", PASSWORD, ["404", "end in /api"]),
        ("/api", PASSWORD, None),
    ],
    ids=["no password", "empty password", "wrong password", "address without /api", "right"],
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


@field_fault(
    "cause named but not observed",
    "A server prints long tracebacks and ends",
    "Each exception is quoted without its frames: the last 20 lines, at most 2,000 characters",
)
def test_last_words_contain_the_exceptions() -> None:
    frames = b"".join(b'  File "x.py", line %d\n    call()\n    ^^^^^^\n' % number for number in range(400))
    head = b"Traceback (most recent call last):\n"
    output = head + frames + b"KeyError: first\n\n" + head + frames + b"ValueError: the cause\xff\nExiting.\n\n"
    assert last_words(output) == (
        "Its last output:\n  KeyError: first\n  ValueError: the cause\N{REPLACEMENT CHARACTER}\n  Exiting.\n"
    )
    assert last_words(b"line\n" * 400).count("\n") == 21
    assert len(last_words(b"x" * 7_000)) < 2_030
    assert last_words(b"\n") == "It printed nothing. "


def test_database_of_another_prefect_is_named() -> None:
    output = b"Traceback\nalembic.util.exc.CommandError: Can't locate revision identified by 'abc123'\nExiting.\n"
    text = reported_cause(output, "in /home/me/.prefect")
    for part in ("in /home/me/.prefect", "abc123", metadata.version("prefect"), "another version of Prefect"):
        assert part in text
    assert "Traceback" not in text
    assert reported_cause(b"other\n", "in /home/me/.prefect") == last_words(b"other\n")


@pytest.mark.parametrize("error", ["file is not a database", "database disk image is malformed"])
def test_damaged_database_is_named_with_the_cure(error: str) -> None:
    text = reported_cause(f"Traceback\nsqlite3.DatabaseError: {error}\nExiting.\n".encode(), "in /home/me/.prefect")
    assert text.startswith(f"The database in /home/me/.prefect is damaged ({error}). Move it away")


def test_answer_of_another_process_does_not_count(protected: str) -> None:
    url = f"{protected}/api"
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        assert wait_until_healthy(url, 0.3, other.poll, psutil.Process(other.pid)) == "did not answer in 0.3 s"
        assert wait_until_healthy(url, 60, lambda: None, psutil.Process()) is None


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ('[profiles.a]\nPREFECT_CLIENT_MAX_RETRIES = "many"\n', ["max_retries", "integer"]),
        ("x = [", ["Invalid value"]),
    ],
    ids=["wrong value", "no TOML"],
)
def test_unreadable_settings_are_one_sentence(content: str, parts: list[str], tmp_path: Path) -> None:
    profiles = tmp_path / "profiles.toml"
    profiles.write_text(f'active = "a"\n{content}')
    variables = {**os.environ, "PREFECT_PROFILES_PATH": str(profiles), "FASHION_ANN_ARTIFACTS_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "cli.main", "up"]
    done = subprocess.run(command, env=variables, cwd=PROJECT_ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    for part in ("Prefect's settings cannot be read", *parts):
        assert part in done.stderr


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


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        *(("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True)),
        *(("0.0.0.0", False), ("::", False), ("192.0.2.1", False), ("localhost.example.org", False), ("", False)),  # noqa: S104
    ],
)
def test_loopback_is_reached_from_this_machine_only(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


@pytest.mark.parametrize(
    ("url", "origins"),
    [
        ("http://127.0.0.1:4200/api", ["http://127.0.0.1:4200", "http://localhost:4200"]),
        ("http://192.0.2.1:4201/api", ["http://192.0.2.1:4201"]),
        ("https://example.org/api", ["https://example.org"]),
    ],
)
def test_origins_of_the_ui(url: str, origins: list[str]) -> None:
    assert ui_origins(url) == origins


def test_user_variables_override_project_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    name, value = next(iter(project_settings().items()))
    monkeypatch.delenv(name, raising=False)
    assert environment()[name] == value
    monkeypatch.setenv(name, "the user's")
    assert environment()[name] == "the user's"
    assert environment(**{name: "ours"})[name] == "ours"
