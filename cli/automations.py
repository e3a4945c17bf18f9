"""Automations as code: notify about failed runs, and mark runs as crashed whose process has died."""

import os
from collections.abc import Iterable
from datetime import timedelta
from uuid import UUID

from prefect.automations import (
    AutomationCore,
    ChangeFlowRunState,
    EventTrigger,
    Posture,
    ResourceSpecification,
    SendNotification,
)
from prefect.blocks.notifications import CustomWebhookNotificationBlock
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowFilter, FlowRunFilter
from prefect.client.schemas.objects import StateType
from prefect.events import Event
from prefect.exceptions import ObjectNotFound

from flows.states import NOTHING_NEW, SUPERSEDED
from schemas.errors import WrongUsage

# A URL that receives JSON, or TYPE/NAME of a notification block on the server.
NOTIFY_VARIABLE = "FASHION_ANN_NOTIFY"

NOTIFY = "fashion-ann: notify about failed, crashed and rejected runs"
MARK_DEAD = "fashion-ann: mark runs without a heartbeat crashed"
MARK_NOT_STARTED = "fashion-ann: mark runs that never start crashed"

# Three heartbeats of 30 s (prefect.yaml, pyproject.toml) and some slack. Less would mark healthy runs as crashed.
_HEARTBEAT_TIMEOUT = timedelta(seconds=100)
# Covers the pull step and the imports, between the worker's submission and the run's first state.
_START_TIMEOUT = timedelta(seconds=300)
# The states that a worker sets before the run starts. Events carry the names of states, not their types.
_SUBMITTED = ("Pending", "Submitting", "InfrastructurePending")
# Without fit-model: the main flow's run fails with the same message.
_NOTIFIED_FLOWS = ("train-fashion-mnist", "predict-fashion-mnist", "watch-data")
_FLOWS = (*_NOTIFIED_FLOWS, "fit-model")
_FINAL_STATES = ("Completed", NOTHING_NEW, SUPERSEDED, "Failed", "Cancelled", "Crashed")
_HEARTBEAT = "prefect.flow-run.heartbeat"
_FLOW_RUNS = ResourceSpecification({"prefect.resource.id": "prefect.flow-run.*"})
_BLOCK_NAME = "fashion-ann"

_SUBJECT = (
    "{{ flow.name }}: "
    "{% if 'CandidateRejected' in (flow_run.state.message or '') %}version rejected"
    "{% else %}{{ flow_run.state.name | lower }}{% endif %}"
)
_BODY = (
    "Flow run {{ flow_run.name }} ({{ flow_run.id }}) of {{ flow.name }} ended as {{ flow_run.state.name }}.\n"
    "{{ flow_run.state.message }}\n"
    "{{ flow_run | ui_url }}"
)


def apply_automations() -> None:
    """Create or update each automation once, on the configured Prefect API.

    FASHION_ANN_NOTIFY is the recipient of notifications: a URL or a block. An empty value removes the notification.
    If unset, the notification stays as it is, so that a restart from another shell does not remove it.

    Raises `WrongUsage` if the block does not exist.
    """
    _apply(
        _crashed_unless_followed(
            MARK_DEAD,
            "A run emits a heartbeat every 30 s. If they stop before a final state, its process has died.",
            after={_HEARTBEAT, *_events("Running")},
            expect={_HEARTBEAT, *_events(*_FINAL_STATES)},
            within=_HEARTBEAT_TIMEOUT,
            message=f"No heartbeat for {_HEARTBEAT_TIMEOUT.seconds} s: the process or its machine has probably died.",
        )
    )
    _apply(
        _crashed_unless_followed(
            MARK_NOT_STARTED,
            "A worker that dies before it starts a run that it picked up leaves the run pending, without a heartbeat.",
            after=_events(*_SUBMITTED),
            expect=_events(
                *("Running", "Cancelling", *_FINAL_STATES),
                *("Scheduled", "Late", "AwaitingConcurrencySlot", "AwaitingRetry", "Paused", "Suspended"),
            ),
            within=_START_TIMEOUT,
            message=f"Not running {_START_TIMEOUT.seconds} s after a worker picked it up: the worker probably died.",
        )
    )
    _rearm_for_active_runs()
    recipient = os.environ.get(NOTIFY_VARIABLE)
    if recipient is None:
        return
    if recipient.strip():
        _apply(_notify(_notification_block(recipient.strip())))
    else:
        with get_client(sync_client=True) as client:
            for automation in client.read_automations_by_name(NOTIFY):
                client.delete_automation(automation.id)


