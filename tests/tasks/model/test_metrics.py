from typing import Any

import numpy as np
import pytest
import sklearn.metrics

from schemas.contract import DatasetContract
from tasks.model.inference import StoredModelOutput
from tasks.model.metrics import (
    average_precision,
    brightness_slices,
    calibration_bins,
    compute_metrics,
    expected_calibration_error,
    precision_recall,
)


def _metrics(probabilities: Any, labels: list[int], contract: DatasetContract, in_train: list[int]) -> dict[str, Any]:
    output = StoredModelOutput(0.0, 0.25, probabilities, np.array(labels, np.int32))
    return compute_metrics(output, np.array(in_train, np.uint8), [{"loss": 1.0}], contract)


def test_metrics_of_six_rows_match_hand_calculation(tiny_contract: DatasetContract) -> None:
    predicted = [0, 0, 1, 1, 1, 0]
    probabilities = np.full((6, 3), 0.1, dtype=np.float32)
    probabilities[range(6), predicted] = 0.8
    metrics = _metrics(probabilities, [0, 0, 0, 1, 1, 2], tiny_contract, [0] * 6)
    assert (metrics["test_loss"], metrics["test_rows"], metrics["history"]) == (0.25, 6, [{"loss": 1.0}])
    assert metrics["test_accuracy"] == pytest.approx(4 / 6)
    assert metrics["confusion_matrix"] == [[2, 1, 0], [0, 2, 0], [1, 0, 0]]
    per_class = {name: [row[name] for row in metrics["per_class"]] for name in ("precision", "recall", "f1", "rows")}
    assert per_class["precision"] == pytest.approx([2 / 3, 2 / 3, 0])
    assert per_class["recall"] == pytest.approx([2 / 3, 1, 0])
    assert per_class["f1"] == pytest.approx([2 / 3, 0.8, 0])
    assert per_class["rows"] == [3, 2, 1]
    # Wilson, 1927, worked with z = 1.959964: (p + z²/2n ± z sqrt(p(1 - p)/n + z²/4n²)) / (1 + z²/n).
    assert metrics["test_accuracy_interval"] == pytest.approx((0.3000, 0.9032), abs=1e-4)
    assert metrics["per_class"][2]["recall_interval"] == pytest.approx((0, 0.7935), abs=1e-4)
    # One bin: confidence 0.8, accuracy 4/6.
    assert metrics["expected_calibration_error"] == pytest.approx(0.8 - 4 / 6, abs=1e-6)


def test_a_class_without_rows_has_no_interval(tiny_contract: DatasetContract) -> None:
    metrics = _metrics(np.eye(3, dtype=np.float32)[[0, 1]], [0, 1], tiny_contract, [0, 0])
    for name in ("recall_interval", "average_precision"):
        assert [row[name] is None for row in metrics["per_class"]] == [False, False, True]


def test_calibration_error_weights_bins_by_rows() -> None:
    confidence = np.array([0.95, 0.95, 0.95, 0.55], dtype=np.float32)
    bins = calibration_bins(confidence, np.array([True, True, False, False]))
    assert [entry["rows"] for entry in bins] == [1, 3]
    expected = 1 / 4 * 0.55 + 3 / 4 * (0.95 - 2 / 3)
    assert expected_calibration_error(bins) == pytest.approx(expected, abs=1e-6)


def test_full_confidence_is_in_the_last_bin() -> None:
    assert calibration_bins(np.array([1.0], dtype=np.float32), np.array([True]))[0]["to"] == 1.0


@pytest.mark.parametrize(
    ("in_train", "rows", "accuracy"),
    [([2, 0, 1, 0], 2, 0.5), ([0, 0, 0, 2], 3, 2 / 3), ([2, 2, 2, 2], 0, None)],
    ids=["exact and near", "exact", "no row left"],
)
def test_duplicates_of_training_images_are_excluded(
    in_train: list[int], rows: int, accuracy: float | None, tiny_contract: DatasetContract
) -> None:
    probabilities = np.eye(3, dtype=np.float32)[[0, 1, 1, 0]]
    metrics = _metrics(probabilities, [0, 1, 0, 1], tiny_contract, in_train)  # the first two are predicted correctly
    assert (metrics["test_rows_without_duplicates"], metrics["test_accuracy_without_duplicates"]) == (rows, accuracy)


def test_precision_and_recall_equal_those_of_scikit_learn() -> None:
    generator = np.random.default_rng(0)
    positive = generator.random(200) < 0.3
    scores = (generator.integers(0, 20, 200) / 20).astype(np.float32)  # many equal ones
    precision, recall, _ = sklearn.metrics.precision_recall_curve(positive, scores)
    ours = precision_recall(scores, positive)
    # scikit-learn starts at the lowest threshold, and ends with a point without one.
    assert ours[0][::-1] == pytest.approx(precision[:-1])
    assert ours[1][::-1] == pytest.approx(recall[:-1])
    assert average_precision(scores, positive) == pytest.approx(
        sklearn.metrics.average_precision_score(positive, scores)
    )


def test_slices_by_brightness_are_fifths() -> None:
    correct = np.array([False] * 5 + [True] * 20)
    slices = brightness_slices(np.arange(25)[::-1] * 1.0, correct[::-1])
    assert [(entry["from"], entry["to"], entry["rows"], entry["accuracy"]) for entry in slices] == [
        *((0, 4, 5, 0), (5, 9, 5, 1), (10, 14, 5, 1), (15, 19, 5, 1), (20, 24, 5, 1))
    ]
    # Wilson's interval of 0 of 5.
    assert slices[0]["accuracy_interval"] == pytest.approx((0, 0.4345), abs=1e-4)


def test_equal_brightness_is_one_slice() -> None:
    (only,) = brightness_slices(np.full(7, 3.0), np.array([True] * 7))
    assert (only["from"], only["to"], only["rows"]) == (3, 3, 7)
