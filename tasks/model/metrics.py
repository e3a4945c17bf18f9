"""Compute metrics from probabilities: accuracy, per class, calibration."""

from typing import Any

import numpy as np
import numpy.typing as npt

from schemas.contract import DatasetContract
from tasks.data.statistics import wilson_interval

_CALIBRATION_BINS = 15


def compute_metrics(
    probabilities: npt.NDArray[np.float32], labels: npt.NDArray[np.int32], contract: DatasetContract
) -> dict[str, Any]:
    """Every figure but the loss, from probabilities float32 (N, classes) and labels int32 (N,).

    confusion_matrix: rows are true labels, columns predicted ones. A class that was never predicted has precision 0.
    Intervals are Wilson's of 95 %; that of a class without a row is null.
    """
    predicted = probabilities.argmax(axis=1)
    confusion = np.zeros((contract.classes, contract.classes), dtype=np.int64)
    np.add.at(confusion, (labels, predicted), 1)
    right, given = confusion.diagonal(), confusion.sum(axis=1)
    precision = right / np.maximum(confusion.sum(axis=0), 1)
    recall = right / np.maximum(given, 1)
    f1 = 2 * precision * recall / np.where(precision + recall > 0, precision + recall, 1)
    calibration = calibration_bins(probabilities.max(axis=1), predicted == labels)
    return {
        "test_accuracy": float(right.sum() / len(labels)),
        "test_accuracy_interval": wilson_interval(int(right.sum()), len(labels)),
        "test_rows": len(labels),
        "per_class": [
            {
                "label": label,
                "name": name,
                "rows": int(given[label]),
                "precision": float(precision[label]),
                "recall": float(recall[label]),
                "recall_interval": wilson_interval(int(right[label]), rows) if (rows := int(given[label])) else None,
                "f1": float(f1[label]),
            }
            for label, name in enumerate(contract.class_names)
        ],
        "confusion_matrix": confusion.tolist(),
        "expected_calibration_error": expected_calibration_error(calibration),
        "calibration": calibration,
    }


def without_duplicates(
    probabilities: npt.NDArray[np.float32], labels: npt.NDArray[np.int32], in_train: npt.NDArray[np.uint8]
) -> dict[str, Any]:
    """Test rows and accuracy without the images that stand in train, to the byte or nearly; null where none is left.

    in_train: uint8 (N,), as `tasks.checks.near_duplicates.find_test_images_in_train` makes it.
    """
    own = in_train == 0
    right = probabilities[own].argmax(axis=1) == labels[own]
    return {
        "test_rows_without_duplicates": int(own.sum()),
        "test_accuracy_without_duplicates": float(right.mean()) if own.any() else None,
    }


def calibration_bins(confidence: npt.NDArray[np.float32], right: npt.NDArray[np.bool_]) -> list[dict[str, float]]:
    """Rows, mean confidence and accuracy in bins of equal width; bins without a row are left out.

    confidence is the largest probability of a row, float32 (N,); right is bool (N,).
    """
    places = np.minimum((confidence * _CALIBRATION_BINS).astype(np.int64), _CALIBRATION_BINS - 1)
    return [
        {
            "from": place / _CALIBRATION_BINS,
            "to": (place + 1) / _CALIBRATION_BINS,
            "rows": int(inside.sum()),
            "confidence": float(confidence[inside].mean(dtype=np.float64)),
            "accuracy": float(right[inside].mean()),
        }
        for place in range(_CALIBRATION_BINS)
        if (inside := places == place).any()
    ]


def expected_calibration_error(bins: list[dict[str, float]]) -> float:
    """Mean gap between confidence and accuracy, weighted by rows.

    Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, equation 3.
    """
    rows = sum(bin_["rows"] for bin_ in bins)
    return float(sum(bin_["rows"] * abs(bin_["confidence"] - bin_["accuracy"]) for bin_ in bins) / rows)
