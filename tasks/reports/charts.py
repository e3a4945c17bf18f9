"""Figures and pictures for reports: an interval, charts as numbers for inline SVG, images as PNG data URIs.

Charts are drawn by the templates, so that they are sharp at any size, follow the colours of the page and cost no
charting library.
"""

import base64
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, floor, log10

import numpy as np
import numpy.typing as npt

# Dark blue over grey to yellow, each lighter than the one before: it says more or less in print, and to whoever sees no
# colours. After cividis: Nunez, Anderton and Renslow, "Optimizing colormaps with consideration for color vision
# deficiency", PLoS ONE 13, 2018.
_SCALE = ((0, 32, 77), (59, 73, 108), (124, 123, 120), (187, 174, 109), (255, 234, 70))
# Pixels between two tiles.
_GAP = 2
# More would run into each other, and each is 150 bytes of the page.
_MOST_DOTS = 200


def png_uri(pixels: npt.NDArray[np.uint8], palette: npt.NDArray[np.uint8] | None = None) -> str:
    """A PNG as a data URI, from uint8 (height, width): grey levels, or places in a palette uint8 (255, 3).

    With a palette 255 is transparent.
    """
    height, width = pixels.shape
    # Each line begins with the number of its filter, 0 for none.
    lines = np.zeros((height, width + 1), np.uint8)
    lines[:, 1:] = pixels
    parts = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0 if palette is None else 3, 0, 0, 0)),
        *([(b"PLTE", palette.tobytes() + bytes(3)), (b"tRNS", b"\xff" * 255 + b"\0")] if palette is not None else []),
        (b"IDAT", zlib.compress(lines.tobytes(), 9)),
        (b"IEND", b""),
    ]
    chunks = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    ]
    return "data:image/png;base64," + base64.b64encode(b"\x89PNG\r\n\x1a\n" + b"".join(chunks)).decode("ascii")


@dataclass(frozen=True)
class WeightsPicture:
    """One tile a hidden unit in a grid of ``columns``; the shades run from -``bound`` to ``bound``."""

    uri: str
    width: int
    height: int
    columns: int
    bound: float
    scale_uri: str


def weights_picture(kernel: npt.NDArray[np.float32], height: int, width: int, columns: int = 16) -> WeightsPicture:
    """The weights that lead into each unit, float32 (height * width, units), each unit as an image.

    The few largest weights of all, one in 200, share the last shade: they would leave the others grey.
    """
    units = kernel.shape[1]
    bound = float(np.quantile(np.abs(kernel), 0.995)) or 1.0
    shades = np.rint((np.clip(kernel / bound, -1, 1) + 1) / 2 * 254).astype(np.uint8)
    rows = ceil(units / columns)
    down, across = height + _GAP, width + _GAP
    sheet = np.full((rows * down - _GAP, columns * across - _GAP), 255, np.uint8)
    for unit in range(units):
        top, left = unit // columns * down, unit % columns * across
        sheet[top : top + height, left : left + width] = shades[:, unit].reshape(height, width)
    anchors = np.array(_SCALE, dtype=np.float64)
    places = np.linspace(0, len(_SCALE) - 1, 255)
    channels = [np.interp(places, range(len(_SCALE)), anchors[:, part]) for part in range(3)]
    palette = np.rint(np.column_stack(channels)).astype(np.uint8)
    return WeightsPicture(
        uri=png_uri(sheet, palette),
        width=sheet.shape[1],
        height=sheet.shape[0],
        columns=columns,
        bound=bound,
        scale_uri=png_uri(np.arange(255, dtype=np.uint8)[None, :], palette),
    )


@dataclass(frozen=True)
class Tick:
    """A labelled place on an axis, in the units of the drawing."""

    at: float
    label: str


@dataclass(frozen=True)
class Dot:
    """A point of a line, with what it says in words."""

    x: float
    y: float
    says: str


