"""Define automations: notify about failures and missing runs, and mark runs of dead processes as crashed."""

import os
from collections.abc import Iterable
from datetime import timedelta
from hashlib import sha256
from typing import Any
from uuid import UUID

from prefect.automations import (
    AutomationCore,
    ChangeFlowRunState,
    CompoundTrigger,
    EventTrigger,
    Posture,
    ResourceSpecification,
    SendNotification,
    SequenceTrigger,
)
from prefect.blocks.notifications import CustomWebhookNotificationBlock
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowFilter, FlowRunFilter
from prefect.client.schemas.objects import StateType
from prefect.events import TriggerTypes
from prefect.exceptions import ObjectNotFound

from cli.deploy import flow_names, pool_names
from cli.last_deploy import LastDeploy, Report
from flows.states import NOTHING_NEW, RUN_ACTIVE, SUPERSEDED, WAITING, flow_run_event
from schemas.config import PROGRAM
from schemas.errors import WrongUsage
from tasks.registry import version_events
from tasks.runtime.prefect_events import send_events
from tasks.watch_predictions import DAY_LABEL, EVENT, PREFIX

# A URL that receives JSON, or TYPE/NAME of a notification block on the server.
NOTIFY_VARIABLE = "FASHION_ANN_NOTIFY"

NOTIFY = "fashion-ann: notify about failed, crashed and rejected runs"
NOTIFY_WAITING = "fashion-ann: notify about versions that wait for approval"
NOTIFY_DRIFTED = "fashion-ann: notify about drifted predictions"
NOTIFY_LATE = "fashion-ann: notify about late runs"
NOTIFY_NO_NIGHTLY = "fashion-ann: notify about a nightly without a good run"
NOTIFY_NO_WORKER = "fashion-ann: notify about work pools without a worker"
REPORT_FAILED_ACTIONS = "fashion-ann: report failed actions of automations"
NOTIFICATIONS = (
    *(NOTIFY, NOTIFY_WAITING, NOTIFY_DRIFTED, NOTIFY_LATE),
    *(NOTIFY_NO_NIGHTLY, NOTIFY_NO_WORKER, REPORT_FAILED_ACTIONS),
)
MARK_DEAD = "fashion-ann: mark runs without a heartbeat crashed"
MARK_NOT_STARTED = "fashion-ann: mark runs that never start crashed"

# Three heartbeats of 30 s (prefect.yaml, pyproject.toml) and some slack. Less would mark healthy runs as crashed.
_HEARTBEAT_TIMEOUT = timedelta(seconds=100)
# Covers the pull step and the imports, between the worker's submission and the run's first state.
_START_TIMEOUT = timedelta(seconds=300)
# The states that a worker sets before the run starts. Events carry the names of states, not their types.
_SUBMITTED = ("Pending", "Submitting", "InfrastructurePending")
_FLOWS = flow_names()
# Without fit-model: the main flow's run fails with the same message.
_NOTIFIED_FLOWS = [name for name in _FLOWS if name != "fit-model"]
_FINAL_STATES = ("Completed", NOTHING_NEW, SUPERSEDED, WAITING, RUN_ACTIVE, "Failed", "Cancelled", "Crashed")
_NOT_STARTED = ("Scheduled", "Late", "AwaitingConcurrencySlot", "AwaitingRetry", "Paused", "Suspended")
_HEARTBEAT = "prefect.flow-run.heartbeat"
_FLOW_RUNS = ResourceSpecification({"prefect.resource.id": "prefect.flow-run.*"})
_NIGHTLY_FLOW, _NIGHTLY = "train-fashion-mnist", "nightly"
_BLOCK_NAME = "fashion-ann"
_RECIPIENT = "recipient"

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
_WAITING_SUBJECT = "{{ event.payload.dataset }}: version {{ event.payload.version }} waits for approval"
_WAITING_BODY = (
    "{{ event.payload.reason }}\n"
    "Test accuracy {{ event.payload.accuracy }}, p {{ event.payload.p }}, champion {{ event.payload.from }}.\n"
    "Report: {{ event.payload.report }}\n"
    f"Promote it in the checkout: {PROGRAM} promote {{{{ event.payload.version }}}} "
    "--dataset {{ event.payload.dataset }} --reason R\n"
    "Or run the deployment promote-version/by-hand."
)


