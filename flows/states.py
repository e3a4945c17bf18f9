"""Final states with names of their own, and the hook that enables the logging of tasks.

The names appear in the UI, in the output of `--watch` and in the events that automations match.
"""

import logging
from pathlib import Path

from prefect import Flow, State
from prefect.client.schemas.objects import FlowRun
from prefect.states import Cancelled, Completed

from schemas.references import Garbage, ModelVersion, WatchedData

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
    """Send the log records of our tasks, from DEBUG on, to the flow run's log.

    Prefect's own setting would apply to all loggers, and httpx logs each request to the API at INFO.
    """
    logging.getLogger("tasks").setLevel(logging.DEBUG)
