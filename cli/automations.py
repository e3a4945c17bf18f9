"""Automations as code: who is told what went wrong, and what becomes of runs whose process is gone."""

import os
from collections.abc import Iterable
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

from schemas.errors import WrongUsage

if TYPE_CHECKING:
    from prefect.automations import ResourceSpecification

# A URL, which is sent JSON, or TYPE/NAME of a notification block that is on the server.
NOTIFY_VARIABLE = "FASHION_ANN_NOTIFY"

NOTIFY = "fashion-ann: tell about failed, crashed and refused runs"
MARK_DEAD = "fashion-ann: mark runs without a heartbeat crashed"
MARK_NOT_STARTED = "fashion-ann: mark runs that never start crashed"

# Three heartbeats of 30 s (prefect.yaml, pyproject.toml) and some slack. Less would crash healthy runs.
_SILENCE = timedelta(seconds=100)
# Between the worker that takes a run and the run's own first word lie the pull step and the imports.
_START = timedelta(seconds=300)
# Events carry the names of states, not their types: these are what a worker makes of a run before it runs.
_TAKEN = ("Pending", "Submitting", "InfrastructurePending")
# Not fit-model: its failure is that of the run that wanted the model, which tells it in the same words.
_TOLD_ABOUT = ("train-fashion-mnist", "predict-fashion-mnist", "watch-data")
_FLOWS = (*_TOLD_ABOUT, "fit-model")
_HEARTBEAT = "prefect.flow-run.heartbeat"
_BLOCK_NAME = "fashion-ann"

_SUBJECT = (
    "{{ flow.name }}: "
    "{% if 'CandidateRefused' in (flow_run.state.message or '') %}promotion refused"
    "{% else %}{{ flow_run.state.name | lower }}{% endif %}"
)
_BODY = (
    "Flow run {{ flow_run.name }} ({{ flow_run.id }}) of {{ flow.name }} ended as {{ flow_run.state.name }}.\n"
    "{{ flow_run.state.message }}\n"
    "{{ flow_run | ui_url }}"
)


def apply_automations() -> None:
    """Create or update every automation, one of each, on the Prefect API that is configured.

    FASHION_ANN_NOTIFY chooses where notifications go: a URL or a block. Unset it leaves them as they are, so that a
    restart from another shell silences nothing; empty it ends them. Raises `WrongUsage` for a block that is not there.
    """
    _apply(MARK_DEAD, _mark_dead())
    _apply(MARK_NOT_STARTED, _mark_not_started())
    _wait_for_what_goes_on()
    chosen = os.environ.get(NOTIFY_VARIABLE)
    if chosen is None:
        return
    if chosen.strip():
        _apply(NOTIFY, _notify(_notification_block(chosen.strip())))
    else:
        _remove(NOTIFY)


def _mark_dead() -> dict[str, Any]:
    return _crashed_unless_followed(
        "The process of a run says every 30 s that it lives. One that stops without a final state died.",
        after={_HEARTBEAT},
        expect={_HEARTBEAT, *_events(*_ended())},
        within=_SILENCE,
        message=f"No heartbeat for {_SILENCE.seconds} s: the process of this run, or its machine, is gone.",
    )


def _mark_not_started() -> dict[str, Any]:
    return _crashed_unless_followed(
        "A worker that dies between taking a run and starting it leaves it pending, with no heartbeat.",
        after=_events(*_TAKEN),
        expect=_events(
            *("Running", "Cancelling", *_ended()),
            *("Scheduled", "Late", "AwaitingConcurrencySlot", "AwaitingRetry", "Paused", "Suspended"),
        ),
        within=_START,
        message=f"Not running {_START.seconds} s after a worker took it: the worker is gone.",
    )


def _crashed_unless_followed(
    description: str, *, after: set[str], expect: set[str], within: timedelta, message: str
) -> dict[str, Any]:
    """A flow run is marked crashed that has none of the events ``expect`` in time ``within`` of one of ``after``."""
    from prefect.automations import ChangeFlowRunState, EventTrigger, Posture
    from prefect.client.schemas.objects import StateType

    return {
        "description": description,
        "trigger": EventTrigger(
            posture=Posture.Proactive,
            match={"prefect.resource.id": "prefect.flow-run.*"},
            match_related=_of_flows(_FLOWS),  # a server may have other projects, whose runs beat at their own pace
            for_each={"prefect.resource.id"},
            after=after,
            expect=expect,
            threshold=1,
            within=within,
        ),
        "actions": [ChangeFlowRunState(state=StateType.CRASHED, message=message)],
    }


