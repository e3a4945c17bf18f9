import json
from functools import partial
from pathlib import Path

import pytest

from tasks.registry import champion
from tasks.registry.champion import promote
from tasks.registry.store import ModelStore, StoredVersion
from tests.processes.kill import killed_when
from tests.stored import add_promoted, add_stored


def _promote_forever(root: Path) -> None:
    champion.verify = StoredVersion.check  # these versions contain no network
    for turn in range(1_000):
        promote(ModelStore(root), 2 + turn % 2, "back and forth")


def _has_more_events(store: ModelStore, count: int) -> bool:
    return len(store.aliases.read()) > count


def test_a_killed_promotion_leaves_a_readable_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(champion, "verify", StoredVersion.check)
    store = ModelStore(tmp_path)
    add_promoted(tmp_path)
    for _ in range(2):
        add_stored(tmp_path)
    for _ in range(3):
        count = len(store.aliases.read())
        killed_when(partial(_has_more_events, store, count), _promote_forever, tmp_path)
        assert promote(store, 1, "by hand").event.to == store.aliases.champion() == 1
        assert all(json.loads(line) for line in store.aliases.path.read_text().splitlines())
