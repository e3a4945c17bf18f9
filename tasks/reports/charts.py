"""Scale charts for inline SVG, and draw the two pictures of Prefect's UI.

The templates draw the charts. SVG is sharp at any size, uses the colours of the page and needs no charting library.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from itertools import pairwise
from math import ceil, floor, log10
from unicodedata import east_asian_width

import numpy as np
import numpy.typing as npt

from tasks.reports.rendering import render

_SMALLEST_CELL = 14  # the height of a name
_X, _Y = (46, 390), (208, 12)  # where the axes start and end


@dataclass(frozen=True)
class Axis:
    """A linear scale: ``low`` is at the coordinate ``start``, ``high`` at ``end``. ticks: values by their label."""

    low: float
    high: float
    start: int
    end: int
    ticks: Mapping[str, float]

    def at(self, value: float) -> float:
        return self.start + (self.end - self.start) * (value - self.low) / (self.high - self.low)


@dataclass(frozen=True)
class Chart:
    """A chart of ``width`` x ``height``, with axes that cross where both start.

    lines: values by epoch, from 1, or those of a curve.
    """

    x: Axis
    y: Axis
    lines: Mapping[str, Sequence[float]] = field(default_factory=dict)
    width: int = 400
    height: int = 250

    def points(self, name: str) -> list[tuple[float, float]]:
        """Return the coordinates of a line's values."""
        return [(self.x.at(epoch), self.y.at(value)) for epoch, value in enumerate(self.lines[name], start=1)]


_SHARES = {f"{step / 5:.1f}": step / 5 for step in range(6)}
# Accuracy by confidence, with bars for the rows below the axis. A perfectly calibrated model is on the diagonal.
RELIABILITY_CHART = Chart(Axis(0, 1, *_X, _SHARES), Axis(0, 1, *_Y, _SHARES), height=310)


def epochs_chart(lines: Mapping[str, Sequence[float]]) -> Chart:
    """Return a chart with one line per series of values by epoch, starting at epoch 1."""
    epochs = max(len(values) for values in lines.values())
    everything = [value for values in lines.values() for value in values]
    labelled = max(1, int(_round_step(epochs / 6)))
    x_ticks = {str(epoch): epoch for epoch in sorted({1, *range(labelled, epochs + 1, labelled)})}
    first, last = (1, epochs) if epochs > 1 else (0, 2)  # one epoch is in the middle
    return Chart(Axis(first, last, *_X, x_ticks), _value_axis(everything), lines)


def curve_chart(precision: npt.NDArray[np.float64], recall: npt.NDArray[np.float64]) -> Chart:
    """Return a small chart of precision by recall. ``lines``: recall and precision of up to 100 points of the curve.

    Each value of recall has its highest precision, as in a curve with all points.
    """
    places = np.minimum((recall * 99).astype(np.int64), 99)
    starts = np.flatnonzero(np.diff(places, prepend=-1))
    best = [start + int(precision[start:end].argmax()) for start, end in pairwise([*starts.tolist(), len(places)])]
    shares = {f"{step / 2:.1f}": step / 2 for step in range(3)}
    lines = {"recall": recall[best].tolist(), "precision": precision[best].tolist()}
    return Chart(Axis(0, 1, 30, 190, shares), Axis(0, 1, 130, 10, shares), lines, width=200, height=170)


def time_chart(times: Sequence[float], values: Sequence[float]) -> Chart:
    """Return a wide chart of values by time, in seconds since 1970. It has room for a strip below the axis of time."""
    first, last = min(times), max(times)
    span = last - first
    day, clock = ("%Y-%m-%d", "") if span > 5 * 86_400 else ("%m-%d ", "%H:%M") if span > 600 else ("", "%H:%M:%S")
    places = [first + span * step / 4 for step in range(5)] if span else [first]
    ticks = {datetime.fromtimestamp(place, UTC).strftime(day + clock): place for place in places}
    margin = span / 25 or 1  # the newest champion is in use from the last time on
    return Chart(Axis(first - margin, last + margin, 46, 790, ticks), _value_axis(values), width=800, height=290)


def _value_axis(values: Sequence[float]) -> Axis:
    low, high, step = _axis_range(min(values), max(values))
    digits = max(0, -floor(log10(step)))
    return Axis(
        low, high, *_Y, {f"{value:.{digits}f}": value for value in np.arange(low, high + step / 2, step).tolist()}
    )


def days_chart(days: Sequence[date], values: Sequence[float]) -> Chart:
    """Return a chart of ``values`` by day. ``days`` are those of the axis, at least one."""
    first, last = min(days).toordinal(), max(days).toordinal()
    distance = max(1, ceil((last - first) / 5))
    x_ticks = {date.fromordinal(day).strftime("%m-%d"): float(day) for day in range(first, last + 1, distance)}
    return Chart(Axis(first - 0.5, last + 0.5, *_X, x_ticks), _value_axis(values))


def _axis_range(low: float, high: float) -> tuple[float, float, float]:
    """Return rounded bounds of an axis for values from ``low`` to ``high``, and the distance between ticks."""
    step = _round_step((high - low) / 4 or abs(high) / 4 or 1)
    low, high = floor(low / step) * step, ceil(high / step) * step
    return low, high if high > low else low + step, step


def _round_step(step: float) -> float:
    """Return the smallest of 1, 2, 5, 10, 20, .. (also 0.1, 0.2, ..) that is not below ``step``."""
    power = 10.0 ** floor(log10(step))
    return float(next(factor * power for factor in (1, 2, 5, 10) if factor * power >= step * 0.999999))


def learning_charts(history: Sequence[Mapping[str, float]]) -> dict[str, Chart]:
    """Return charts of loss and accuracy, training and validation, from the metrics of each epoch."""
    return {
        name: epochs_chart({"train": [e[name] for e in history], "validation": [e[f"val_{name}"] for e in history]})
        for name in ("loss", "accuracy")
    }


def draw_learning_curves(history: Sequence[Mapping[str, float]]) -> str:
    """Return an SVG picture of `learning_charts`."""
    return render("learning_curves.svg", charts=learning_charts(history))


def draw_confusion_matrix(matrix: Sequence[Sequence[int]], class_names: Sequence[str]) -> str:
    """Return an SVG picture of a confusion matrix, true classes as rows."""
    count = len(class_names)
    name = max(_text_width(name) for name in class_names)
    return render(
        "confusion_matrix.svg",
        matrix=matrix,
        class_names=class_names,
        rows=sum(map(sum, matrix)),
        cell=max(_SMALLEST_CELL, min(56, 1_000 // count)),  # of many classes the picture is not much wider
        left=max(116, name + 26),
        # The names of the columns rise to the right at 35 degrees.
        top=max(128, 80 + name * 6 // 10),
        right=max(40, name * 9 // 10 - 10),
    )


def _text_width(text: str) -> int:
    """Return an upper bound of the width of a text of 12 pixels."""
    return sum(13 if east_asian_width(character) in "WF" else 8 for character in text)