def apply_automations(report: Report | None = None) -> None:
    """Create or update each automation once, on the configured Prefect API. An operator's edits stay.

    FASHION_ANN_NOTIFY is the recipient of notifications: a URL or a block. An empty value removes the notifications.
    If unset, the recipient stays as it is, so that a restart from another shell does not remove them.

    Raises `WrongUsage` if the block does not exist.
    """
    automations = [
        _crashed_unless_followed(
            MARK_DEAD,
            "A run emits a heartbeat every 30 s. If they stop before a final state, its process has died.",
            after={_HEARTBEAT, *_events("Running")},
            expect={_HEARTBEAT, *_events(*_FINAL_STATES, *_NOT_STARTED)},
            within=_HEARTBEAT_TIMEOUT,
            message=f"No heartbeat for {_HEARTBEAT_TIMEOUT.seconds} s: the process or its machine has probably died.",
        ),
        _crashed_unless_followed(
            MARK_NOT_STARTED,
            "A worker that dies before it starts a run that it picked up leaves the run pending, without a heartbeat.",
            after=_events(*_SUBMITTED),
            expect=_events("Running", "Cancelling", *_FINAL_STATES, *_NOT_STARTED),
            within=_START_TIMEOUT,
            message=f"Not running {_START_TIMEOUT.seconds} s after a worker picked it up: the worker probably died.",
        ),
    ]
    with get_client(sync_client=True) as client:
        last = LastDeploy(client, report or Report(), "automations", "cli/automations.py")
        if not any(client.read_automations_by_name(name) for name in (MARK_DEAD, MARK_NOT_STARTED, *NOTIFICATIONS)):
            last.parts = {}  # all were deleted, which is no decision on a single one
        if (block := _recipient(client, last)) is not None:
            automations += [
                *(
                    _notify(block),
                    _notify_waiting(block),
                    notify_drifted(block),
                    notify_late(block),
                    notify_no_nightly(block),
                ),
                *(notify_no_worker(block), report_failed_actions(block)),
            ]
        apply_automations_of(client, last, automations)
        last.save()
    _rearm_for_active_runs()


def apply_automations_of(client: SyncPrefectClient, last: LastDeploy, automations: Iterable[AutomationCore]) -> None:
    """Create or update automations, and delete those of the last deploy that are no longer among them."""
    kind = "automation "
    for expected in automations:
        existing = client.read_automations_by_name(expected.name)
        updates = last.updates(kind + expected.name, _fields(existing[0]) if existing else None, _fields(expected))
        # Only if it differs: with an update the server loses the runs that it watches.
        if updates and existing:
            merged = existing[0].model_dump(exclude={"id", "owner_resource"}) | updates
            client.update_automation(existing[0].id, AutomationCore.model_validate(merged))
        elif updates:
            client.create_automation(expected)
        for duplicate in existing[1:]:  # two deploys at once may each have created one
            client.delete_automation(duplicate.id)
    for part in last.leftover(kind):
        for automation in client.read_automations_by_name(part.removeprefix(kind)):
            if last.removes(part, _fields(automation)):
                client.delete_automation(automation.id)


def _fields(automation: AutomationCore) -> dict[str, Any]:
    return automation.model_dump(include={"enabled", "description", "trigger", "actions"})


def _recipient(client: SyncPrefectClient, last: LastDeploy) -> UUID | None:
    """Return the block that sends notifications, None without a recipient."""
    recipient = os.environ.get(NOTIFY_VARIABLE)
    known = last.remembered(_RECIPIENT) if last.parts or last.report.reset else {}
    if recipient is None:
        if known:
            last.remember(_RECIPIENT, known)
        return UUID(known["block"]) if known else None
    if not recipient.strip():
        for name in NOTIFICATIONS:
            for automation in client.read_automations_by_name(name):
                client.delete_automation(automation.id)
                last.report.changed.append(f"automation {name}: deleted, because {NOTIFY_VARIABLE} is empty")
        return None
    digest = sha256(recipient.strip().encode()).hexdigest()
    # An operator may have edited the block since.
    same = known.get("digest") == digest and not last.report.reset
    block = UUID(known["block"]) if same else _notification_block(recipient.strip())
    last.remember(_RECIPIENT, {"block": str(block), "digest": digest})
    return block


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
            flow_run_event(last_events[run.state_type], run, flows[run.flow_id])
            for run in client.read_flow_runs(flow_filter=our_flows, flow_run_filter=active)
            if run.state_type is not None
        ]
    send_events(events)


