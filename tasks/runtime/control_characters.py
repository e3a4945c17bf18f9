"""Escape control characters where text reaches a terminal or a log.

File names, cells of CSVs, stored texts and answers of servers may contain them. A terminal would execute some of them,
and others change the order in which text is shown.
"""

import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import IO, Any, cast

# All but the newline: C0, DEL, C1, marks and overrides of the writing direction, line separators, lone surrogates.
_CONTROLS = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def escaped(text: str) -> str:
    r"""Return ``text`` with each control character as in a Python literal, such as ``\x1b``. Newlines stay."""
    return _CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


class EscapingStream:
    """A text stream that escapes what is written to it. Everything else is done by the stream that it wraps."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(escaped(text))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def escaping(stream: IO[str]) -> IO[str]:
    """Return `EscapingStream` of a stream."""
    return cast(IO[str], EscapingStream(stream))


@contextmanager
def escaping_output() -> Iterator[None]:
    """Escape what this process writes to stdout and stderr during the block."""
    with redirect_stdout(escaping(sys.stdout)), redirect_stderr(escaping(sys.stderr)):
        yield


def escape_log_records() -> None:
    """Escape the log records of our stages and of Prefect in this process, whatever their handlers do with them."""
    create = logging.getLogRecordFactory()
    if getattr(create, "escapes", False):
        return

    def create_escaped(*arguments: Any, **options: Any) -> logging.LogRecord:
        record = create(*arguments, **options)
        if record.name.startswith(("tasks", "prefect")):
            record.msg, record.args = escaped(record.getMessage()), ()
            if record.exc_info:
                record.exc_text = escaped(logging.Formatter().formatException(record.exc_info))
        return record

    create_escaped.escapes = True  # type: ignore[attr-defined]
    logging.setLogRecordFactory(create_escaped)
