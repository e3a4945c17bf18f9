import logging
import re
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from tasks.data.download import Limits, SourceError, download
from tests.tasks.data.conftest import Response, WebServer, respond

BODY = bytes(range(250)) * 40  # 10 kB
OK = b"HTTP/1.1 200 OK\r\n"
QUICK = Limits(connect_seconds=0.5, silence_seconds=0.5, floor=20_000)  # 1 s without data


def redirect(location: str) -> Response:
    return lambda handler: respond(handler, b"", 302, Location=location)


def raw(*parts: bytes, pause: float = 0.0) -> Response:
    """Return a response that sends ``parts``, status line included, with a ``pause`` in seconds after each."""

    def send(handler: BaseHTTPRequestHandler) -> None:
        for part in parts:
            handler.wfile.write(part)
            time.sleep(pause)

    return send


def test_writes_the_body_after_redirects(tmp_path: Path, web: WebServer) -> None:
    web.responses |= {"/file": redirect("/other"), "/other": BODY}
    download(f"{web.address}/file", tmp_path / "file", len(BODY))
    assert (tmp_path / "file").read_bytes() == BODY


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        pytest.param(redirect("/absent"), "HTTP status 404, expected 200", id="absent"),
        pytest.param(redirect("/file"), "TooManyRedirects", id="redirect loop"),
        pytest.param(redirect(f"http://{'x' * 64}/"), "UnicodeError|UnicodeEncodeError", id="malformed host"),
        pytest.param(redirect("http://127.0.0.1:1/"), "ConnectError", id="no server"),
        pytest.param(redirect("gopher://127.0.0.1/"), "UnsupportedProtocol", id="not http"),
        pytest.param(BODY + b"x", "at most 10000 bytes were expected, 10001 were received", id="large"),
        pytest.param(raw(OK + b"\r\n" + 2 * BODY), "at most 10000 bytes", id="large without length"),
        pytest.param(lambda h: respond(h, BODY[1:], Content_Length="10000"), "RemoteProtocolError", id="cut off"),
        pytest.param(raw(b""), "RemoteProtocolError", id="no response"),
        pytest.param(raw(b"220 ftp ready\r\n"), "RemoteProtocolError", id="another protocol"),
    ],
)
def test_rejects_a_faulty_response(tmp_path: Path, web: WebServer, response: Response, reason: str) -> None:
    web.responses["/file"] = response
    with pytest.raises(SourceError, match=f"^file: ({reason})"):
        download(f"{web.address}/file", tmp_path / "file", len(BODY))


def test_limits_the_time_of_every_phase(tmp_path: Path, web: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """All at once, because each takes as long as its limit."""
    lookups_end = threading.Event()
    getaddrinfo = socket.getaddrinfo

    def hanging(host: str, *args: Any, **options: Any) -> Any:
        return lookups_end.wait(10) and [] if host == "slow.invalid" else getaddrinfo(host, *args, **options)

    monkeypatch.setattr("socket.getaddrinfo", hanging)
    large = OK + b"Content-Length: 100000\r\n\r\n"
    dribble = [b"x"] * 100
    web.responses |= {
        "/silent": raw(large + b"x", pause=1.5),
        "/dribbled-body": raw(large, *dribble, pause=0.02),
        "/dribbled-header": raw(OK + b"X-Long: ", *dribble, pause=0.02),
        "/dribbled-chunk-size": raw(OK + b"Transfer-Encoding: chunked\r\n\r\n1;", *dribble, pause=0.02),
        "/steady": raw(large, *[BODY] * 10, pause=0.15),  # takes more than 1 s, but is above the floor
    }
    expected = {
        f"{web.address}/silent": "silent: (ReadTimeout: .*|too slow: 1 bytes in .*)",
        f"{web.address}/dribbled-body": r"dribbled-body: too slow: \d+ bytes in \d+\.\d s, expected at least 20000 .*",
        f"{web.address}/dribbled-header": r"dribbled-header: too slow: 0 bytes in \d+\.\d s, .*",
        f"{web.address}/dribbled-chunk-size": r"dribbled-chunk-size: too slow: 0 bytes in \d+\.\d s, .*",
        "http://slow.invalid/lookup": r"lookup: too slow: 0 bytes in \d+\.\d s, .*",
        f"{web.address}/steady": "",
    }

    def failure(address: str) -> str:
        try:
            download(address, tmp_path / address.rpartition("/")[2], 10 * len(BODY), QUICK)
        except SourceError as error:
            return str(error)
        return ""

    failure(f"{web.address}/absent")  # loads the certificates before the time counts
    started = time.monotonic()
    with ThreadPoolExecutor(len(expected)) as pool:
        failures = [*pool.map(failure, expected)]
    assert time.monotonic() - started < 8  # the look-up alone would take 10 s
    lookups_end.set()
    for pattern, observed in zip(expected.values(), failures, strict=True):
        assert re.fullmatch(pattern, observed)
    assert (tmp_path / "steady").read_bytes() == 10 * BODY


def test_logs_progress(tmp_path: Path, web: WebServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "tasks.data.download")

    def two_parts(handler: BaseHTTPRequestHandler) -> None:
        respond(handler, bytes(100_000), Content_Length="300000")
        deadline = time.monotonic() + 10
        while "big: 0.1 of 0.3 MB" not in caplog.messages and time.monotonic() < deadline:
            time.sleep(0.01)
        handler.wfile.write(bytes(200_000))

    web.responses["/big"] = two_parts
    download(f"{web.address}/big", tmp_path / "big", 300_000, Limits(progress_seconds=0.05))
    assert (tmp_path / "big").read_bytes() == bytes(300_000)
    assert "big: 0.1 of 0.3 MB" in caplog.messages
    assert re.fullmatch(r"big: 0\.3 MB in \d+\.\d s", caplog.messages[-1])


def test_full_disk_is_not_reported_as_a_faulty_source(web: WebServer) -> None:
    web.responses["/file"] = BODY
    with pytest.raises(OSError, match="No space left"):
        download(f"{web.address}/file", Path("/dev/full"), len(BODY))
