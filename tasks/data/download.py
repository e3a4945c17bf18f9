"""Download a file within a time limit."""

import logging
import queue
import ssl
import threading
import time
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from functools import cache
from pathlib import Path

logger = logging.getLogger(__name__)

_PROGRESS_SECONDS = 2.0


class SourceError(Exception):
    """Why one source does not do. The next one is tried; people see it only when none of them did."""


@dataclass(frozen=True)
class Limits:
    """How long a source may keep people waiting: one that does not answer costs seconds.

    A server that answers is kept for as long as every ``window_seconds`` bring ``floor`` bytes a second or more, so
    that a file costs at most its largest size / ``floor``: 26 MB of images 132 s. An average over the whole file would
    let a server that stops half-way dribble for minutes.
    """

    connect_seconds: float = 3.0
    silence_seconds: float = 10.0  # without a byte
    window_seconds: float = 10.0
    floor: int = 200_000  # bytes a second
    command_seconds: float = 120.0  # each of apt-get and dpkg


DEFAULT_LIMITS = Limits()


# --- downloads ---


def download(address: str, path: Path, largest: int, limits: Limits = DEFAULT_LIMITS) -> None:
    """Write what a server has under ``address`` to ``path``, ``largest`` bytes at most.

    Raises `SourceError` when it does not answer, answers with anything but 200, cuts off, or is slower than ``limits``.
    """
    started = reported = time.monotonic()
    received = 0
    total: int | None = None
    name = address.rpartition("/")[2]
    try:
        with path.open("wb") as file, closing(_events(address, limits)) as events:
            for event in events:
                if isinstance(event, _Answer):
                    total = event.length
                else:
                    received += len(event)
                    file.write(event)
                if max(received, total or 0) > largest:
                    raise SourceError(
                        f"at most {largest} bytes were expected, {max(received, total or 0)} were received"
                    )
                if time.monotonic() - reported >= _PROGRESS_SECONDS:
                    reported = time.monotonic()
                    of = "" if total is None else f" of {total / 1e6:.1f}"
                    logger.info("%s: %.1f%s MB", name, received / 1e6, of)
    except SourceError as error:
        raise SourceError(f"{name}: {error}") from error
    logger.info("%s: %.1f MB in %.1f s", name, received / 1e6, time.monotonic() - started)


def _events(address: str, limits: Limits) -> Generator["_Answer | bytes", None, None]:
    """The answer, then its body in pieces. Raises `SourceError`.

    The socket is read in a thread, because neither looking up a host nor reading a header that comes byte by byte obeys
    httpx's time-outs: whoever waits here has to be able to leave. A thread left behind ends with its socket.
    """
    events: queue.SimpleQueue[_Answer | bytes | SourceError | None] = queue.SimpleQueue()
    left = threading.Event()
    threading.Thread(target=_receive, args=(address, limits, events, left), name="download", daemon=True).start()
    answered, in_window = False, 0
    window_seconds = limits.connect_seconds + limits.silence_seconds  # until the answer
    window_ends = time.monotonic() + window_seconds
    try:
        while True:
            now = time.monotonic()
            if now >= window_ends:
                if not answered:
                    raise SourceError(f"no answer within {window_seconds:g} s")
                wanted = int(limits.floor * window_seconds)
                if in_window < wanted:
                    raise SourceError(
                        f"too slow: {in_window} bytes in {window_seconds:g} s, at least {wanted} were expected"
                    )
                in_window, window_ends = 0, now + window_seconds
            try:
                event = events.get(timeout=window_ends - now)
            except queue.Empty:
                continue
            if event is None:
                return
            if isinstance(event, SourceError):
                raise event
            if isinstance(event, _Answer):
                answered, window_seconds = True, limits.window_seconds
                window_ends = time.monotonic() + window_seconds
            else:
                in_window += len(event)
            yield event
    finally:
        left.set()


@dataclass(frozen=True)
class _Answer:
    """The server answered 200. ``length`` is that of the body in bytes, where it says so."""

    length: int | None


@cache
def _certificates() -> ssl.SSLContext:
    """Read once: it takes longer than a small file from a server nearby."""
    import httpx

    return httpx.create_ssl_context()


def _receive(
    address: str,
    limits: Limits,
    events: "queue.SimpleQueue[_Answer | bytes | SourceError | None]",
    left: threading.Event,
) -> None:
    """The other thread of `_events`: an `_Answer`, the body in pieces, then None or what went wrong."""
    import httpx

    timeout = httpx.Timeout(limits.silence_seconds, connect=limits.connect_seconds)
    # The bytes as they are stored: what a server packs for the way is nobody's published file.
    headers = {"Accept-Encoding": "identity"}
    try:
        with (
            httpx.Client(verify=_certificates(), timeout=timeout, headers=headers, follow_redirects=True) as client,
            client.stream("GET", address) as response,
        ):
            if response.status_code != httpx.codes.OK:
                raise SourceError(f"HTTP status {response.status_code}, expected 200")
            length = response.headers.get("Content-Length", "")
            events.put(_Answer(int(length) if length.isdecimal() else None))
            for piece in response.iter_raw():
                if left.is_set():
                    return
                events.put(piece)
        events.put(None)
    except SourceError as error:
        events.put(error)
    except Exception as error:  # whatever it is, the one who waits has to hear of it, and the next source be tried
        events.put(SourceError(f"{type(error).__name__}: {error}"))
