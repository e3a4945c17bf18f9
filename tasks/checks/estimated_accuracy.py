"""Estimate the accuracy of predictions without labels, from their confidence.

Confidence-based performance estimation (CBPE) of NannyML: Bialek, Kuberski, Perrakis and Bifet, "Estimating model
performance under covariate shift without labels", arXiv 2401.08348. A confidence is calibrated on labelled predictions,
here the stored predictions of a version's test split. The mean calibrated confidence is the expected accuracy.

Calibrated confidences are wrong if the shares of the classes change. So these shares are estimated too, by expectation
maximization: Saerens, Latinne and Decaestecker, "Adjusting the outputs of a classifier to new a priori probabilities",
Neural Computation 14, 2002. `python -m benchmarks.watched` draws days of 500 rows with five times as many shirts. 69 of
100 intervals contained the accuracy without this estimate, 95 with it.

Both assume that images of a class look as they did in the test split. `prediction_drift` measures that.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from schemas.predictions import CONFIDENCE_BINS, CONFIDENCE_EDGES, EstimatedAccuracy

Counts = npt.NDArray[np.int64]  # (classes, CONFIDENCE_BINS)
Floats = npt.NDArray[np.float64]
Classes = npt.NDArray[np.integer[Any]]
Confidence = npt.NDArray[np.floating[Any]]

_Z = 1.96
_DRAWS = 40  # of the bootstrap: the standard error has a relative error of about 1 / sqrt(2 * 40) = 11 %
_ITERATIONS = 60
_EMPTY = 1e-3  # rows in a cell without rows, because a case that the test split lacks is possible


def confidence_counts(predicted: Classes, confidence: Confidence, classes: int) -> Counts:
    """Return the number of rows per predicted class and bin of confidence, int64 (classes, CONFIDENCE_BINS)."""
    cells = _cells(predicted, confidence)
    counts = np.bincount(cells, minlength=classes * CONFIDENCE_BINS)
    return np.asarray(counts.reshape(classes, CONFIDENCE_BINS))


def calibration_table(labels: Classes, predicted: Classes, confidence: Confidence, classes: int) -> Counts:
    """Return the number of labelled rows per predicted class and bin of confidence, and true class.

    labels, predicted: (N,) classes. int64 (classes * CONFIDENCE_BINS, classes).
    """
    cells = _cells(predicted, confidence) * classes + labels
    return np.bincount(cells, minlength=classes * CONFIDENCE_BINS * classes).reshape(-1, classes)


def _cells(predicted: Classes, confidence: Confidence) -> npt.NDArray[np.int64]:
    return predicted.astype(np.int64) * CONFIDENCE_BINS + np.digitize(confidence, CONFIDENCE_EDGES)


def estimate_accuracy(table: Counts, counts: Counts) -> EstimatedAccuracy:
    """Return the estimated accuracy of unlabelled rows, with an interval of 95 % for the accuracy on these rows.

    table: `calibration_table` of the test split. counts: `confidence_counts` of at least one row.

    The interval contains the chance of the rows, which is binomial for their calibrated confidences. It also contains
    the noise of the calibration and of the shares of the classes, by a bootstrap of both samples. It is the same for
    the same counts.
    """
    generator, observed = np.random.default_rng(0), counts.ravel()
    rows = int(observed.sum())
    tables = np.concatenate([table[None], generator.poisson(table, (_DRAWS, *table.shape))]) + _EMPTY
    samples = np.concatenate([observed[None], generator.multinomial(rows, observed / rows, _DRAWS)]) / rows
    correct = _correct(tables, samples)  # (1 + draws, cells)
    means = (correct * samples).sum(axis=1)
    chance = float((correct[0] * (1 - correct[0])) @ samples[0]) / rows
    reach = _Z * (chance + float(means[1:].var())) ** 0.5
    low, high = max(0.0, means[0] - reach), min(1.0, means[0] + reach)
    return EstimatedAccuracy(accuracy=min(1.0, float(means[0])), interval=[float(low), float(high)])


def _correct(tables: Floats, samples: Floats) -> Floats:
    """Return the probability that a row of each cell is correct, for each draw: float64 (draws, cells)."""
    cells = tables.shape[1]
    likelihood = tables / tables.sum(axis=1, keepdims=True)  # of a cell, given the true class
    shares = tables.sum(axis=1) / tables.sum(axis=(1, 2))[:, None]
    for _ in range(_ITERATIONS):
        expected = np.matmul(likelihood, shares[:, :, None])[:, :, 0]  # share of each cell
        shares *= np.matmul((samples / expected)[:, None], likelihood)[:, 0]
    expected = np.matmul(likelihood, shares[:, :, None])[:, :, 0]
    own = np.arange(cells) // CONFIDENCE_BINS
    return np.asarray(likelihood[:, np.arange(cells), own] * shares[:, own] / expected)
