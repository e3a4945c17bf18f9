import re
from xml.etree import ElementTree

import pytest

from tasks.reports.charts import draw_confusion_matrix, draw_learning_curves, epochs_chart, reliability_chart


@pytest.mark.parametrize("epochs", [1, 2, 12, 45, 1000])
def test_chart_has_a_point_per_epoch(epochs: int) -> None:
    values = [1 / epoch for epoch in range(1, epochs + 1)]
    chart = epochs_chart({"train": values, "validation": [2 * value for value in values]}, "loss")
    train, _ = chart.lines
    points = [[tuple(map(float, point.split(","))) for point in line.path.split()] for line in chart.lines]
    assert [len(line) for line in points] == [epochs, epochs]
    for x, y in (*points[0], *points[1]):
        assert chart.left - 0.1 <= x <= chart.right + 0.1
        assert chart.top - 0.1 <= y <= chart.bottom + 0.1
    assert all(one[1] > two[1] for one, two in zip(*points, strict=True))  # lower values are lower on the page
    # With more epochs the dots would overlap and dominate the size of the page.
    assert [len(line.dots) for line in chart.lines] == ([epochs, epochs] if epochs <= 200 else [0, 0])
    if epochs <= 200:
        assert [(round(dot.x, 1), round(dot.y, 1)) for dot in train.dots] == points[0]
        assert train.dots[0].text == "train, epoch 1: loss 1.0000"
    assert 1 <= len(chart.x_ticks) <= 12
    assert 2 <= len(chart.y_ticks) <= 8
    # The tick labelled 1 is at the height of the value 1.
    assert [tick.at for tick in chart.y_ticks if float(tick.label) == 1] == pytest.approx([points[0][0][1]], abs=0.05)


@pytest.mark.parametrize("values", [[0.5, 0.5], [0.0]])
def test_draws_a_constant_value(values: list[float]) -> None:
    chart = epochs_chart({"train": values}, "loss")
    assert chart.top <= chart.lines[0].dots[0].y <= chart.bottom


def test_reliability_bars_are_as_high_as_the_accuracy() -> None:
    bins = [
        {"from": 0.4, "to": 0.6, "rows": 10, "confidence": 0.5, "accuracy": 0.25},
        {"from": 0.8, "to": 1.0, "rows": 40, "confidence": 0.9, "accuracy": 1.0},
    ]
    reliability = reliability_chart(bins)
    low, high = reliability.bars
    height = reliability.chart.bottom - reliability.chart.top
    assert (reliability.chart.bottom - low.y) / height == pytest.approx(0.25)
    assert (reliability.chart.bottom - low.confidence_y) / height == pytest.approx(0.5)
    assert high.y == reliability.chart.top
    assert low.rows_height / high.rows_height == pytest.approx(1 / 4)
    assert "10 rows" in low.text


def _texts(svg: str) -> list[str]:
    return ["".join(text.itertext()) for text in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]  # noqa: S314


def test_draws_a_confusion_matrix() -> None:
    svg = draw_confusion_matrix([[3, 1], [0, 1200]], ["<a & b>", "c"])
    texts = _texts(svg)
    assert texts[0] == "Confusion matrix, 1,204 test images"
    assert texts[-4:] == ["3", "1", "·", "1200"]
    assert [texts.count(name) for name in ("<a & b>", "c")] == [2, 2]
    assert re.findall(r'class="(right|wrong)" style="--share: ([\d.]+)"', svg) == [
        *(("right", "0.87"), ("wrong", "0.50"), ("right", "1.00")),
    ]


def test_draws_learning_curves() -> None:
    epoch = {"loss": 0.5, "accuracy": 0.8, "val_loss": 0.6, "val_accuracy": 0.7}
    svg = draw_learning_curves([epoch, {**epoch, "loss": 0.4}])
    assert {"Loss", "Accuracy", "validation", "epoch"} < set(_texts(svg))
    assert svg.count("<polyline") == 4
