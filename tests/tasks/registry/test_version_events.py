"""Events about versions: which are sent, how often, and with which content."""

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from schemas.layout import REPORT_NAME
from tasks.registry.store import ModelStore
from tasks.registry.version_events import send_unsent
from tests.stored import DIGEST, add_promoted, add_stored, event, verdict


class Api:
    """Keep the events that it accepts."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.down = False

    def __call__(self, events: Sequence[dict[str, Any]]) -> None:
        if self.down:
            raise ConnectionError("no answer")
        self.events += events

    @property
    def names(self) -> list[str]:
        return [str(event["event"]).removeprefix("fashion-ann.version.") for event in self.events]


@pytest.fixture
def api() -> Api:
    return Api()


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "fashion-mnist")


@pytest.mark.parametrize(("outcome", "name"), [("kept", "kept"), ("refused", "rejected"), ("waiting", "waiting")])
def test_verdict_without_a_move_has_one_event(store: ModelStore, api: Api, outcome: str, name: str) -> None:
    stored = add_stored(store.root, verdict={**verdict(None), "outcome": outcome}, parent=4, flow_run_id="run")
    for _ in range(2):
        assert send_unsent(store, api)
    (sent,) = api.events
    assert sent["event"] == f"fashion-ann.version.{name}"
    assert sent["resource"]["prefect.resource.id"] == "fashion-ann.version.fashion-mnist.1"
    assert sent["occurred"] == stored.manifest.created
    assert sent["payload"] == {
        **{"dataset": "fashion-mnist", "version": 1, "from": 4, "alias": None, "by": None, "flow_run": "run"},
        **{"reason": "a test", "accuracy": 0.9, "p": None, "report": str(stored.folder / REPORT_NAME)},
        "digests": {
            "manifest": stored.manifest.manifest_sha256,
            "weights": stored.manifest.files["model.weights.h5"].sha256,
            "data": hashlib.sha256(f"{DIGEST}  images.csv\n".encode() * 2).hexdigest(),
        },
    }


def test_each_move_has_one_event(store: ModelStore, api: Api) -> None:
    for _ in range(2):
        add_promoted(store.root)
    for move in (event(1, 2, by="rollback"), event(2, None, alias="staging"), event(2, 1, by="promote")):
        store.aliases.append(move)
    for _ in range(2):
        assert send_unsent(store, api)
    assert api.names == ["promoted", "promoted", "rolled-back", "aliased", "promoted"]
    assert [sent["payload"]["from"] for sent in api.events] == [None, 1, 2, None, 1]
    assert len({sent["id"] for sent in api.events}) == 5
    store.aliases.append(event(1, 2))
    assert send_unsent(store, api)
    assert api.names[5:] == ["promoted"]


def test_promotion_that_recovery_logs_is_sent(store: ModelStore, api: Api) -> None:
    add_stored(store.root, promoted=True)  # the process was killed before the promotion was logged
    assert send_unsent(store, api)
    with store.lock():
        store.recover()
    assert send_unsent(store, api)
    assert api.names == ["promoted"]


def test_p_is_that_of_the_verdict(store: ModelStore, api: Api) -> None:
    paired = {"paired": {"p_value": 0.03}}
    add_stored(store.root, write=lambda folder: (folder / "verdict.json").write_text(json.dumps(paired)))
    send_unsent(store, api)
    assert api.events[0]["payload"]["p"] == 0.03


def test_refused_event_is_sent_later(store: ModelStore, api: Api, caplog: pytest.LogCaptureFixture) -> None:
    add_promoted(store.root)
    api.down = True
    assert not send_unsent(store, api)
    assert not send_unsent(store, None)  # no API
    assert "events are not sent yet (no answer)" in caplog.text
    api.down = False
    assert send_unsent(store, api)
    assert api.names == ["promoted"]


@pytest.mark.parametrize("state", [None, b"", b'{"sent": 7}'], ids=["lost", "empty", "another shape"])
def test_repeated_event_has_the_same_id(store: ModelStore, api: Api, state: bytes | None) -> None:
    add_promoted(store.root)
    add_stored(store.root)
    assert send_unsent(store, api)
    store.aliases.state_path.unlink()
    if state is not None:
        store.aliases.state_path.write_bytes(state)
    assert send_unsent(store, api)
    assert api.names == ["promoted", "kept"] * 2
    assert [sent["id"] for sent in api.events[:2]] == [sent["id"] for sent in api.events[2:]]


def test_move_to_a_removed_version_has_an_event(store: ModelStore, api: Api) -> None:
    shutil.rmtree(add_promoted(store.root).folder)
    assert send_unsent(store, api)
    assert (api.names, api.events[0]["payload"]["digests"]) == (["promoted"], None)


def test_without_a_store_nothing_is_sent_or_created(store: ModelStore, api: Api) -> None:
    assert not send_unsent(store, api)
    assert not store.root.exists()