def _notification(
    block: UUID, *, name: str, description: str, trigger: TriggerTypes, subject: str, body: str
) -> AutomationCore:
    """Return an automation that sends a message to the recipient ``block``, with Jinja templates."""
    return AutomationCore(
        name=name,
        description=description,
        trigger=trigger,
        actions=[SendNotification(block_document_id=block, subject=subject, body=body)],
    )


def _notify(block: UUID) -> AutomationCore:
    return _notification(
        block,
        name=NOTIFY,
        description="A run failed or crashed. A rejected version is a failed run, too. Runs that keep failing "
        "with the same message cause one notification per hour and flow.",
        trigger=EventTrigger(
            posture=Posture.Reactive,
            match=_FLOW_RUNS,
            match_related=_of_flows(_NOTIFIED_FLOWS),
            expect=_events("Failed", "Crashed"),
            for_each={"related:flow:prefect.resource.id", "prefect.state-message"},
            threshold=1,
            within=timedelta(hours=1),
        ),
        subject=_SUBJECT,
        body=_BODY,
    )


def _once(prefix: str, event: str, label: str) -> EventTrigger:
    """Return a trigger for an event of each resource ``prefix.*``, once per value of its label.

    An event that is sent again after a kill has the same labels, and causes no second message.
    """
    return EventTrigger(
        posture=Posture.Reactive,
        match=ResourceSpecification({"prefect.resource.id": f"{prefix}.*"}),
        for_each={"prefect.resource.id", label},
        expect={event},
        threshold=1,
        within=timedelta(days=1),
    )


def _notify_waiting(block: UUID) -> AutomationCore:
    return _notification(
        block,
        name=NOTIFY_WAITING,
        description="A better version waits for a person, a signature or its shadow.",
        trigger=_once(version_events.PREFIX, version_events.WAITING, version_events.DIGEST_LABEL),
        subject=_WAITING_SUBJECT,
        body=_WAITING_BODY,
    )


def notify_drifted(block: UUID) -> AutomationCore:
    """Return the automation that reports predictions beyond a bound, once per day and version."""
    return _notification(
        block,
        name=NOTIFY_DRIFTED,
        description="The predictions of a day are beyond a bound of the dataset.",
        trigger=_once(PREFIX, EVENT, DAY_LABEL),
        subject="{{ event.payload.dataset }}: predictions of version {{ event.payload.version }} drifted",
        body="{{ event.payload.rows }} rows of {{ event.payload.day }}:\n"
        "{{ event.payload.reasons | join('\n') }}\n"
        "Page: {{ event.payload.page }}",
    )


def notify_late(block: UUID, within: timedelta = timedelta(minutes=10)) -> AutomationCore:
    """Return the automation that reports a run that is still late after ``within``, once per outage."""
    late = EventTrigger(
        posture=Posture.Proactive,
        match=_FLOW_RUNS,
        match_related=_of_flows(_FLOWS),
        for_each={"prefect.resource.id"},
        after=_events("Late"),
        expect=_events("Running", "Cancelling", *_SUBMITTED, *_FINAL_STATES, *_NOT_STARTED) - _events("Late"),
        threshold=1,
        within=within,
    )
    minutes = round(within.total_seconds() / 60)
    return _notification(
        block,
        name=NOTIFY_LATE,
        description="No worker has picked up a run in time. The next message follows once a run has started.",
        trigger=_once_until(_events("Running"), late, _events("Late"), [_of_flows(_FLOWS)]),
        subject="{{ flow.name }}: late",
        body="Flow run {{ event.resource.name }} of {{ flow.name }} is late by more than "
        f"{minutes} minutes: no worker has picked it up. Check its work pool, its limits and its workers.\n"
        "{{ flow_run | ui_url }}",
    )


