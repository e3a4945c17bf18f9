"""The alias log: an append-only, hash-chained record of the version that each alias names."""

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from schemas.errors import LostRace, StoredArtifactError
from schemas.layout import ALIAS_STATE_NAME
from schemas.store import EMPTY_LOG, AliasEvent, AliasLogState, LogHead
from tasks.runtime.files import atomic_write, digest_of, sweep_temporaries, sync_opened, write_json
from tasks.runtime.stored_file import parse_json, read_json, read_stored

if TYPE_CHECKING:
    from tasks.registry.mirror import StoreMirror

logger = logging.getLogger(__name__)

CHAMPION = "champion"
# An event ``by`` this restores an earlier champion. Any other adds one.
ROLLBACK = "rollback"
# A line has about 250 bytes and the reason that a person gave.
_LONGEST_LINE = 1_000_000
_LARGEST_LOG = 64_000_000


def utc_now() -> str:
    """Return the current time: ISO 8601, UTC, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def alias_event(
    before: int | None, to: int, by: str, reason: str, flow_run: str | None, alias: str = CHAMPION
) -> AliasEvent:
    """Return a move of an alias that happens now."""
    moved = {"when": utc_now(), "alias": alias, "from": before, "to": to}
    return AliasEvent.model_validate({**moved, "by": by, "reason": reason, "flow_run": flow_run})


def alias_values(events: Sequence[AliasEvent]) -> dict[str, int]:
    """Return the version that each alias names: the last event of an alias decides."""
    return {event.alias: event.to for event in events}


def champions(events: Sequence[AliasEvent]) -> list[int]:
    """Return the successive champions. The last is the current one; a rollback restores the one before it.

    A rollback removes the champions after its target.
    """
    stack: list[int] = []
    for event in events:
        if event.alias == CHAMPION:
            while event.by == ROLLBACK and stack and stack[-1] != event.to:
                stack.pop()
            if stack[-1:] != [event.to]:
                stack.append(event.to)
    return stack


def head_of(entries: Sequence[tuple[AliasEvent, str]]) -> LogHead:
    """Return the head of a log with these entries."""
    return LogHead(lines=len(entries), sha256=entries[-1][1]) if entries else EMPTY_LOG


@dataclass(frozen=True)
class AliasLog:
    """The log file: one JSON line per event, each with a digest of itself and of all lines before it.

    mirror: if several machines share the store, its objects decide which machine adds a line.
    """

    path: Path
    mirror: "StoreMirror | None" = None

    def read(self) -> list[AliasEvent]:
        """Return all events, oldest first. An incomplete last line, which a killed process leaves, is ignored.

        Raises `StoredArtifactError` with the line number if a line was edited or removed.
        """
        return [event for event, _ in self.entries()]

    def entries(self) -> list[tuple[AliasEvent, str]]:
        """Return what `read` returns, each event with the digest of its line."""
        entries: list[tuple[AliasEvent, str]] = []
        digest = ""
        for number, line in enumerate(self._split()[0], start=1):
            event, digest = self._parse(number, line, digest)
            entries.append((event, digest))
        return entries

    def head(self) -> LogHead:
        """Return the length of the log and the digest of its last line."""
        return head_of(self.entries())

    def champion(self) -> int | None:
        """Return the version that is the current champion, if any."""
        return alias_values(self.read()).get(CHAMPION)

    def append(self, event: AliasEvent) -> None:
        """Add one line and sync it to disk. The caller holds the lock of the store and has called `repair`.

        After an error, such as a full disk, the log is unchanged. If the line is in the remote by then, the next
        `ModelStore.recover` adds it.

        Raises `LostRace` if another machine has added a line.
        """
        before = self.head()
        digest = chain(event.as_json(), before.sha256)
        line = _line(event.as_json(), digest)
        if self.mirror is not None and not self.mirror.create_line(before.lines + 1, line):
            raise LostRace(f"{self.path}: another machine added line {before.lines + 1} first.")
        self._write([line], LogHead(lines=before.lines + 1, sha256=digest))

    def lines(self) -> list[bytes]:
        """Return the complete lines, without newlines. They are not verified."""
        return self._split()[0]

    def extend(self, lines: Sequence[bytes], source: str) -> None:
        """Add lines that another machine wrote to ``source``. The caller holds the lock and has called `repair`.

        Raises `StoredArtifactError` if they do not continue the log.
        """
        head = self.head()
        digest = head.sha256
        for number, line in enumerate(lines, start=head.lines + 1):
            try:
                _, digest = self._parse(number, line, digest)
            except StoredArtifactError as error:
                raise StoredArtifactError(f"{source} does not continue the log on this machine. {error}") from error
        self._write(lines, LogHead(lines=head.lines + len(lines), sha256=digest))

    def _write(self, lines: Sequence[bytes], head: LogHead) -> None:
        with self.path.open("ab") as file:
            size = file.tell()
            try:
                file.write(b"".join(line + b"\n" for line in lines))
                file.flush()
                sync_opened(file.fileno(), self.path)
            except OSError as error:
                os.truncate(self.path, size)
                error.filename = error.filename or str(self.path)
                raise
        try:
            self.record(head=head)
        except (OSError, StoredArtifactError) as error:  # the move is logged, and the next one records it
            logger.warning("%s cannot be written: %s", self.state_path, error)

    @property
    def state_path(self) -> Path:
        return self.path.with_name(ALIAS_STATE_NAME)

    def state(self) -> AliasLogState:
        """Return what is recorded beside the log. A missing or unreadable record counts as empty."""
        try:
            return AliasLogState.parse(read_json(self.state_path), str(self.state_path))
        except (OSError, StoredArtifactError) as error:
            if os.path.lexists(self.state_path):
                logger.warning("%s cannot be read and is ignored: %s", self.state_path, error)
            return AliasLogState()

    def record(self, **changed: Any) -> None:
        """Change the record beside the log. The caller holds the lock of the store."""
        if self.state_path.is_dir():
            raise StoredArtifactError(f"{self.state_path}: expected a file, received a folder. Remove it.")
        sweep_temporaries(self.state_path)
        with atomic_write(self.state_path) as temporary:
            write_json(temporary, self.state().model_copy(update=changed).as_json())

    def repair(self) -> list[str]:
        """Cut off an incomplete last line, or end a complete one. Return what was done, for people."""
        self.read()  # raises before anything is changed
        lines, tail = self._split()
        if tail:
            os.truncate(self.path, self.path.stat().st_size - len(tail))
            return [f"cut an incomplete last line off {self.path}"]
        if lines and not self._content().endswith(b"\n"):
            with self.path.open("ab") as file:
                file.write(b"\n")
            return [f"added the missing newline at the end of {self.path}"]
        return []

    def _split(self) -> tuple[list[bytes], bytes]:
        """Return the complete lines, and the incomplete line after them."""
        *lines, tail = self._content().split(b"\n")
        if any(len(line) > _LONGEST_LINE for line in (*lines, tail)):
            raise StoredArtifactError(
                f"{self.path}: expected lines of at most {_LONGEST_LINE} bytes, received a longer one."
            )
        return ([*lines, tail], b"") if _is_complete(tail) else (lines, tail)

    def _content(self) -> bytes:
        return read_stored(self.path, largest=_LARGEST_LOG) if os.path.lexists(self.path) else b""

    def _parse(self, number: int, line: bytes, before: str) -> tuple[AliasEvent, str]:
        """Return the event of a line and its digest. ``before`` is the digest of the line before it."""
        source = f"{self.path} line {number}"
        try:
            event = parse_json(line)
            recorded = event.pop("sha256")
            digest = chain(event, before)
            unchanged = line == _line(event, digest)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            received = hashlib.sha256(line).hexdigest()
            raise StoredArtifactError(
                f"{source}: expected an event with its sha256, received bytes with sha256 {received} ({error})."
            ) from error
        if not unchanged:
            raise StoredArtifactError(
                f"{source} was edited, or a line before it was removed: expected sha256 {digest}, received {recorded}."
            )
        return AliasEvent.parse(event, source), digest


def _is_complete(tail: bytes) -> bool:
    """Return whether the text after the last newline is more than the beginning of a line."""
    try:
        json.JSONDecoder().raw_decode(tail.decode())
    except (ValueError, RecursionError):
        # Lines are ASCII, so a killed writer leaves ASCII. Any other byte was added by hand.
        return not tail.isascii()
    return True


def chain(event: dict[str, Any], before: str) -> str:
    """Return the digest of an event and of all events before it: none can be edited, or removed from the middle."""
    return digest_of({"before": before, "event": event})


def _line(event: dict[str, Any], digest: str) -> bytes:
    return json.dumps({**event, "sha256": digest}, sort_keys=True).encode()
