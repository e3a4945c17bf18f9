"""Each automation that notifies, on a real server: its cause, one message, and no message without the cause."""

import json
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect.automations import AutomationCore
from prefect.client.schemas.actions import WorkPoolUpdate
from prefect.states import Completed, Failed, Scheduled, State

from cli.automations import NOTIFY, notify_late, notify_no_nightly, notify_no_worker
from flows.states import NOTHING_NEW
from tests.deployed.conftest import Deployed
from tests.deployed.test_events import emit
from tests.field_faults import field_fault

NIGHTLY, WATCH = "train-fashion-mnist/nightly", "watch-data/scheduled"
SOON = timedelta(seconds=10)  # the least that Prefect accepts
Messages = list[dict[str, str]]
Shorten = Callable[[AutomationCore], None]


@pytest.fixture
def block(deployed: Deployed) -> UUID:
    (notify,) = deployed.client.read_automations_by_name(NOTIFY)
    action: Any = notify.actions[0]
    return UUID(str(action.block_document_id))


@pytest.fixture
def messages(webhook: tuple[str, Messages]) -> Iterator[Messages]:
    webhook[1].clear()
    yield webhook[1]
    webhook[1].clear()


def wait_for_message(
    deployed: Deployed, messages: Messages, subject: str, number: int = 1, quiet: float = 20
) -> dict[str, str]:
    """Wait for a message, and return the only one that follows the ``number`` - 1 earlier ones."""
    deployed.wait_for(lambda: len(of(messages, subject)) >= number, seconds=120)
    time.sleep(quiet)  # a repetition would come in that time
    assert len(of(messages, subject)) == number, messages
    return of(messages, subject)[-1]


def of(messages: Messages, subject: str) -> Messages:
    return [message for message in messages if message["subject"] == subject]


@pytest.fixture
def shorten(deployed: Deployed) -> Iterator[Shorten]:
    """Replace a deployed automation by one that waits for a shorter time, and restore it after the test."""
    replaced = []

    def shorten(automation: AutomationCore) -> None:
        (existing,) = deployed.client.read_automations_by_name(automation.name)
        replaced.append(existing)
        deployed.client.update_automation(existing.id, complete(automation))

    yield shorten
    for existing in replaced:
        deployed.client.update_automation(existing.id, complete(existing))


def complete(automation: AutomationCore) -> AutomationCore:
    """Return the body of an update: the client sends only fields that were set."""
    return AutomationCore.model_validate(automation.model_dump(exclude={"id", "owner_resource"}))


@field_fault(
    "failure without a message",
    "An uploader's event has its digest in capitals, or names an unknown dataset",
    "A message reports the rejected event with its reason",
)
@pytest.mark.parametrize(
    ("payload", "resource", "reason"),
    [
        pytest.param(
            {"digest": "A" * 64},
            "fashion-ann.data.fashion-mnist",
            "data_digest",
            id="digest-in-capitals",
        ),
        pytest.param(
            {},
            "fashion-ann.data.cifar",
            "dataset",
            id="unknown-dataset",
        ),
    ],
)
def test_failed_action_is_notified(
    deployed: Deployed, messages: Messages, payload: dict[str, Any], resource: str, reason: str
) -> None:
    emit(deployed, payload, resource)
    message = wait_for_message(deployed, messages, "train-fashion-mnist on new data: action failed")
    assert "Validation error" in message["body"]
    assert reason in message["body"]
    assert deployed.url.removesuffix("/api") in message["body"]


@field_fault(
    "failure without a message",
    "In two outages no worker picks up scheduled runs",
    "One message is sent per outage, for any number of late runs",
)
def test_late_runs_are_notified_once_per_outage(
    deployed: Deployed, messages: Messages, block: UUID, shorten: Shorten, tmp_path: Path
) -> None:
    shorten(notify_late(block, SOON))
    for outage in (1, 2):
        deployed.client.update_work_pool("fashion-ann-cpu", WorkPoolUpdate(concurrency_limit=0))
        runs = [deployed.start(WATCH, data_dir=str(tmp_path)) for _ in range(3)]
        message = wait_for_message(deployed, messages, "watch-data: late", outage)
        assert any(deployed.client.read_flow_run(run).name in message["body"] for run in runs)
        deployed.client.update_work_pool("fashion-ann-cpu", WorkPoolUpdate(concurrency_limit=None))
        for run in runs:
            deployed.end_of(run)


def end_nightly(deployed: Deployed, state: State[Any]) -> None:
    """Create a run of nightly that ends in the state, without a worker."""
    deployment = deployed.client.read_deployment_by_name(NIGHTLY)
    never = Scheduled(scheduled_time=datetime.now(UTC) + timedelta(days=99))
    run = deployed.client.create_flow_run_from_deployment(deployment.id, state=never)
    deployed.client.set_flow_run_state(run.id, state, force=True)


def fail_two_nights(deployed: Deployed) -> None:
    for _ in range(2):
        end_nightly(deployed, Failed(message="no data"))
        time.sleep(10)


@field_fault(
    "failure without a message",
    "`nightly` fails every night",
    "One message is sent when no run was good for 26 hours, and none while it is paused",
)
def test_nightly_without_a_good_run_is_notified_once(
    deployed: Deployed, messages: Messages, block: UUID, shorten: Shorten
) -> None:
    subject = "nightly: no good run for 0 hours"
    shorten(notify_no_nightly(block, 2 * SOON))
    fail_two_nights(deployed)  # the first ones of this server
    wait_for_message(deployed, messages, subject, quiet=40)
    fail_two_nights(deployed)
    wait_for_message(deployed, messages, subject, quiet=40)
    end_nightly(deployed, Completed(name=NOTHING_NEW))
    wait_for_message(deployed, messages, subject, quiet=40)  # as if paused: no run at all
    fail_two_nights(deployed)
    message = wait_for_message(deployed, messages, subject, 2)
    assert NIGHTLY in message["body"]
    assert f"{deployed.url.removesuffix('/api')}/flows/flow/" in message["body"]


@field_fault(
    "failure without a message",
    "The last worker of a pool is killed",
    "One message is sent, and none if the pool was paused before",
)
def test_pool_without_a_worker_is_notified_unless_paused(
    deployed: Deployed, messages: Messages, block: UUID, shorten: Shorten
) -> None:
    shorten(notify_no_worker(block, SOON))
    for number in (1, 2):
        with deployed.worker("gpu", "gpu-worker", PREFECT_WORKER_HEARTBEAT_SECONDS="1") as worker:
            deployed.wait_for(lambda: deployed.client.read_work_pool("fashion-ann-gpu").status == "READY")
            worker.kill()
            message = wait_for_message(deployed, messages, "work pool fashion-ann-gpu: no worker", number)
            assert "work-pools/work-pool/fashion-ann-gpu" in message["body"]
    with deployed.worker("gpu", "gpu-worker", PREFECT_WORKER_HEARTBEAT_SECONDS="1") as worker:
        deployed.wait_for(lambda: deployed.client.read_work_pool("fashion-ann-gpu").status == "READY")
        deployed.client.update_work_pool("fashion-ann-gpu", WorkPoolUpdate(is_paused=True))
        worker.kill()
        time.sleep(45)
        deployed.client.update_work_pool("fashion-ann-gpu", WorkPoolUpdate(is_paused=False))
    assert len(messages) == 2, json.dumps(messages)
