"""The commands for watched predictions: list the days, and add labels that arrive later."""

import argparse
import sys
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from cli.arguments import Argument, Commands, counted, path_argument, print_result, read_value
from schemas.config import DEFAULT_WATCHED_DAYS, WatchedDays, artifacts_folder, expanded

if TYPE_CHECKING:
    from schemas.references import WatchedDay

commands = Commands()

_DAYS = Argument(
    "--days",
    type=int,
    default=DEFAULT_WATCHED_DAYS,
    metavar="N",
    help="last days, in UTC, that are compared (default: %(default)s)",
)


@commands.add(
    "predictions",
    _DAYS,
    help="compare the predictions of each day with the version that predicted",
    description="For each day and version: drift of the images, shift of the predicted classes, accuracy estimated "
    "without labels, and accuracy measured on labels that arrived later. Writes the page predictions.html. Sends no "
    "event; the deployment watch-predictions/hourly does.",
)
def _predictions(options: argparse.Namespace) -> None:
    from schemas.contract import contract_of
    from tasks.registry.store import ModelStore
    from tasks.registry.watched_predictions import watched_days
    from tasks.reports.predictions_page import write_predictions_page

    days, now = read_value(WatchedDays, options.days, "--days"), datetime.now(UTC)
    artifacts, contract = artifacts_folder(options.artifacts_dir), contract_of(options.dataset)
    store = ModelStore.of(artifacts, options.dataset).refresh()
    watched = watched_days(artifacts, store, contract, now, days)
    page = None
    try:
        page = write_predictions_page(artifacts, contract, watched, now)
    except OSError as error:  # a read-only folder can be looked at
        print(f"{options.prog}: warning: no page was written: {error}", file=sys.stderr)
    result = {
        "dataset": options.dataset,
        "days": [{**day.model_dump(), "drifted": day.drifted} for day in watched],
        "drifted": [day.name for day in watched if day.drifted],
        "page": page,
    }
    lines = list(_table(watched)) or [f"No predictions in the last {days} days."]
    if watched and page is not None:
        lines.append(f"  page  {page}")
    print_result(options, result, lines)


def _table(days: "Iterable[WatchedDay]") -> Iterator[str]:
    from tasks.reports.predictions_page import day_row

    for row in map(day_row, days):
        yield f"{row.pop('day')}, version {row.pop('version')}, {counted(row.pop('rows'), 'row')}: {row.pop('result')}"
        yield "  " + ", ".join(f"{name} {value}" for name, value in row.items() if value)


@commands.add(
    "label",
    Argument("labels", type=path_argument, metavar="FILE", help="a CSV or .csv.gz as for train: labels and pixels"),
    _DAYS,
    help="add labels that arrived after their images were predicted",
    description="Store the labels of a CSV, and join them with earlier and later predictions by the digest of each "
    "image. Print the measured accuracy of each day and version beside the estimated one.",
    when_stopped="No label was stored, or all were.",
)
def _label(options: argparse.Namespace) -> None:
    from schemas.contract import contract_of
    from tasks.registry.prediction_records import store_labels
    from tasks.registry.store import ModelStore
    from tasks.registry.watched_predictions import labelled_images, watched_days

    days, now = read_value(WatchedDays, options.days, "--days"), datetime.now(UTC)
    artifacts, contract = artifacts_folder(options.artifacts_dir), contract_of(options.dataset)
    labels = store_labels(expanded(options.labels), contract, artifacts, now)
    matched = len(labelled_images(artifacts, contract, labels))
    watched = watched_days(artifacts, ModelStore.of(artifacts, options.dataset).refresh(), contract, now, days)
    measured = [day for day in watched if day.measured is not None]
    result = {
        "images": len(labels),
        "matched": matched,
        "days": [
            day.model_dump(include={"day", "version", "shadow_of", "rows", "estimated", "measured", "paired"})
            for day in measured
        ],
    }
    lines = [
        f"{counted(len(labels), 'labelled image')}, of which {matched} were predicted",
        *(line for day in measured for line in _measured(day)),
    ]
    print_result(options, result, lines)


def _measured(day: "WatchedDay") -> Iterator[str]:
    measured, estimated = day.measured, day.estimated
    if measured is not None:
        low, high = measured.interval
        yield (
            f"  {day.name}: accuracy {measured.accuracy:.4f} ({low:.4f} to {high:.4f}) on {measured.labelled} of "
            f"{day.rows} rows"
            + (
                ""
                if estimated is None
                else f"; estimated {estimated.accuracy:.4f} "
                f"({estimated.interval[0]:.4f} to {estimated.interval[1]:.4f})"
            )
        )
