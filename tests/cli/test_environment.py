"""Proxies, HOME and key files in the environment of this process."""

import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from cli.environment import exclude_loopback_from_proxies, prepare_environment
from cli.server_process import free_port
from schemas.config import PROJECT_ROOT
from tests.field_faults import field_fault

PROXY, SOCKS = "http://PROXY", "socks5://user:secret@PROXY"


@pytest.fixture
def proxy() -> Iterator[tuple[str, list[str]]]:
    """Return the address of a proxy that serves nothing, and the list of hosts that clients requested from it."""
    hosts = []

    class Proxy(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            hosts.append(httpx.URL(self.path).host)
            self.send_error(502)

        def do_CONNECT(self) -> None:
            hosts.append(self.path.partition(":")[0])
            self.send_error(502)

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}", hosts
        server.shutdown()


@pytest.mark.parametrize(
    "variables",
    [
        pytest.param(
            {"HTTP_PROXY": PROXY, "HTTPS_PROXY": PROXY},
            marks=field_fault(
                "environment of the machine",
                "HTTP_PROXY is set and NO_PROXY is not",
                "Loopback is reached directly, and downloads use the proxy",
            ),
        ),
        {"all_proxy": "PROXY"},
        {"https_proxy": PROXY, "no_proxy": " intern.invalid ,"},
        {"https_proxy": PROXY, "NO_PROXY": "intern.invalid,localhost"},
        pytest.param(
            {"HTTPS_PROXY": PROXY, "ALL_PROXY": SOCKS},
            marks=field_fault(
                "environment of the machine",
                "ALL_PROXY is a SOCKS proxy, which httpx rejects for every request",
                "It is removed, and downloads use HTTPS_PROXY, or connect directly after a warning",
            ),
        ),
    ],
    ids=" ".join,
)
def test_loopback_is_never_proxied(
    variables: dict[str, str], proxy: tuple[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, hosts = proxy
    variables = {name: value.replace("PROXY", address) for name, value in variables.items()}
    own = next((value for name, value in variables.items() if name.lower() == "no_proxy"), "")
    assert exclude_loopback_from_proxies(variables) == []
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    closed = free_port()
    with httpx.Client() as client:
        for host in (f"127.0.0.1:{closed}", f"localhost:{closed}", f"[::1]:{closed}", "data.invalid", "intern.invalid"):
            with suppress(httpx.TransportError):
                client.get(f"https://{host}/api/health")
    assert hosts == ["data.invalid", *([] if "intern" in own else ["intern.invalid"])]


def test_without_a_proxy_nothing_is_set() -> None:
    variables = {"PATH": "/bin", "http_proxy": ""}
    assert exclude_loopback_from_proxies(variables) == []
    assert variables == {"PATH": "/bin", "http_proxy": ""}


@pytest.mark.parametrize("address", [SOCKS, "socks://proxy.example", "http://proxy.example:port", "http://[::1", "//"])
def test_unusable_proxy_is_removed_with_a_warning(address: str) -> None:
    variables = {"ALL_PROXY": address}
    (warning,) = exclude_loopback_from_proxies(variables)
    assert "ALL_PROXY" in warning
    assert "secret" not in warning
    assert "ALL_PROXY" not in variables


@field_fault(
    "environment of the machine",
    "HOME is unset and the user has no entry in the user database, as in a container",
    "HOME is set to /, without which Prefect cannot be imported",
)
def test_home_is_set_if_it_cannot_be_determined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(os, "getuid", lambda: 4_000_000)  # the standard library looks up this user
    prepare_environment(os.environ)
    assert os.environ["HOME"] == "/"
    monkeypatch.setenv("HOME", "/nonexistent")
    prepare_environment(os.environ)
    assert os.environ["HOME"] == "/nonexistent"


@field_fault(
    "environment of the machine",
    "PREFECT_HOME is empty, as compose passes an unset variable",
    "It counts as unset, and the working directory gets no database",
)
def test_empty_home_of_prefect_counts_as_unset() -> None:
    variables = {"HOME": "/home/me", "PREFECT_HOME": ""}
    prepare_environment(variables)
    assert "PREFECT_HOME" not in variables


def test_paths_in_variables_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = ("PREFECT_HOME", "PREFECT_PROFILES_PATH", "PREFECT_API_SSL_CERT_FILE", "FASHION_ANN_SIGNING_KEY", "TMPDIR")
    others = {"PREFECT_PROFILE": "mine", "PREFECT_API_URL": "x", "FASHION_ANN_NOTIFY": "a/b", "PATH": "bin"}
    kept = {"PREFECT_LOCAL_STORAGE_PATH": "~/x", "SSL_CERT_FILE": "/etc/ca.pem", "FASHION_ANN_ARTIFACTS_DIR": ""}
    variables = {**dict.fromkeys(names, "here/x"), **others, **kept, "HOME": "/home/me"}
    prepare_environment(variables)
    assert {name: variables[name] for name in names} == dict.fromkeys(names, f"{tmp_path}/here/x")
    assert {name: variables[name] for name in {**others, **kept}} == {**others, **kept}


def test_child_processes_import_nothing_from_where_they_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["", ".", "mine", "/absolute"]))
    variables = {"HOME": "/home/me"}
    prepare_environment(variables)
    assert variables["PYTHONSAFEPATH"] == "1"
    assert variables["PYTHONPATH"] == os.pathsep.join([str(PROJECT_ROOT), "/absolute"])
