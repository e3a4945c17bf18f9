import json
from functools import partial
from pathlib import Path

import pytest

import tasks.registry.champion
from tasks.registry.alias_log import append_event, champions, read_alias_log
from tasks.registry.champion import promote
from tests.processes.kill import killed_when
from tests.stored import add_stored


def _promote_for_ever(root: Path) -> None:
    tasks.registry.champion.verify_version = lambda root, version: {}  # seconds, and not what is killed here
    for turn in range(1_000):
        promote(root, 2 + turn % 2, "back and forth")


def _longer_than(root: Path, events: int) -> bool:
    return len(read_alias_log(root)) > events


def test_a_promotion_killed_at_any_moment_leaves_a_whole_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.registry.champion.verify_version", lambda root, version: {})
    append_event(tmp_path, add_stored(tmp_path, promoted=True)["verdict"]["event"])
    for _ in range(2):
        add_stored(tmp_path)
    for _ in range(3):
        events = len(read_alias_log(tmp_path))
        killed_when(partial(_longer_than, tmp_path, events), _promote_for_ever, tmp_path)
        moved = promote(tmp_path, 1, "by hand")
        assert moved["to"] == champions(read_alias_log(tmp_path))[-1] == 1
        assert all(json.loads(line) for line in (tmp_path / "aliases.jsonl").read_text().splitlines())
