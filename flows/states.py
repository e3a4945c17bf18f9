"""Final states with names of their own, and the hooks that run when a flow starts.

The names appear in the UI, in the output of `--watch` and in the events that automations match.
"""

import atexit
import logging
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect import Flow, State
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.flows import FlowStateHook
from prefect.states import Cancelled, Completed

from schemas.references import Garbage, ModelVersion, WatchedData
from tasks.runtime.control_characters import escape_log_records
from tasks.runtime.prefect_events import send_events
from tasks.runtime.task_runs import end_lost_task_runs

NOTHING_NEW = "Nothing new"
SUPERSEDED = "Superseded"
WAITING = "Waiting for approval"
RUN_ACTIVE = "Run active"


def nothing_new(version: ModelVersion) -> State[ModelVersion]:
    """Return the state of a run whose data, configuration and code already have a version."""
    return Completed(
        name=NOTHING_NEW,
        message=f"Nothing new: version {version.version} already covers this data, configuration and code.",
        data=version,
    )


def end_of_training(version: ModelVersion) -> ModelVersion | State[ModelVersion]:
    """Return the result of a run that reached its last stage, in the state that fits it."""
    if not version.created:
        return nothing_new(version)
    if not version.waiting:
        return version
    return Completed(
        name=WAITING,
        message=f"Version {version.version} waits for approval. {version.verdict} Promote it with `fashion-ann promote "
        f"{version.version} --reason R` or the deployment promote-version/by-hand.",
        data=version,
    )


def run_active(garbage: Garbage) -> State[Garbage]:
    """Return the state of a garbage collection that left something because a run was active."""
    return Completed(name=RUN_ACTIVE, message=f"Run active: {' '.join(garbage.notes)}", data=garbage)


def superseded(data_dir: Path, expected: str, actual: str) -> State[ModelVersion]:
    """Return the state of a run whose data was replaced before it started. The newer data has an event of its own."""
    return Completed(
        name=SUPERSEDED,
        message=f"Superseded: {data_dir} was expected to contain the data with digest {expected}, but contains "
        f"{actual}. Nothing was trained. The newer data starts a run of its own.",
    )


def superseded_check() -> State[None]:
    """Return the state of a check for new data that waited for a worker until a later check started."""
    return Cancelled(name=SUPERSEDED, message="Superseded: a later check of the same data has started.")


def no_new_data(watched: WatchedData) -> State[WatchedData]:
    """Return the state of a watch that emitted no event."""
    content = "no complete data" if watched.digest is None else f"the data announced before, {watched.digest}"
    missing = "" if watched.missing is None else f" {watched.missing}"
    message = f"Nothing new: {watched.data_dir} contains {content}.{missing}"
    return Completed(name=NOTHING_NEW, message=message, data=watched)


def enable_task_logging(flow: Flow[..., object], flow_run: FlowRun, state: State) -> None:
    """Send the log records of our tasks, from DEBUG on, to the flow run's log, without control characters.

    Prefect's own setting would apply to all loggers, and httpx logs each request to the API at INFO.
    """
    escape_log_records()
    logging.getLogger("tasks").setLevel(logging.DEBUG)


def keep_suspended(flow: Flow[..., object], flow_run: FlowRun, state: State) -> None:
    """Repeat the event of a suspension when the process of a deployed run ends.

    A run that a person suspends goes on until its next task, with heartbeats. Without this it would then count as dead.
    """
    if flow_run.deployment_id is not None:
        atexit.register(_repeat_suspension, flow.name, flow_run.id)


def _repeat_suspension(flow_name: str, flow_run_id: UUID) -> None:
    with suppress(Exception), get_client(sync_client=True) as client:
        run = client.read_flow_run(flow_run_id)
        if run.state is not None and run.state.is_paused():
            send_events([flow_run_event(f"prefect.flow-run.{run.state.name}", run, flow_name)])


def flow_run_event(event: str, run: FlowRun, flow_name: str) -> dict[str, object]:
    """Return an event of a flow run, with the labels that our automations match."""
    related = {
        "prefect.resource.id": f"prefect.flow.{run.flow_id}",
        "prefect.resource.role": "flow",
        "prefect.resource.name": flow_name,
    }
    return {"event": event, "resource": {"prefect.resource.id": f"prefect.flow-run.{run.id}"}, "related": [related]}


def end_lost_tasks(flow: Flow[..., object], flow_run: FlowRun, state: State) -> None:
    """End the task runs of flow runs whose process was killed: by the worker at once, else by the next flow run."""
    end_lost_task_runs()


ON_RUNNING: list[FlowStateHook[..., Any]] = [enable_task_logging, keep_suspended, end_lost_tasks]
# A worker calls these when the process of a flow run was killed.
ON_KILLED: list[FlowStateHook[..., Any]] = [end_lost_tasks]
