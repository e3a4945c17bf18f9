import re
from xml.etree import ElementTree

import pytest

from tasks.reports.charts import draw_confusion_matrix, draw_learning_curves, epochs_chart


@pytest.mark.parametrize("epochs", [1, 2, 12, 45, 1000])
def test_chart_has_a_point_per_epoch(epochs: int) -> None:
    values = [1 / epoch for epoch in range(1, epochs + 1)]
    chart = epochs_chart({"train": values, "validation": [2 * value for value in values]})
    train, validation = (chart.points(name) for name in chart.lines)
    assert len(train) == len(validation) == epochs
    for x, y in (*train, *validation):
        assert chart.x.start <= x <= chart.x.end
        assert chart.y.end <= y <= chart.y.start
    assert all(one[1] > two[1] for one, two in zip(train, validation, strict=True))  # lower values are lower
    assert 1 <= len(chart.x.ticks) <= 12
    assert 2 <= len(chart.y.ticks) <= 8
    # The tick labelled 1 is at the height of the value 1.
    assert [chart.y.at(value) for label, value in chart.y.ticks.items() if float(label) == 1] == [
        pytest.approx(train[0][1])
    ]


@pytest.mark.parametrize("values", [[0.5, 0.5], [0.0]])
def test_draws_a_constant_value(values: list[float]) -> None:
    chart = epochs_chart({"train": values})
    assert chart.y.end <= chart.points("train")[0][1] <= chart.y.start


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


@pytest.mark.parametrize("classes", [3, 10, 24, 256])
@pytest.mark.parametrize(
    "name", ["{}", "a class with a name of many letters, {}", "\u304a\u304a\u304a\u304a\u304a\u304a{}"]
)
def test_a_confusion_matrix_of_many_classes_is_not_cut(classes: int, name: str) -> None:
    names = [name.format(number) for number in range(classes)]
    svg = ElementTree.fromstring(draw_confusion_matrix([[12_345] * classes] * classes, names))  # noqa: S314
    width, height = float(svg.attrib["width"]), float(svg.attrib["height"])
    longest = max(sum(12 if ord(letter) > 0x2E80 else 7 for letter in name) for name in names)
    for text in svg.iter("{http://www.w3.org/2000/svg}text"):
        if "transform" in text.attrib:
            x, y = map(float, re.findall(r"[\d.]+", text.attrib["transform"])[:2])
            assert x + longest * 0.82 <= width
            assert y - longest * 0.58 >= 60  # below the title
        elif text.attrib.get("text-anchor") == "end":
            assert float(text.attrib["x"]) - longest >= 0
    for cell in svg.iter("{http://www.w3.org/2000/svg}rect"):
        if "height" in cell.attrib and cell.attrib["height"] != "100%":
            assert float(cell.attrib["x"]) + float(cell.attrib["width"]) <= width
            assert float(cell.attrib["y"]) + float(cell.attrib["height"]) <= height


@pytest.mark.parametrize("epochs", [2, 200, 201])
def test_draws_learning_curves(epochs: int) -> None:
    epoch = {"loss": 0.5, "accuracy": 0.8, "val_loss": 0.6, "val_accuracy": 0.7}
    svg = draw_learning_curves([epoch, {**epoch, "loss": 0.4}] + [epoch] * (epochs - 2))
    assert {"Loss", "Accuracy", "validation", "epoch"} < set(_texts(svg))
    assert svg.count("<polyline") == 4
    # With more epochs the dots would overlap and dominate the size of the page.
    assert svg.count("<circle") == (4 * epochs if epochs <= 200 else 0)
    assert ("<title>train, epoch 2: loss 0.4000</title>" in svg) is (epochs <= 200)
    points = [point.split(",") for point in re.findall(r'points="([^"]*)"', svg)[0].split()]
    assert len(points) == epochs
    assert {x for x, _ in points[:1]} == {"46.0"}
    assert float(points[1][1]) > float(points[0][1])  # a lower loss is lower
