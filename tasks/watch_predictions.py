"""Watch the predictions of each day and version, and emit an event for those that are beyond a bound."""

import logging
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from prefect import task
from prefect.cache_policies import NO_CACHE

from schemas.contract import contract_of
from schemas.layout import Artifacts
from schemas.references import WatchedDay, WatchedPredictions
from tasks.checks.summary import sentences
from tasks.registry.store import ModelStore
from tasks.registry.watched_predictions import watched_days
from tasks.reports.predictions_page import day_row, write_predictions_page
from tasks.runtime.prefect_artifacts import publish_file_link, publish_table
from tasks.runtime.prefect_events import announce, read_announced, sender_of_run

logger = logging.getLogger(__name__)

PREFIX = "fashion-ann.predictions"
EVENT = f"{PREFIX}.drifted"
# With it a notification is sent per day and version, and none for an event that is sent again.
DAY_LABEL = f"{PREFIX}.day"


@task(name="watch predictions", cache_policy=NO_CACHE)
def watch(dataset: str, days: int, artifacts_dir: Path, now: datetime) -> WatchedPredictions:
    """Compare the predictions of the last ``days`` days with the versions that predicted, and write the page.

    now: the current time, in UTC.

    A day and version beyond a bound emits `EVENT` once. After a kill it may be sent again, with the same id: the server
    stores it once.
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
    send = sender_of_run()
    known = read_announced(memory, lambda content: set(map(str, content["announced"])), set[str]())
    new = [day for day in drifted if day.name not in known]
    for day in new:
        logger.warning("%s: %s", day.name, "; ".join(sentences(day.checks)))
    if send is None or not new:
        return []
    content = {"announced": sorted(known | {day.name for day in new})}
    announce([_event(day, page) for day in new], memory, content, send)
    return [day.name for day in new]


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
