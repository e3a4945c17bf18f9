"""Compute the metrics of a model on the test split: accuracy, per class, calibration, by brightness."""

from typing import Any

import numpy as np
import numpy.typing as npt

from schemas.contract import DatasetContract
from tasks.data.statistics import wilson_interval
from tasks.model.inference import StoredModelOutput

_CALIBRATION_BINS = 15
_BRIGHTNESS_SLICES = 5


def compute_metrics(
    output: StoredModelOutput,
    in_train: npt.NDArray[np.uint8],
    history: list[dict[str, float]],
    contract: DatasetContract,
) -> dict[str, Any]:
    """Return the content of metrics.json, without `brightness_slices`.

    in_train: uint8 (N,) from `tasks.checks.near_duplicates.find_test_images_in_train`, 0 for no duplicate. The accuracy
        without duplicates is None if no row is left.
    history: metrics of each training epoch.

    confusion_matrix: a row per true label, a column per predicted label. A class that was never predicted has
    precision 0. Intervals are Wilson's of 95 %; the interval and the average precision of a class without rows are
    None.
    """
    probabilities, labels = output.probabilities, output.labels
    predicted = probabilities.argmax(axis=1)
    confusion = np.zeros((contract.classes, contract.classes), dtype=np.int64)
    np.add.at(confusion, (labels, predicted), 1)
    correct, rows = confusion.diagonal(), confusion.sum(axis=1)
    precision = correct / np.maximum(confusion.sum(axis=0), 1)
    recall = correct / np.maximum(rows, 1)
    f1 = 2 * precision * recall / np.where(precision + recall > 0, precision + recall, 1)
    calibration = calibration_bins(probabilities.max(axis=1), output.right)
    unseen = output.right[in_train == 0]
    return {
        "test_loss": output.loss,
        "test_accuracy": float(correct.sum() / len(labels)),
        "test_accuracy_interval": wilson_interval(int(correct.sum()), len(labels)),
        "test_rows": len(labels),
        "test_accuracy_without_duplicates": float(unseen.mean()) if len(unseen) else None,
        "test_rows_without_duplicates": len(unseen),
        "per_class": [
            {
                "label": label,
                "name": contract.labels[label],
                "rows": int(rows[at]),
                "precision": float(precision[at]),
                "recall": float(recall[at]),
                "recall_interval": wilson_interval(int(correct[at]), int(rows[at])) if rows[at] else None,
                "f1": float(f1[at]),
                "average_precision": average_precision(probabilities[:, at], labels == at) if rows[at] else None,
            }
            for at, label in enumerate(contract.class_labels)
        ],
        "confusion_matrix": confusion.tolist(),
        "expected_calibration_error": expected_calibration_error(calibration),
        "calibration": calibration,
        "inactive_units": output.inactive_units,
        "history": history,
        **output.measured,
    }


def calibration_bins(confidence: npt.NDArray[np.float32], correct: npt.NDArray[np.bool_]) -> list[dict[str, float]]:
    """Return rows, mean confidence and accuracy per bin of equal width, without empty bins.

    confidence: largest probability of each row, float32 (N,). correct: bool (N,).
    """
    bins = np.minimum((confidence * _CALIBRATION_BINS).astype(np.int64), _CALIBRATION_BINS - 1)
    return [
        {
            "from": number / _CALIBRATION_BINS,
            "to": (number + 1) / _CALIBRATION_BINS,
            "rows": int(inside.sum()),
            "confidence": float(confidence[inside].mean(dtype=np.float64)),
            "accuracy": float(correct[inside].mean()),
        }
        for number in range(_CALIBRATION_BINS)
        if (inside := bins == number).any()
    ]


def brightness_slices(brightness: npt.NDArray[np.float64], correct: npt.NDArray[np.bool_]) -> list[dict[str, Any]]:
    """Return rows and accuracy of fifths of the rows, the darkest first. Equal values are in one slice.

    brightness: mean pixel value of each row, (N,). correct: bool (N,). Each slice has its smallest and largest value.
    """
    edges = np.quantile(brightness, np.arange(1, _BRIGHTNESS_SLICES) / _BRIGHTNESS_SLICES)
    slices = np.searchsorted(edges, brightness, side="left")
    return [
        {
            "from": float(brightness[inside].min()),
            "to": float(brightness[inside].max()),
            "rows": int(inside.sum()),
            "accuracy": float(correct[inside].mean()),
            "accuracy_interval": wilson_interval(int(correct[inside].sum()), int(inside.sum())),
        }
        for number in range(_BRIGHTNESS_SLICES)
        if (inside := slices == number).any()
    ]


def precision_recall(
    scores: npt.NDArray[np.float32], positive: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return precision and recall at each threshold, the highest first, for a class with at least one row.

    scores: probability of the class, (N,). positive: which rows are of the class, (N,). Rows with the same score are on
    the same side of a threshold.
    """
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(positive[order])
    last = np.flatnonzero(np.diff(scores[order], append=np.float32(-1)))  # of the rows with the same score
    return hits[last] / (last + 1), hits[last] / hits[-1]


def average_precision(scores: npt.NDArray[np.float32], positive: npt.NDArray[np.bool_]) -> float:
    """Return the mean precision over recall, as scikit-learn's ``average_precision_score``."""
    precision, recall = precision_recall(scores, positive)
    return float((np.diff(recall, prepend=0) * precision).sum())


def expected_calibration_error(bins: list[dict[str, float]]) -> float:
    """Return the mean gap between confidence and accuracy, weighted by rows.

    Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, equation 3.
    """
    rows = sum(bin_["rows"] for bin_ in bins)
    return float(sum(bin_["rows"] * abs(bin_["confidence"] - bin_["accuracy"]) for bin_ in bins) / rows)
