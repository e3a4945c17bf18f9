"""Flows about stored versions, and the events of verdicts and moves, on a real Prefect server."""

import json
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.collect_garbage import collect_garbage
from flows.promote_version import promote_version
from flows.rollback_champion import rollback_champion
from flows.train_fashion_mnist import train_fashion_mnist
from flows.verify_store import verify_store
from schemas.config import PromotionConfig, TrainingConfig
from schemas.contract import FASHION_MNIST
from schemas.layout import Artifacts
from tasks.data.data_folder import folder_digest
from tasks.registry import champion
from tasks.registry.champion import promote, set_alias
from tasks.registry.store import ModelStore, StoredVersion
from tasks.registry.version_events import send_unsent
from tasks.runtime.locks import artifacts_lock
from tasks.runtime.log_rotation import LARGEST_BYTES
from tasks.runtime.prefect_events import send_events
from tests.field_faults import field_fault
from tests.flows.conftest import Command
from tests.processes.kill import killed_when
from tests.sample import SAMPLE

pytestmark = pytest.mark.usefixtures("server", "in_this_process")


@pytest.fixture(scope="module")
def verdicts(server: str, in_this_process: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any]]:
    """A folder with one version per verdict, of which 2 is champion, and the states of five runs. Read-only."""
    folder = tmp_path_factory.mktemp("verdicts")
    states = [train(folder, policy="ask"), train(folder), train(folder, policy="never")]
    return folder, [*states, train(folder, minimum_accuracy=1), train(folder)]


@pytest.fixture
def artifacts(verdicts: tuple[Path, list[Any]], tmp_path: Path) -> Path:
    return Path(shutil.copytree(verdicts[0], tmp_path / "artifacts"))


def store_of(artifacts: Path) -> ModelStore:
    return ModelStore.of(artifacts, "fashion-mnist")


def stored_events(artifacts: Path) -> list[dict[str, Any]]:
    """Return the events of the versions of this folder that the server has stored, in order."""
    body = {"filter": {"event": {"prefix": ["fashion-ann.version."]}, "order": "ASC"}, "limit": 50}
    with get_client(sync_client=True) as client:
        events = client.request("POST", "/events/filter", json=body).json()["events"]
    return [event for event in events if (event["payload"]["report"] or "").startswith(str(artifacts))]


def wait_for_events(artifacts: Path, *names: str) -> list[dict[str, Any]]:
    """Wait until the server has stored exactly these events. It stores them with a delay."""
    expected = [f"fashion-ann.version.{name}" for name in names]
    deadline = time.monotonic() + 30
    events = stored_events(artifacts)
    while [event["event"] for event in events] != expected:
        assert time.monotonic() < deadline, ([event["event"] for event in events], expected)
        time.sleep(0.2)
        events = stored_events(artifacts)
    return events


def train(artifacts: Path, **promotion: Any) -> Any:
    return train_fashion_mnist(
        data_dir=SAMPLE,
        artifacts_dir=artifacts,
        training=TrainingConfig(epochs=1, validation_size=100),
        promotion=PromotionConfig(**{"minimum_accuracy": 0, "minimum_recall": 0, **promotion}),
        return_state=True,
    )


@field_fault(
    "failure without a message",
    "A version is promoted, kept, rejected, or waits for a person",
    "Each verdict emits one event with version, champion before, digests, accuracy and p",
)
def test_each_verdict_emits_an_event(verdicts: tuple[Path, list[Any]]) -> None:
    folder, states = verdicts
    assert [state.name for state in states] == [
        *("Waiting for approval", "Completed", "Completed", "Failed", "Nothing new")
    ]
    assert "fashion-ann promote 1" in states[0].message
    events = wait_for_events(folder, "waiting", "promoted", "kept", "rejected")
    assert [event["resource"]["prefect.resource.id"] for event in events] == [
        f"fashion-ann.version.fashion-mnist.{number}" for number in (1, 2, 3, 4)
    ]
    kept = events[2]["payload"]
    manifest = store_of(folder).version(3).manifest
    assert (kept["version"], kept["from"], kept["accuracy"]) == (3, 2, manifest.test_accuracy)
    assert kept["p"] == 1.0  # the same model
    assert kept["digests"] == {
        "manifest": manifest.manifest_sha256,
        "weights": manifest.files["model.weights.h5"].sha256,
        "data": folder_digest(FASHION_MNIST, SAMPLE),  # that of the new-data event
    }
    assert (events[0]["payload"]["p"], events[0]["payload"]["from"]) == (None, None)
    with get_client(sync_client=True) as client:
        run = client.read_flow_run(states[0].state_details.flow_run_id)
    assert events[0]["payload"]["flow_run"] == str(run.id)


