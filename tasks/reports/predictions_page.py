"""Write predictions.html: the predictions of each day and version, in one page that a browser opens offline."""

from collections.abc import Sequence
from datetime import date, datetime
from pathlib import Path
from typing import Any

from schemas.contract import DatasetContract
from schemas.layout import PREDICTIONS_PAGE_NAME, Artifacts
from schemas.references import CheckResult, WatchedDay
from tasks.checks.summary import sentences
from tasks.reports.charts import Chart, days_chart
from tasks.reports.rendering import render
from tasks.runtime.files import atomic_write, sweep_temporaries

DRIFT, CLASSES = "prediction_drift", "prediction_classes"


def write_predictions_page(
    artifacts_dir: Path, contract: DatasetContract, days: Sequence[WatchedDay], now: datetime
) -> Path:
    """Write the page of all ``days``, oldest first, atomically, and return its path. It loads no other file."""
    page = Artifacts(artifacts_dir).predictions / contract.name / PREDICTIONS_PAGE_NAME
    own = [day for day in days if day.shadow_of is None]
    html = render(
        "watched.html",
        contract=contract,
        days=list(reversed(own)),
        shadows=[day for day in reversed(days) if day.shadow_of is not None],
        drifted=[(day, sentences(day.checks)) for day in reversed(own) if day.drifted],
        rows=sum(day.rows for day in own),
        labelled=sum(day.measured.labelled for day in own if day.measured is not None),
        written=now.isoformat(sep=" ", timespec="minutes"),
        accuracy=_accuracy_chart(own),
        drift=_drift_chart(own, contract),
        drift_bound=contract.check(DRIFT).warn,
        result=check_of,
    )
    page.parent.mkdir(parents=True, exist_ok=True)
    sweep_temporaries(page)
    with atomic_write(page) as temporary:
        temporary.write_text(html, encoding="utf-8")
    return page


def check_of(day: WatchedDay, name: str) -> CheckResult | None:
    """Return the check of a day with this name, None if it was not measured. A failure comes before a warning."""
    return next((check for check in reversed(day.checks) if check.check == name), None)


def day_row(day: WatchedDay) -> dict[str, Any]:
    """Return the figures of a day as a row of a table."""
    estimated, measured, paired = day.estimated, day.measured, day.paired
    return {
        "day": day.day,
        "version": str(day.version) if day.shadow_of is None else f"{day.version}, shadow of {day.shadow_of}",
        "rows": day.rows,
        "drift": _figure(check_of(day, DRIFT)),
        "p-value of classes": _figure(check_of(day, CLASSES)),
        "estimated accuracy": None if estimated is None else _accuracy(estimated.accuracy, estimated.interval),
        "measured accuracy": None if measured is None else _accuracy(measured.accuracy, measured.interval),
        "labels": 0 if measured is None else measured.labelled,
        "result": "; ".join(sentences(day.checks)) or day.note or "within the bounds",
        **(
            {}
            if paired is None
            else {"paired": f"{paired.fixed} fixed, {paired.broken} broken, p {paired.p_value:.3g}"}
        ),
    }


def _figure(check: CheckResult | None) -> str | None:
    return None if check is None else f"{check.figure:.3g}"


def _accuracy(value: float, interval: Sequence[float]) -> str:
    return f"{value:.4f} ({interval[0]:.4f} to {interval[1]:.4f})"


def _accuracy_chart(days: Sequence[WatchedDay]) -> Chart | None:
    """Return the chart of estimated and measured accuracies, None without one."""
    found = [part for day in days for part in (day.estimated, day.measured) if part is not None]
    if not found:
        return None
    ends = [end for part in found for end in part.interval]
    return days_chart([date.fromisoformat(day.day) for day in days], ends)


def _drift_chart(days: Sequence[WatchedDay], contract: DatasetContract) -> Chart | None:
    """Return the chart of the drift with its bound, None if no day has one."""
    values = [check.figure for day in days if (check := check_of(day, DRIFT)) is not None]
    if not values:
        return None
    bound = contract.check(DRIFT).warn or 0.0
    return days_chart([date.fromisoformat(day.day) for day in days], [0.0, bound, *values])