def _crashed_unless_followed(
    name: str, description: str, *, after: set[str], expect: set[str], within: timedelta, message: str
) -> AutomationCore:
    """Return an automation that marks a flow run as crashed if no event of ``expect`` follows one of ``after``."""
    return AutomationCore(
        name=name,
        description=description,
        trigger=EventTrigger(
            posture=Posture.Proactive,
            match=_FLOW_RUNS,
            match_related=_of_flows(_FLOWS),  # runs of other projects on the server have other heartbeat intervals
            for_each={"prefect.resource.id"},
            after=after,
            expect=expect,
            threshold=1,
            within=within,
        ),
        actions=[ChangeFlowRunState(state=StateType.CRASHED, message=message)],
    )


def _rearm_for_active_runs() -> None:
    """Re-emit the last event of every active run, so that both automations watch it again.

    The server loses what it waits for when an automation changes. A run whose process died would stay Running for ever.
    A live run emits its next heartbeat itself.
    """
    (submitted,) = _events(_SUBMITTED[0])
    last_events = {StateType.PENDING: submitted, StateType.RUNNING: _HEARTBEAT, StateType.CANCELLING: _HEARTBEAT}
    our_flows = FlowFilter.model_validate({"name": {"any_": _FLOWS}})
    active = FlowRunFilter.model_validate({"state": {"type": {"any_": [*last_events]}}})
    with get_client(sync_client=True) as client:
        flows = {flow.id: flow.name for flow in client.read_flows(flow_filter=our_flows)}
        events = [
            Event.model_validate(
                {
                    "event": last_events[run.state_type],
                    "resource": {"prefect.resource.id": f"prefect.flow-run.{run.id}"},
                    "related": [
                        {
                            "prefect.resource.id": f"prefect.flow.{run.flow_id}",
                            "prefect.resource.role": "flow",
                            "prefect.resource.name": flows[run.flow_id],
                        }
                    ],
                }
            )
            for run in client.read_flow_runs(flow_filter=our_flows, flow_run_filter=active)
            if run.state_type is not None
        ]
        if events:
            client.request("POST", "/events", json=[event.model_dump(mode="json") for event in events])


def _notify(block: UUID) -> AutomationCore:
    return AutomationCore(
        name=NOTIFY,
        description="A run failed or crashed. A rejected version is a failed run, too.",
        trigger=EventTrigger(
            posture=Posture.Reactive,
            match=_FLOW_RUNS,
            match_related=_of_flows(_NOTIFIED_FLOWS),
            expect=_events("Failed", "Crashed"),
            threshold=1,
            within=timedelta(0),
        ),
        actions=[SendNotification(block_document_id=block, subject=_SUBJECT, body=_BODY)],
    )


def _of_flows(names: Iterable[str]) -> ResourceSpecification:
    return ResourceSpecification({"prefect.resource.role": "flow", "prefect.resource.name": list(names)})


def _events(*states: str) -> set[str]:
    return {f"prefect.flow-run.{state}" for state in states}


def _notification_block(recipient: str) -> UUID:
    """Return the id of the named block, or of a block created for a URL."""
    if recipient.startswith(("http://", "https://")):
        block = CustomWebhookNotificationBlock(
            name=_BLOCK_NAME, url=recipient, json_data={"subject": "{{subject}}", "body": "{{body}}"}
        )
        saved = block.save(_BLOCK_NAME, overwrite=True)
        if not isinstance(saved, UUID):
            raise TypeError(f"Prefect was expected to return the block's id, it returned {saved!r}.")
        return saved
    kind, _, name = recipient.partition("/")
    with get_client(sync_client=True) as client:
        try:
            return client.read_block_document_by_name(name, kind).id
        except ObjectNotFound as error:
            raise WrongUsage(
                f"{NOTIFY_VARIABLE} names the block {recipient}, which the Prefect API does not have. Expected a URL "
                "that starts with http:// or https://, or TYPE/NAME as listed by `prefect block ls`, for example "
                "slack-webhook/team."
            ) from error


def _apply(expected: AutomationCore) -> None:
    with get_client(sync_client=True) as client:
        existing = client.read_automations_by_name(expected.name)
        if not existing:
            client.create_automation(expected)
            return
        # Only if it differs: with an update the server loses the runs that it watches.
        if existing[0].model_dump(exclude={"id"}) != expected.model_dump():
            client.update_automation(existing[0].id, expected)
        for duplicate in existing[1:]:  # two deploys at once may each have created one
            client.delete_automation(duplicate.id)
