"""Watch the predictions of each day and version, and emit an event for those that are beyond a bound."""

import logging
import os
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from prefect import task
from prefect.cache_policies import NO_CACHE

from schemas.contract import contract_of
from schemas.errors import StoredArtifactError
from schemas.layout import Artifacts
from schemas.references import WatchedDay, WatchedPredictions
from tasks.checks.summary import sentences
from tasks.registry.store import ModelStore
from tasks.registry.watched_predictions import watched_days
from tasks.reports.predictions_page import day_row, write_predictions_page
from tasks.runtime.files import atomic_write, write_json
from tasks.runtime.prefect_artifacts import publish_file_link, publish_table
from tasks.runtime.prefect_events import sender_of_run
from tasks.runtime.stored_file import read_json

logger = logging.getLogger(__name__)

PREFIX = "fashion-ann.predictions"
EVENT = f"{PREFIX}.drifted"
# With it a notification is sent per day and version, and none for an event that is sent again.
DAY_LABEL = f"{PREFIX}.day"


@task(name="watch predictions", cache_policy=NO_CACHE)
def watch(dataset: str, days: int, artifacts_dir: Path, now: datetime) -> WatchedPredictions:
    """Compare the predictions of the last ``days`` days with the versions that predicted, and write the page.

    now: the current time, in UTC.

    A day and version beyond a bound emits `EVENT` once. What was announced is stored after the server has accepted the
    events. A kill in between sends them again, with the same ids: the server stores them once.
    """
    contract, store = contract_of(dataset), ModelStore.of(artifacts_dir, dataset).refresh()
    watched = watched_days(artifacts_dir, store, contract, now, days)
    page = write_predictions_page(artifacts_dir, contract, watched, now)
    drifted = [day for day in watched if day.drifted]
    announced = _announce(drifted, Artifacts(artifacts_dir).announced / f"{dataset}-predictions.json", page)
    publish_table(
        f"{dataset}-predictions",
        [day_row(day) for day in reversed(watched)],
        f"Predictions per day and version; {len(drifted)} of {len(watched)} are beyond a bound",
    )
    publish_file_link(f"{dataset}-predictions-page", page, "All days")
    return WatchedPredictions(
        dataset=dataset,
        days=tuple(watched),
        drifted=tuple(day.name for day in drifted),
        announced=tuple(announced),
        page=page,
    )


def _announce(drifted: list[WatchedDay], memory: Path, page: Path) -> list[str]:
    """Send the events of days that were not announced yet, and return their names. Without an API none are sent."""
    send, known = sender_of_run(), _announced(memory)
    new = [day for day in drifted if day.name not in known]
    for day in new:
        logger.warning("%s: %s", day.name, "; ".join(sentences(day.checks)))
    if send is None or not new:
        return []
    memory.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(memory) as temporary:
        # First: on a full disk every run would announce the same days.
        write_json(temporary, {"announced": sorted(known | {day.name for day in new})})
        send([_event(day, page) for day in new])
    return [day.name for day in new]


def _announced(memory: Path) -> set[str]:
    """Return the names announced so far. An unreadable file counts as none: the server stores an event once."""
    try:
        return set(map(str, read_json(memory)["announced"]))
    except (StoredArtifactError, KeyError, TypeError) as error:
        if os.path.lexists(memory):
            logger.warning("%s cannot be read and is ignored: %s", memory, error)
        return set()


def _event(day: WatchedDay, page: Path) -> dict[str, Any]:
    estimated, measured = day.estimated, day.measured
    return {
        "id": str(uuid5(NAMESPACE_URL, f"{EVENT}:{day.dataset}:{day.name}")),
        "event": EVENT,
        "resource": {"prefect.resource.id": f"{PREFIX}.{day.dataset}.{day.version}", DAY_LABEL: day.day},
        "payload": {
            "dataset": day.dataset,
            "version": day.version,
            "day": day.day,
            "rows": day.rows,
            "reasons": sentences(day.checks),
            "checks": [check.model_dump() for check in day.checks],
            "estimated_accuracy": estimated and estimated.as_json(),
            "measured_accuracy": measured and measured.as_json(),
            "page": str(page),
        },
    }
