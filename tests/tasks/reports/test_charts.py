import base64
import io
import math

import numpy as np
import pytest
from PIL import Image

from tasks.reports.charts import epochs_chart, png_uri, reliability_chart, weights_picture


def _opened(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/png;base64,"))))


def test_a_png_holds_the_pixels_that_were_given() -> None:
    pixels = np.arange(24, dtype=np.uint8).reshape(4, 6) * 10
    assert np.array_equal(np.asarray(_opened(png_uri(pixels))), pixels)


def test_weights_are_tiles_in_the_order_of_the_units_and_lighter_as_they_grow() -> None:
    kernel = np.zeros((6, 3), np.float32)  # three units that see 2 x 3 pixels
    kernel[:, 1] = [-1, -0.5, 0, 0.5, 1, 1]
    drawn = weights_picture(kernel, 2, 3, columns=2)
    picture = _opened(drawn.uri).convert("LA")
    assert picture.size == (drawn.width, drawn.height) == (3 + 2 + 3, 2 + 2 + 2)
    grey = np.asarray(picture)[:, :, 0].astype(int)
    second = grey[0:2, 5:8].ravel()
    assert (np.diff(second)[:4] > 0).all()
    assert second[2] == grey[0, 0]  # zero has one shade, whatever the unit
    opaque = np.asarray(picture)[:, :, 1]
    assert not opaque[:, 3:5].any()
    assert not opaque[4:, 5:].any()  # there is no fourth unit
    assert drawn.bound == 1


def test_weights_of_zeros_can_be_drawn() -> None:
    assert math.isfinite(weights_picture(np.zeros((4, 2), np.float32), 2, 2).bound)


@pytest.mark.parametrize("epochs", [1, 2, 12, 45, 1000])
def test_every_epoch_is_a_point_within_the_axes_and_lower_values_are_lower_down(epochs: int) -> None:
    values = [1 / epoch for epoch in range(1, epochs + 1)]
    chart = epochs_chart({"train": values, "validation": [2 * value for value in values]}, "loss")
    train, _ = chart.lines
    points = [[tuple(map(float, point.split(","))) for point in line.path.split()] for line in chart.lines]
    assert [len(line) for line in points] == [epochs, epochs]
    for x, y in (*points[0], *points[1]):
        assert chart.left - 0.1 <= x <= chart.right + 0.1
        assert chart.top - 0.1 <= y <= chart.bottom + 0.1
    assert all(one[1] > two[1] for one, two in zip(*points, strict=True))
    # Thousands of dots would be the page, and none could be told from the next.
    assert [len(line.dots) for line in chart.lines] == ([epochs, epochs] if epochs <= 200 else [0, 0])
    if epochs <= 200:
        assert [(round(dot.x, 1), round(dot.y, 1)) for dot in train.dots] == points[0]
        assert train.dots[0].says == "train, epoch 1: loss 1.0000"
    assert 1 <= len(chart.x_ticks) <= 12
    assert 2 <= len(chart.y_ticks) <= 8
    # Where a tick says 1, there the value 1 is drawn.
    assert [tick.at for tick in chart.y_ticks if float(tick.label) == 1] == pytest.approx([points[0][0][1]], abs=0.05)


def test_a_value_that_never_changes_is_drawn() -> None:
    chart = epochs_chart({"train": [0.5, 0.5]}, "loss")
    assert chart.top <= chart.lines[0].dots[0].y <= chart.bottom
    assert epochs_chart({"train": [0.0]}, "loss").lines[0].dots


def test_bars_of_the_reliability_chart_are_as_high_as_the_accuracy() -> None:
    bins = [
        {"from": 0.4, "to": 0.6, "rows": 10, "confidence": 0.5, "accuracy": 0.25},
        {"from": 0.8, "to": 1.0, "rows": 40, "confidence": 0.9, "accuracy": 1.0},
    ]
    drawn = reliability_chart(bins)
    low, high = drawn.bars
    whole = drawn.chart.bottom - drawn.chart.top
    assert (drawn.chart.bottom - low.y) / whole == pytest.approx(0.25)
    assert (drawn.chart.bottom - low.confidence_y) / whole == pytest.approx(0.5)
    assert high.y == drawn.chart.top
    assert low.rows_height / high.rows_height == pytest.approx(1 / 4)
    assert "10 rows" in low.says
