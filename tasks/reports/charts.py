"""Compute charts as coordinates for inline SVG, and draw the two pictures of Prefect's UI.

The templates draw the charts. SVG is sharp at any size, uses the colours of the page and needs no charting library.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, floor, log10

import numpy as np

from tasks.reports.rendering import render

# More dots would overlap, and each adds 150 bytes to the page.
_MAX_DOTS = 200
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 400, 250, 46, 390, 12, 208


@dataclass(frozen=True)
class Tick:
    """A label at a coordinate of an axis."""

    at: float
    label: str


@dataclass(frozen=True)
class Dot:
    """A point of a line, with its tooltip."""

    x: float
    y: float
    text: str


@dataclass(frozen=True)
class Line:
    """A line of a chart. ``path`` is the points attribute of an SVG polyline."""

    name: str
    path: str
    dots: tuple[Dot, ...]


@dataclass(frozen=True)
class Chart:
    """A chart of ``width`` x ``height``. The axes cross at (``left``, ``bottom``) and end at ``right`` and ``top``."""

    width: int
    height: int
    left: int
    right: int
    top: int
    bottom: int
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    lines: tuple[Line, ...]


def epochs_chart(series: Mapping[str, Sequence[float]], quantity: str) -> Chart:
    """Return a chart with one line per series of values by epoch, starting at epoch 1. Up to 200 epochs have dots."""
    epochs = max(len(values) for values in series.values())
    everything = [value for values in series.values() for value in values]
    low, high, step = _axis_range(min(everything), max(everything))

    def x(epoch: float) -> float:
        return _LEFT + (_RIGHT - _LEFT) * ((epoch - 1) / (epochs - 1) if epochs > 1 else 0.5)

    def y(value: float) -> float:
        return _BOTTOM - (_BOTTOM - _TOP) * (value - low) / (high - low)

    digits = max(0, -floor(log10(step)))
    return Chart(
        *(_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM),
        x_ticks=tuple(Tick(x(epoch), str(epoch)) for epoch in _labelled_epochs(epochs)),
        y_ticks=tuple(
            Tick(y(value), f"{value:.{digits}f}") for value in np.arange(low, high + step / 2, step).tolist()
        ),
        lines=tuple(
            Line(
                name,
                " ".join(f"{x(epoch):.1f},{y(value):.1f}" for epoch, value in enumerate(values, start=1)),
                tuple(
                    Dot(x(epoch), y(value), f"{name}, epoch {epoch}: {quantity} {value:.4f}")
                    for epoch, value in enumerate(values, start=1)
                    if epochs <= _MAX_DOTS
                ),
            )
            for name, values in series.items()
        ),
    )


def _labelled_epochs(epochs: int) -> list[int]:
    step = max(1, int(_round_step(epochs / 6)))
    return sorted({1, *range(step, epochs + 1, step)})


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
        name: epochs_chart(
            {"train": [e[name] for e in history], "validation": [e[f"val_{name}"] for e in history]}, name
        )
        for name in ("loss", "accuracy")
    }


def draw_learning_curves(history: Sequence[Mapping[str, float]]) -> str:
    """Return an SVG picture of `learning_charts`."""
    return render("learning_curves.svg", charts=learning_charts(history))


def draw_confusion_matrix(matrix: Sequence[Sequence[int]], class_names: Sequence[str]) -> str:
    """Return an SVG picture of a confusion matrix, true classes as rows."""
    return render("confusion_matrix.svg", matrix=matrix, class_names=class_names, rows=sum(map(sum, matrix)))


@dataclass(frozen=True)
class Bar:
    """A calibration bin: a bar from (x, y) down to the axis, a mark for the confidence, a second bar for the rows."""

    x: float
    width: float
    y: float
    confidence_y: float
    rows_height: float
    text: str


@dataclass(frozen=True)
class Reliability:
    """A reliability diagram: accuracy by confidence. A perfectly calibrated model is on the diagonal."""

    chart: Chart
    bars: tuple[Bar, ...]


def reliability_chart(bins: Sequence[Mapping[str, float]]) -> Reliability:
    """Return the diagram of the bins of `tasks.model.metrics.calibration_bins`."""

    def x(share: float) -> float:
        return _LEFT + (_RIGHT - _LEFT) * share

    def y(share: float) -> float:
        return _BOTTOM - (_BOTTOM - _TOP) * share

    most_rows = max(bin_["rows"] for bin_ in bins)
    ticks = [step / 5 for step in range(6)]
    chart = Chart(
        *(_WIDTH, _HEIGHT + 60, _LEFT, _RIGHT, _TOP, _BOTTOM),
        x_ticks=tuple(Tick(x(share), f"{share:.1f}") for share in ticks),
        y_ticks=tuple(Tick(y(share), f"{share:.1f}") for share in ticks),
        lines=(),
    )
    bars = tuple(
        Bar(
            x=x(bin_["from"]) + 1,
            width=x(bin_["to"]) - x(bin_["from"]) - 2,
            y=y(bin_["accuracy"]),
            confidence_y=y(bin_["confidence"]),
            rows_height=40 * bin_["rows"] / most_rows,
            text=f"confidence {bin_['from']:.2f} to {bin_['to']:.2f}: {int(bin_['rows'])} rows, "
            f"mean confidence {bin_['confidence']:.3f}, accuracy {bin_['accuracy']:.3f}",
        )
        for bin_ in bins
    )
    return Reliability(chart, bars)
