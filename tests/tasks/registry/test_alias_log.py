import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from schemas.errors import StoredArtifactError
from tasks.registry.alias_log import AliasLog, alias_values, champions
from tasks.runtime.files import digest_of
from tests.stored import event

Edit = Callable[[bytes], bytes]


@pytest.fixture
def log(tmp_path: Path) -> AliasLog:
    """A log of three moves of the champion."""
    log = AliasLog(tmp_path / "aliases.jsonl")
    for version in (1, 2, 1):
        log.append(event(version))
    return log


def test_reads_back_what_was_appended(log: AliasLog) -> None:
    assert log.read() == [event(1), event(2), event(1)]
    assert log.champion() == 1


def test_without_a_file_no_alias_exists(tmp_path: Path) -> None:
    log = AliasLog(tmp_path / "aliases.jsonl")
    assert (log.read(), log.champion(), log.repair()) == ([], None, [])


def test_a_line_is_json_with_its_digest(log: AliasLog) -> None:
    """The stored format."""
    line = json.loads(log.path.read_bytes().splitlines()[0])
    assert line.pop("sha256") == digest_of({"before": "", "event": line})
    assert line == {
        **{"when": "2026-01-01T00:00:00.000Z", "alias": "champion", "from": None, "to": 1, "by": "a test"},
        **{"reason": "a test", "flow_run": None},
    }


def _lines(edit: Callable[[list[bytes]], list[bytes]]) -> Edit:
    return lambda text: b"".join(edit(text.splitlines(keepends=True)))


EDITS: dict[str, tuple[Edit, int]] = {
    "reason": (_lines(lambda lines: [lines[0], lines[1].replace(b"a test", b"a lie!"), lines[2]]), 2),
    "version": (_lines(lambda lines: [lines[0].replace(b'"to": 1', b'"to": 2'), *lines[1:]]), 1),
    "removed from the middle": (_lines(lambda lines: [lines[0], lines[2]]), 2),
    "removed from the beginning": (_lines(lambda lines: lines[1:]), 1),
    "reordered": (_lines(lambda lines: [lines[1], lines[0], lines[2]]), 1),
    "another spelling": (_lines(lambda lines: [lines[0].replace(b": ", b":", 1), *lines[1:]]), 1),
    "no digest": (lambda text: text + b'{"alias": 1}\n', 4),
    "last character": (lambda text: text[:-1] + b"x", 3),
    "a byte that is not ASCII": (lambda text: text[:-1] + b"\x8a", 3),
    "an empty object at the end": (lambda text: text + b"{}", 4),
}


@pytest.mark.parametrize(("edit", "line"), EDITS.values(), ids=EDITS)
def test_an_edited_line_is_rejected_by_number(log: AliasLog, edit: Edit, line: int) -> None:
    log.path.write_bytes(edit(log.path.read_bytes()))
    before = log.path.read_bytes()
    for read in (log.read, log.repair):
        with pytest.raises(StoredArtifactError, match=f"line {line}"):
            read()
    assert log.path.read_bytes() == before


@pytest.mark.parametrize(
    "change", [{"to": True}, {"to": -1}, {"by": None}, {"from": "1"}, {"more": 1}, {"when": 0}], ids=str
)
def test_an_event_of_another_shape_is_rejected(tmp_path: Path, change: dict[str, Any]) -> None:
    moved = {**event(1).as_json(), **change}
    line = {**moved, "sha256": digest_of({"before": "", "event": moved})}
    log = AliasLog(tmp_path / "aliases.jsonl")
    log.path.write_bytes(json.dumps(line, sort_keys=True).encode() + b"\n")
    with pytest.raises(StoredArtifactError, match=f"line 1, {next(iter(change))}: .*, received "):
        log.read()


def test_an_incomplete_last_line_is_ignored_and_cut_off(log: AliasLog) -> None:
    complete = log.path.read_bytes()
    log.path.write_bytes(complete + b'{"alias": "champion", "to": 2')
    assert len(log.read()) == 3
    assert "incomplete last line" in log.repair()[0]
    assert log.path.read_bytes() == complete
    assert log.repair() == []


def test_a_complete_last_line_counts_without_its_newline(log: AliasLog) -> None:
    complete = log.path.read_bytes()
    log.path.write_bytes(complete[:-1])
    assert len(log.read()) == 3
    assert "missing newline" in log.repair()[0]
    assert log.path.read_bytes() == complete


def test_a_link_or_a_folder_is_not_read(log: AliasLog, tmp_path: Path) -> None:
    log.path.rename(tmp_path / "elsewhere")
    log.path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoredArtifactError, match="received a link"):
        log.read()
    log.path.unlink()
    log.path.mkdir()
    with pytest.raises(StoredArtifactError, match="received a folder"):
        log.read()


def test_a_full_disk_leaves_the_log_unchanged(log: AliasLog, monkeypatch: pytest.MonkeyPatch) -> None:
    before = log.path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: .*aliases\.jsonl"):
        log.append(event(2))
    assert log.path.read_bytes() == before


@pytest.mark.parametrize(
    ("moves", "stack"),
    [
        ([], []),
        ([(1, "x"), (2, "x"), (3, "x")], [1, 2, 3]),
        ([(1, "x"), (2, "x"), (3, "x"), (2, "rollback")], [1, 2]),
        ([(1, "x"), (2, "x"), (3, "x"), (2, "rollback"), (1, "rollback")], [1]),
        ([(1, "x"), (2, "x"), (1, "rollback"), (3, "x")], [1, 3]),
        ([(1, "x"), (2, "x"), (1, "x")], [1, 2, 1]),
        ([(1, "x"), (1, "x")], [1]),
    ],
)
def test_champions_in_order(moves: list[tuple[int, str]], stack: list[int]) -> None:
    events = [event(version, by=by) for version, by in moves]
    assert champions([*events, event(9, alias="candidate")]) == stack
    assert alias_values(events).get("champion") == (stack[-1] if stack else None)
