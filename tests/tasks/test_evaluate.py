import json
import math
from pathlib import Path

import numpy as np
import pytest

from schemas.contract import DatasetContract
from schemas.references import Evaluation, PreparedData, TrainedModel
from tasks.evaluate import evaluate
from tasks.model.metrics import calibration_bins, compute_metrics, expected_calibration_error, without_duplicates
from tests.plain_keras import plain_network

pytestmark = pytest.mark.usefixtures("in_this_process")


def test_figures_of_six_rows_worked_by_hand(tiny_contract: DatasetContract) -> None:
    labels = np.array([0, 0, 0, 1, 1, 2], dtype=np.int32)
    predicted = [0, 0, 1, 1, 1, 0]
    probabilities = np.full((6, 3), 0.1, dtype=np.float32)
    probabilities[range(6), predicted] = 0.8
    figures = compute_metrics(probabilities, labels, tiny_contract)
    assert figures["test_accuracy"] == pytest.approx(4 / 6)
    assert figures["confusion_matrix"] == [[2, 1, 0], [0, 2, 0], [1, 0, 0]]
    assert [row["precision"] for row in figures["per_class"]] == pytest.approx([2 / 3, 2 / 3, 0])
    assert [row["recall"] for row in figures["per_class"]] == pytest.approx([2 / 3, 1, 0])
    assert [row["f1"] for row in figures["per_class"]] == pytest.approx([2 / 3, 0.8, 0])
    assert [row["rows"] for row in figures["per_class"]] == [3, 2, 1]
    # Wilson, 1927, worked with z = 1.959964: (p + z²/2n ± z sqrt(p(1 - p)/n + z²/4n²)) / (1 + z²/n).
    assert figures["test_accuracy_interval"] == pytest.approx((0.3000, 0.9032), abs=1e-4)
    assert figures["per_class"][2]["recall_interval"] == pytest.approx((0, 0.7935), abs=1e-4)
    # One bin: confidence 0.8, accuracy 4/6.
    assert figures["expected_calibration_error"] == pytest.approx(0.8 - 4 / 6, abs=1e-6)


def test_a_class_without_a_row_has_no_interval(tiny_contract: DatasetContract) -> None:
    figures = compute_metrics(np.eye(3, dtype=np.float32)[[0, 1]], np.array([0, 1], dtype=np.int32), tiny_contract)
    assert [row["recall_interval"] is None for row in figures["per_class"]] == [False, False, True]


def test_calibration_error_weighs_bins_by_rows() -> None:
    confidence = np.array([0.95, 0.95, 0.95, 0.55], dtype=np.float32)
    right = np.array([True, True, False, False])
    bins = calibration_bins(confidence, right)
    assert [entry["rows"] for entry in bins] == [1, 3]
    expected = 1 / 4 * 0.55 + 3 / 4 * (0.95 - 2 / 3)
    assert expected_calibration_error(bins) == pytest.approx(expected, abs=1e-6)


def test_full_confidence_falls_into_the_last_bin() -> None:
    assert calibration_bins(np.array([1.0], dtype=np.float32), np.array([True]))[0]["to"] == 1.0


@pytest.fixture(scope="module")
def evaluation(
    in_this_process: None, sample_prepared: PreparedData, sample_trained: TrainedModel, sample_artifacts: Path
) -> Evaluation:
    return evaluate.fn(sample_prepared, sample_trained, sample_artifacts)


def test_plain_keras_on_the_stored_files_gives_the_same_figures(
    evaluation: Evaluation, sample_prepared: PreparedData, sample_trained: TrainedModel
) -> None:
    model = plain_network(sample_trained.record.path)
    images = np.load(sample_prepared.record.path / "test_images.npy")
    labels = np.load(sample_prepared.record.path / "test_labels.npy")
    loss, accuracy = model.evaluate(images, labels, verbose=0)
    metrics = json.loads((evaluation.record.path / "metrics.json").read_bytes())
    assert metrics["test_accuracy"] == evaluation.test_accuracy == pytest.approx(accuracy, abs=1e-6)
    assert metrics["test_loss"] == evaluation.test_loss == pytest.approx(loss, abs=1e-6)
    assert metrics["test_rows"] == 200
    assert math.isfinite(metrics["expected_calibration_error"])
    assert np.array(metrics["confusion_matrix"]).sum(axis=1).tolist() == [20] * 10


def test_an_unchanged_model_is_not_evaluated_again(
    evaluation: Evaluation, sample_prepared: PreparedData, sample_trained: TrainedModel, sample_artifacts: Path
) -> None:
    assert evaluate.fn(sample_prepared, sample_trained, sample_artifacts).record.reused


def test_another_test_split_is_evaluated_anew(
    evaluation: Evaluation,
    sample_prepared: PreparedData,
    sample_trained: TrainedModel,
    sample_artifacts: Path,
) -> None:
    record = sample_prepared.record.model_copy(update={"digest": "0" * 64})
    changed = sample_prepared.model_copy(update={"record": record})
    assert not evaluate.fn(changed, sample_trained, sample_artifacts).record.reused


def test_accuracy_without_test_rows_that_stand_in_train() -> None:
    probabilities = np.eye(2, dtype=np.float32)[[0, 1, 1, 0]]
    labels = np.array([0, 1, 0, 1], dtype=np.int32)  # the first two are right
    found = without_duplicates(probabilities, labels, np.array([2, 0, 1, 0], np.uint8))
    assert found == {"test_rows_without_duplicates": 2, "test_accuracy_without_duplicates": 0.5}
    assert (
        without_duplicates(probabilities, labels, np.full(4, 2, np.uint8))["test_accuracy_without_duplicates"] is None
    )