def notify_no_nightly(block: UUID, within: timedelta = timedelta(hours=26)) -> AutomationCore:
    """Return the automation that reports, once, that no run of nightly has ended well for ``within``.

    In that time a run must have been late or have ended badly: a nightly that an operator paused has no such run.
    """
    nightly = [_of_flows([_NIGHTLY_FLOW]), _related("deployment", [_NIGHTLY])]
    good, bad = _events("Completed", NOTHING_NEW, WAITING), _events("Late", "Failed", "Crashed", "Cancelled")
    overdue = EventTrigger(
        posture=Posture.Proactive,
        match=_FLOW_RUNS,
        match_related=nightly,
        for_each={"related:deployment:prefect.resource.name"},  # without it, Prefect would wait before there is a run
        after=good | bad | _events("Pending"),
        expect=good,
        threshold=1,
        within=within,
    )
    missing = CompoundTrigger(require="all", triggers=[overdue, _one_of(bad, nightly)], within=within)
    hours = round(within.total_seconds() / 3600)
    return _notification(
        block,
        name=NOTIFY_NO_NIGHTLY,
        description=f"Neither Completed, {NOTHING_NEW} nor {WAITING}. The next message follows after a good run.",
        trigger=_once_until(good, missing, bad, nightly),
        subject=f"{_NIGHTLY}: no good run for {hours} hours",
        body=f"No run of {_NIGHTLY_FLOW}/{_NIGHTLY} has ended as Completed, {NOTHING_NEW} or {WAITING} for "
        f"{hours} hours. "
        "Its last runs were late, or failed, crashed or were cancelled.\n{{ flow | ui_url }}",
    )


def _once_until(
    recovered: set[str], incident: TriggerTypes, signs: set[str], related: list[ResourceSpecification]
) -> SequenceTrigger:
    """Return a trigger that fires once for all incidents until an event of ``recovered``, then again.

    ``signs`` of an incident count as an event of ``recovered`` once per week: on a new server there is none yet.
    """
    first = CompoundTrigger(
        require="any", triggers=[_one_of(recovered, related), _one_of(signs, related, timedelta(days=7))]
    )
    return SequenceTrigger(triggers=[first, incident])


def _one_of(events: set[str], related: list[ResourceSpecification], once_per: timedelta = timedelta(0)) -> EventTrigger:
    return EventTrigger(
        posture=Posture.Reactive,
        match=_FLOW_RUNS,
        match_related=related,
        expect=events,
        threshold=1,
        within=once_per,
    )


def notify_no_worker(block: UUID, within: timedelta = timedelta(minutes=5)) -> AutomationCore:
    """Return the automation that reports a pool whose workers are all offline for ``within``.

    A paused pool is not reported, because the server gives it another status. Nor is one that never had a worker.
    """
    minutes = round(within.total_seconds() / 60)
    return _notification(
        block,
        name=NOTIFY_NO_WORKER,
        description="The server marks a pool as not ready if its workers have sent no heartbeat for 90 s.",
        trigger=EventTrigger(
            posture=Posture.Proactive,
            match=ResourceSpecification(
                {"prefect.resource.id": "prefect.work-pool.*", "prefect.resource.name": list(pool_names().values())}
            ),
            for_each={"prefect.resource.id"},
            after={"prefect.work-pool.not-ready"},
            expect={"prefect.work-pool.ready", "prefect.work-pool.paused"},
            threshold=1,
            within=within,
        ),
        subject="work pool {{ event.resource.name }}: no worker",
        body=f"Work pool {{{{ event.resource.name }}}} has had no online worker for {minutes} minutes. Its "
        "runs wait. Start a worker, for example with `fashion-ann up`, or pause the pool.\n"
        "{{ work_pool | ui_url }}",
    )


def report_failed_actions(block: UUID) -> AutomationCore:
    """Return the automation that reports each failed action of our automations, which the server only logs."""
    return _notification(
        block,
        name=REPORT_FAILED_ACTIONS,
        description="For example, an event of new data with an invalid digest starts no run.",
        trigger=EventTrigger(
            posture=Posture.Reactive,
            match=ResourceSpecification(
                {
                    "prefect.resource.id": "prefect.automation.*",
                    # Without this automation: a recipient that does not answer would trigger it without end. Without
                    # those that mark runs crashed: after a restart of the server they try it with runs that have ended.
                    "prefect.resource.name": ["fashion-ann: notify *", "train-fashion-mnist *"],
                }
            ),
            expect={"prefect.automation.action.failed"},
            threshold=1,
            within=timedelta(0),
        ),
        subject="{{ event.resource.name }}: action failed",
        body="Automation {{ event.resource.name }} was triggered, but its action "
        "{{ event.payload.action_type }} failed: {{ event.payload.reason }}\n{{ event | ui_url }}",
    )


def _of_flows(names: Iterable[str]) -> ResourceSpecification:
    return _related("flow", names)


def _related(role: str, names: Iterable[str]) -> ResourceSpecification:
    return ResourceSpecification({"prefect.resource.role": role, "prefect.resource.name": list(names)})


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