def _wait_for_what_goes_on() -> None:
    """Tell both automations of every run of ours that has begun and not ended, as if it had just given a sign.

    What they wait for, the server forgets when an automation changes, and when it was away for longer than they wait:
    a run whose process died with it would be running for ever. One that lives gives its next sign itself.
    """
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import (
        FlowFilter,
        FlowFilterName,
        FlowRunFilter,
        FlowRunFilterState,
        FlowRunFilterStateType,
    )
    from prefect.client.schemas.objects import StateType
    from prefect.events import Event, RelatedResource, Resource

    (taken,) = _events(_TAKEN[0])
    signs = {StateType.PENDING: taken, StateType.RUNNING: _HEARTBEAT, StateType.CANCELLING: _HEARTBEAT}
    ours = FlowFilter(name=FlowFilterName(any_=list(_FLOWS)))
    with get_client(sync_client=True) as client:
        flows = {flow.id: flow.name for flow in client.read_flows(flow_filter=ours)}
        going_on = client.read_flow_runs(
            flow_filter=ours,
            flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[*signs]))),
        )
        events = [
            Event(
                event=signs[run.state_type],
                resource=Resource({"prefect.resource.id": f"prefect.flow-run.{run.id}"}),
                related=[
                    RelatedResource(
                        {
                            "prefect.resource.id": f"prefect.flow.{run.flow_id}",
                            "prefect.resource.role": "flow",
                            "prefect.resource.name": flows[run.flow_id],
                        }
                    )
                ],
            )
            for run in going_on
            if run.state_type is not None
        ]
        if events:
            client.request("POST", "/events", json=[event.model_dump(mode="json") for event in events])


def _notify(block: UUID) -> dict[str, Any]:
    from prefect.automations import EventTrigger, Posture, SendNotification

    return {
        "description": "Failed, crashed, or the new version was refused, which is a failed run, too.",
        "trigger": EventTrigger(
            posture=Posture.Reactive,
            match={"prefect.resource.id": "prefect.flow-run.*"},
            match_related=_of_flows(_TOLD_ABOUT),
            expect=_events("Failed", "Crashed"),
            threshold=1,
            within=timedelta(0),
        ),
        "actions": [SendNotification(block_document_id=block, subject=_SUBJECT, body=_BODY)],
    }


def _of_flows(names: Iterable[str]) -> "ResourceSpecification":
    from prefect.automations import ResourceSpecification

    return ResourceSpecification({"prefect.resource.role": "flow", "prefect.resource.name": list(names)})


def _ended() -> tuple[str, ...]:
    """The names of all states that our runs end in."""
    from flows.states import NOTHING_NEW, SUPERSEDED

    return ("Completed", NOTHING_NEW, SUPERSEDED, "Failed", "Cancelled", "Crashed")


def _events(*states: str) -> set[str]:
    return {f"prefect.flow-run.{state}" for state in states}


def _notification_block(chosen: str) -> UUID:
    """The id of the block that ``chosen`` names, or of the one made for the URL that it is."""
    from prefect.blocks.notifications import CustomWebhookNotificationBlock
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound

    if chosen.startswith(("http://", "https://")):
        block = CustomWebhookNotificationBlock(
            name=_BLOCK_NAME, url=chosen, json_data={"subject": "{{subject}}", "body": "{{body}}"}
        )
        saved = block.save(_BLOCK_NAME, overwrite=True)
        if not isinstance(saved, UUID):
            raise TypeError(f"Prefect was expected to return the block's id, it returned {saved!r}.")
        return saved
    kind, _, name = chosen.partition("/")
    with get_client(sync_client=True) as client:
        try:
            return client.read_block_document_by_name(name, kind).id
        except ObjectNotFound as error:
            raise WrongUsage(
                f"{NOTIFY_VARIABLE} names the block {chosen}, which the Prefect API does not have. Expected a URL that "
                "starts with http:// or https://, or TYPE/NAME as `prefect block ls` lists it, such as "
                "slack-webhook/team."
            ) from error


def _apply(name: str, automation: dict[str, Any]) -> None:
    from prefect.automations import AutomationCore
    from prefect.client.orchestration import get_client

    wanted = AutomationCore(name=name, **automation)
    with get_client(sync_client=True) as client:
        there = client.read_automations_by_name(name)
        if not there:
            client.create_automation(wanted)
            return
        # A change makes the server forget what it waits for.
        if there[0].model_dump(exclude={"id"}) != wanted.model_dump():
            client.update_automation(there[0].id, wanted)
        for extra in there[1:]:  # of two that deployed at once
            client.delete_automation(extra.id)


def _remove(name: str) -> None:
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        for automation in client.read_automations_by_name(name):
            client.delete_automation(automation.id)
