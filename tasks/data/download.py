"""Download a file over HTTP within a time limit."""

import logging
import ssl
import threading
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

logger = logging.getLogger(__name__)


class SourceError(Exception):
    """Failure of one source. `fetch_data` tries the next one, and reports all failures if no source has the data."""


@dataclass(frozen=True)
class Limits:
    """Time limits for one source.

    A download may take ``connect_seconds + silence_seconds`` and one second more per ``floor`` bytes received.
    A server that sends nothing costs 13 s. A file of 26 MB takes at most 145 s.
    """

    connect_seconds: float = 3.0
    silence_seconds: float = 10.0  # without a byte
    floor: int = 200_000  # bytes per second
    command_seconds: float = 120.0  # for each call of apt-get and dpkg
    progress_seconds: float = 2.0  # between two log lines of a download


DEFAULT_LIMITS = Limits()


@dataclass
class _Transfer:
    """State of a download, shared by the thread that receives and the one that waits."""

    received: int = 0  # bytes
    total: int | None = None  # bytes, if the server sends a Content-Length
    error: Exception | None = None
    abandoned: bool = False


def download(address: str, path: Path, largest: int, limits: Limits = DEFAULT_LIMITS) -> None:
    """Download ``address`` to ``path``.

    Raises `SourceError` if the server does not answer with status 200, sends more than ``largest`` bytes, breaks off or
    exceeds ``limits``; OSError if ``path`` cannot be written.
    """
    name = address.rpartition("/")[2]
    started = time.monotonic()
    transfer = _Transfer()
    # httpx's time-outs bound neither a host look-up (measured: 10 s per silent name server) nor a header that arrives
    # byte by byte. A daemon thread, because Python waits for any other thread before it exits.
    receiver = threading.Thread(target=_receive, args=(address, path, largest, limits, transfer), daemon=True)
    receiver.start()
    try:
        while receiver.is_alive():
            seconds = time.monotonic() - started
            allowed = limits.connect_seconds + limits.silence_seconds + transfer.received / limits.floor
            if seconds >= allowed:
                raise SourceError(
                    f"{name}: too slow: {transfer.received} bytes in {seconds:.1f} s, "
                    f"expected at least {limits.floor} bytes per second"
                )
            receiver.join(min(allowed - seconds, limits.progress_seconds))
            if receiver.is_alive() and transfer.received:
                of_total = "" if transfer.total is None else f" of {transfer.total / 1e6:.1f}"
                logger.info("%s: %.1f%s MB", name, transfer.received / 1e6, of_total)
    finally:
        transfer.abandoned = True
    if isinstance(transfer.error, SourceError):
        raise SourceError(f"{name}: {transfer.error}") from transfer.error
    if transfer.error is not None:
        raise transfer.error
    logger.info("%s: %.1f MB in %.1f s", name, transfer.received / 1e6, time.monotonic() - started)


def _receive(address: str, path: Path, largest: int, limits: Limits, transfer: _Transfer) -> None:
    """Write the body of the response to ``path``, until it is complete or the download is abandoned."""
    import httpx

    timeout = httpx.Timeout(limits.silence_seconds, connect=limits.connect_seconds)
    headers = {"Accept-Encoding": "identity"}  # the published bytes, not compressed once more
    try:
        with (
            path.open("wb") as file,
            httpx.Client(verify=_certificates(), timeout=timeout, headers=headers, follow_redirects=True) as client,
            client.stream("GET", address) as response,
        ):
            if response.status_code != httpx.codes.OK:
                raise SourceError(f"HTTP status {response.status_code}, expected 200")
            length = response.headers.get("Content-Length", "")
            transfer.total = int(length) if length.isdecimal() else None
            for piece in response.iter_raw():
                transfer.received += len(piece)
                if (size := max(transfer.received, transfer.total or 0)) > largest:
                    raise SourceError(f"at most {largest} bytes were expected, {size} were received")
                if transfer.abandoned:
                    return
                file.write(piece)
    except (SourceError, OSError) as error:  # httpx wraps errors of the network, so an OSError concerns the file
        transfer.error = error
    except Exception as error:  # not only httpx.HTTPError: a redirect to a malformed host is a UnicodeError
        transfer.error = SourceError(f"{type(error).__name__}: {error}")


@cache
def _certificates() -> ssl.SSLContext:
    """Return the trusted certificates: SSL_CERT_FILE, else certifi's. Loading them takes 70 ms, so it is done once."""
    import httpx

    try:
        return httpx.create_ssl_context()
    except OSError as error:
        raise SourceError(f"the trusted certificates cannot be read: {error}") from error
