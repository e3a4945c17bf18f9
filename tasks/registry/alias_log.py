"""The alias log: an append-only, hash-chained record of which version each alias names."""

import hashlib
import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from schemas.errors import StoredArtifactError
from schemas.layout import ALIAS_LOG_NAME
from schemas.store import AliasEvent
from tasks.runtime.files import (
    digest_of,
)

CHAMPION = "champion"
# The event's ``by`` that takes champions back; any other adds one (`champions`).
ROLLBACK = "rollback"


def utc_now() -> str:
    """ISO 8601, UTC, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def read_alias_log(root: Path) -> list[dict[str, Any]]:
    """All events (`schemas.store.AliasEvent`), oldest first.

    A last line that a kill cut off never happened; a whole one whose line end alone is missing did. Raises
    `StoredArtifactError` for a line that is not what was written, with its number and both digests.
    """
    return _read_log(root)[0]


def _read_log(root: Path) -> tuple[list[dict[str, Any]], bytes]:
    """The events, and the bytes after the last of them: a line that a kill cut off, or nothing."""
    path = root / ALIAS_LOG_NAME
    if path.is_symlink() or path.is_dir():
        raise StoredArtifactError(f"{path}: a file was expected, it is a {'link' if path.is_symlink() else 'folder'}.")
    if not path.exists():
        return [], b""
    *lines, tail = path.read_bytes().split(b"\n")
    events: list[dict[str, Any]] = []
    chained = ""
    for number, line in enumerate([*lines, tail] if _is_whole(tail) else lines, start=1):
        received = f"found bytes with sha256 {hashlib.sha256(line).hexdigest()}"
        try:
            event = json.loads(line)
            stated = event.pop("sha256")
            chained = _chained(event, chained)
            unchanged = line == _log_line(event, chained)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise StoredArtifactError(
                f"{path} line {number}: expected an event with its sha256, {received} ({error})."
            ) from error
        if not unchanged:
            raise StoredArtifactError(
                f"{path} line {number} was edited, or one before it is gone: expected sha256 {chained}, found {stated}."
            )
        try:
            AliasEvent.model_validate(event)
        except ValidationError as error:
            raise StoredArtifactError(
                f"{path} line {number}, {error.errors()[0]['loc'][0]}: {error.errors()[0]['msg']}, {received}."
            ) from error
        events.append(event)
    return events, b"" if _is_whole(tail) else tail


def _is_whole(tail: bytes) -> bool:
    """Whether more than a beginning of a line follows the last line end: such a line is judged like any other."""
    try:
        json.JSONDecoder().raw_decode(tail.decode())
    except (ValueError, RecursionError):
        # What a kill cut off is ASCII, as every line is; a byte that is not was put there.
        return not tail.isascii()
    return True


def _chained(event: Mapping[str, Any], before: str) -> str:
    """The digest of an event and of all events before it, so that none can be changed or taken out of the middle."""
    return digest_of({"before": before, "event": dict(event)})


def _log_line(event: Mapping[str, Any], chained: str) -> bytes:
    return json.dumps({**event, "sha256": chained}, sort_keys=True).encode()


def alias_values(events: list[dict[str, Any]]) -> dict[str, int]:
    """The version that each alias names: its last event decides."""
    return {event["alias"]: event["to"] for event in events}


def champions(events: list[dict[str, Any]]) -> list[int]:
    """Who was champion, one after the other; the last is the present one, the one before is what a rollback gives.

    A rollback takes the champions after its target off again.
    """
    stack: list[int] = []
    for event in events:
        if event["alias"] != CHAMPION:
            continue
        if event["by"] == ROLLBACK:
            while stack and stack[-1] != event["to"]:
                stack.pop()
        if not stack or stack[-1] != event["to"]:
            stack.append(event["to"])
    return stack


def champion_event(before: int | None, to: int, by: str, reason: str, flow_run: str | None = None) -> dict[str, Any]:
    """A move of `champion`, made now, as the log has it."""
    return {
        **{"when": utc_now(), "alias": CHAMPION, "from": before, "to": to},
        **{"by": by, "reason": reason, "flow_run": flow_run},
    }


def append_event(root: Path, event: Mapping[str, Any]) -> None:
    """Add one line to the alias log, to the disk. The caller holds `store_lock` and has called `recover`.

    On an error, a full disk for one, the log is as it was.
    """
    AliasEvent.model_validate(event)
    chained = ""
    for earlier in [*read_alias_log(root), event]:
        chained = _chained(earlier, chained)
    log = root / ALIAS_LOG_NAME
    with log.open("ab") as file:
        before = file.tell()
        try:
            file.write(_log_line(event, chained) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        except OSError as error:
            os.truncate(log, before)
            error.filename = error.filename or str(log)
            raise
