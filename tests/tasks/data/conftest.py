"""A real HTTP server, and programs in place of apt-get and dpkg."""

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tasks.data.sources import Source, idx_mirror, kaggle_zip
from tests.tasks.data.published import write_idx

Response = bytes | Callable[[BaseHTTPRequestHandler], None]


@dataclass
class WebServer:
    address: str
    responses: dict[str, Response]  # by path; 404 for any other
    requests: list[str]

    def mirror(self, files: Mapping[str, Response], folder: str = "") -> Source:
        self.responses.update({f"{folder}/{name}": response for name, response in files.items()})
        return idx_mirror(self.address + folder)

    def kaggle(self, response: Response) -> Source:
        self.responses["/download"] = response
        return kaggle_zip(f"{self.address}/download")


@pytest.fixture
def web() -> Iterator[WebServer]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            server.requests.append(self.path)
            response = server.responses.get(self.path)
            if response is None:
                self.send_error(404)
            elif callable(response):
                try:
                    response(self)
                except OSError:  # the client has given up
                    self.close_connection = True
            else:
                respond(self, response)

        def log_message(self, *_: object) -> None: ...

    class Quiet(ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None: ...

    with Quiet(("127.0.0.1", 0), Handler) as running:
        server = WebServer(f"http://127.0.0.1:{running.server_port}", {}, [])
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        running.shutdown()
        thread.join()


def respond(handler: BaseHTTPRequestHandler, body: bytes, status: int = 200, **headers: str) -> None:
    """Send a response with a Content-Length, unless ``headers`` contain another one; an empty header is left out."""
    handler.send_response(status)
    for name, value in {"Content_Length": str(len(body)), **headers}.items():
        if value:
            handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body)


@pytest.fixture
def install_apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Return a function that installs a shell script as apt-get, and a dpkg that unpacks the published IDX files.

    The function returns the file that receives the arguments of apt-get, one call per line.
    """

    def install(apt_get: str) -> Path:
        package, calls, binaries = tmp_path / "package", tmp_path / "calls", tmp_path / "bin"
        write_idx(package)
        binaries.mkdir()
        scripts = {
            "apt-get": f'echo "$@" >> {calls}\n{apt_get}',
            "dpkg": f'[ "$1" = -x ] && mkdir -p $3/usr/share/data && cp {package}/* $3/usr/share/data',
        }
        for name, script in scripts.items():
            (binaries / name).write_text(f"#!/bin/sh\n{script}\n")
            (binaries / name).chmod(0o755)
        monkeypatch.setenv("PATH", f"{binaries}:{os.environ['PATH']}")
        return calls

    return install