def test_moves_by_hand_emit_events(artifacts: Path) -> None:
    moved = promote_version(version=3, reason="a test", artifacts_dir=artifacts)
    assert (moved.before, moved.to, moved.by) == (2, 3, "promote")
    assert rollback_champion(reason="it was worse", artifacts_dir=artifacts).to == 2
    first, second = (event["payload"] for event in wait_for_events(artifacts, "promoted", "rolled-back"))
    assert (first["version"], first["from"], first["reason"]) == (3, 2, "a test")
    assert (second["version"], second["from"], second["reason"]) == (2, 3, "it was worse")
    log = store_of(artifacts).aliases.read()
    assert first["flow_run"] == log[1].flow_run != log[2].flow_run


def test_commands_emit_events(artifacts: Path, command: Command) -> None:
    for arguments in (("promote", "1"), ("alias", "3", "staging")):
        done = command.run(*arguments, "--reason", "a test", "--json")
        assert (done.returncode, done.stderr, json.loads(done.stdout)["event_sent"]) == (0, "", True)
    events = wait_for_events(artifacts, "promoted", "aliased")
    assert (events[1]["payload"]["alias"], events[1]["payload"]["from"]) == ("staging", None)


@field_fault(
    "failure without a message",
    "A person promotes a version while no server answers",
    "The move is logged, and the next flow run sends its event",
)
def test_a_move_without_a_server_is_sent_by_the_next_run(artifacts: Path) -> None:
    set_alias(store_of(artifacts), 3, "staging", "a test")
    assert stored_events(artifacts) == []
    promote_version(version="staging", reason="a test", artifacts_dir=artifacts)
    wait_for_events(artifacts, "aliased", "promoted")


def _promote_and_hang(artifacts: Path, url: str, when: str) -> None:
    """Promote version 1, and hang before or after the API has accepted its event."""

    def send(events: Sequence[dict[str, Any]]) -> None:
        if when == "after":
            send_events(events)
        (artifacts / "hangs").touch()
        time.sleep(600)

    champion.verify = StoredVersion.check  # loading the model takes seconds
    with temporary_settings({PREFECT_API_URL: url}):
        promote(store_of(artifacts), 1, "a test")
        send_unsent(store_of(artifacts), send)


@pytest.mark.parametrize("when", ["before", "after"])
@field_fault(
    "state lost by a restart",
    "The process is killed between the move of an alias and its event, or just after the event",
    "The next run sends the event; the server has it once",
)
def test_the_event_of_a_killed_move_is_emitted_once(artifacts: Path, server: str, when: str) -> None:
    killed_when((artifacts / "hangs").exists, _promote_and_hang, artifacts, server, when)
    if when == "after":
        wait_for_events(artifacts, "promoted")
    rollback_champion(reason="a test", artifacts_dir=artifacts)
    wait_for_events(artifacts, "promoted", "rolled-back")


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda store: (store.folder(1) / "metrics.json").write_text("{}"), "0001/metrics.json"),
        (lambda store: store.aliases.path.write_bytes(b""), "aliases.jsonl"),
        (lambda store: None, ""),
    ],
    ids=["version", "alias log", "intact"],
)
def test_verify_store_fails_for_damage(artifacts: Path, damage: Callable[[ModelStore], object], named: str) -> None:
    damage(store_of(artifacts))
    state = verify_store(artifacts_dir=artifacts, return_state=True)
    assert state.is_failed() == bool(named)
    assert named in (state.message or "")
    if not named:
        assert state.result().versions == (1, 2, 3, 4)


@field_fault(
    "growth without bound", "Services write logs for months", "The weekly collect-garbage run rotates their logs"
)
def test_collect_garbage_rotates_the_logs_of_services(artifacts: Path) -> None:
    log = Artifacts(artifacts).service_logs / "server.log"
    log.parent.mkdir(parents=True)
    log.write_bytes(bytes(LARGEST_BYTES + 1))
    collect_garbage(artifacts_dir=artifacts)
    assert log.stat().st_size == 0


def test_collect_garbage_ends_while_a_run_is_active(artifacts: Path) -> None:
    (artifacts / "checkpoints").mkdir(exist_ok=True)
    (artifacts / "checkpoints" / f"{'0' * 64}.npz").touch()
    with artifacts_lock(artifacts):
        state = collect_garbage(artifacts_dir=artifacts, return_state=True)
    assert (state.name, state.is_completed()) == ("Run active", True)
    assert "Stage outputs are kept" in state.message
    state = collect_garbage(artifacts_dir=artifacts, return_state=True)
    assert (state.name, state.result().removed, state.result().kept_versions) == ("Completed", 1, (1, 2, 3, 4))