@dataclass(frozen=True)
class Line:
    """``path``: x,y of every value, as an SVG has it. ``dots``: each with its words, none where there are too many."""

    name: str
    path: str
    dots: tuple[Dot, ...]


@dataclass(frozen=True)
class Chart:
    """A drawing of ``width`` x ``height``: the axes cross at (``left``, ``bottom``) and reach ``right`` and ``top``."""

    width: int
    height: int
    left: int
    right: int
    top: int
    bottom: int
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    lines: tuple[Line, ...]


_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 400, 250, 46, 390, 12, 208


def epochs_chart(series: Mapping[str, Sequence[float]], figure: str) -> Chart:
    """One line a series of values by epoch, the first of which is epoch 1; with dots up to 200 epochs."""
    epochs = max(len(values) for values in series.values())
    everything = [value for values in series.values() for value in values]
    low, high, step = _bounds(min(everything), max(everything))

    def x(epoch: float) -> float:
        return _LEFT + (_RIGHT - _LEFT) * ((epoch - 1) / (epochs - 1) if epochs > 1 else 0.5)

    def y(value: float) -> float:
        return _BOTTOM - (_BOTTOM - _TOP) * (value - low) / (high - low)

    digits = max(0, -floor(log10(step)))
    return Chart(
        *(_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM),
        x_ticks=tuple(Tick(x(epoch), str(epoch)) for epoch in _epochs_named(epochs)),
        y_ticks=tuple(
            Tick(y(value), f"{value:.{digits}f}") for value in np.arange(low, high + step / 2, step).tolist()
        ),
        lines=tuple(
            Line(
                name,
                " ".join(f"{x(epoch):.1f},{y(value):.1f}" for epoch, value in enumerate(values, start=1)),
                tuple(
                    Dot(x(epoch), y(value), f"{name}, epoch {epoch}: {figure} {value:.4f}")
                    for epoch, value in enumerate(values, start=1)
                    if epochs <= _MOST_DOTS
                ),
            )
            for name, values in series.items()
        ),
    )


def _epochs_named(epochs: int) -> list[int]:
    step = max(1, int(_nice(epochs / 6)))
    return sorted({1, *range(step, epochs + 1, step)})


def _bounds(low: float, high: float) -> tuple[float, float, float]:
    """Round bounds around two values, and the step between ticks."""
    step = _nice((high - low) / 4 or abs(high) / 4 or 1)
    low, high = floor(low / step) * step, ceil(high / step) * step
    return low, high if high > low else low + step, step


def _nice(step: float) -> float:
    """The next of 1, 2, 5, 10, 20, .. from ``step`` on."""
    power = 10.0 ** floor(log10(step))
    return float(next(factor * power for factor in (1, 2, 5, 10) if factor * power >= step * 0.999999))


@dataclass(frozen=True)
class Bar:
    """Confidence and accuracy of one bin, as a bar from x, y down to the axis, and its share of the rows below."""

    x: float
    width: float
    y: float
    confidence_y: float
    rows_height: float
    says: str


@dataclass(frozen=True)
class Reliability:
    """How often the model is right by how sure it is; the diagonal would be exactly as often as it says."""

    chart: Chart
    bars: tuple[Bar, ...]


def reliability_chart(bins: Sequence[Mapping[str, float]]) -> Reliability:
    """From `tasks.model.metrics.calibration_bins`: each with from, to, rows, confidence and accuracy."""

    def x(share: float) -> float:
        return _LEFT + (_RIGHT - _LEFT) * share

    def y(share: float) -> float:
        return _BOTTOM - (_BOTTOM - _TOP) * share

    most = max(bin_["rows"] for bin_ in bins)
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
            rows_height=40 * bin_["rows"] / most,
            says=f"confidence {bin_['from']:.2f} to {bin_['to']:.2f}: {int(bin_['rows'])} rows, "
            f"mean confidence {bin_['confidence']:.3f}, right {bin_['accuracy']:.3f}",
        )
        for bin_ in bins
    )
    return Reliability(chart, bars)
