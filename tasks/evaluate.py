"""Judge the trained model on the test split, and draw what the figures say."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from prefect import task

from schemas.contract import DatasetContract, contract_of
from schemas.references import Evaluation, PreparedData, TrainedModel
from tasks.duplicates import TEST_IN_TRAIN_NAME
from tasks.fit import HISTORY_NAME
from tasks.judge import judging
from tasks.judged import Judged, image_digests, write_predictions
from tasks.proportions import wilson_interval
from tasks.publish import publish_markdown, publish_png, publish_table
from tasks.stage import Stage, run_stage, write_json
from tasks.store import METRICS_NAME, PREDICTIONS_NAME

STAGE = Stage("evaluate", core=("tasks.evaluate",))

CONFUSION_NAME = "confusion_matrix.png"
LEARNING_NAME = "learning_curve.png"

_CALIBRATION_BINS = 15


@task(name="evaluate", task_run_name="evaluate")
def evaluate(prepared: PreparedData, trained: TrainedModel, artifacts_dir: Path) -> Evaluation:
    """Have a fresh process load the model, repeat its golden predictions and predict the test split.

    Writes metrics.json, test_predictions.parquet (`tasks.judged`), and two pictures. Raises `StoredArtifactError` when
    what was trained cannot be loaded.
    """
    contract = contract_of(prepared.dataset)

    def build(folder: Path) -> dict[str, Any]:
        with judging(trained.record.path, prepared.record.path) as answer:
            history = json.loads((trained.record.path / HISTORY_NAME).read_bytes())
            draw_learning(history, folder / LEARNING_NAME)  # while the process starts
            digests = image_digests(np.load(prepared.record.path / "test_images.npy", mmap_mode="r"), contract)
            judged = answer()
        in_train = np.load(prepared.record.path / TEST_IN_TRAIN_NAME)
        metrics = {
            "test_loss": judged.loss,
            **measure(judged.probabilities, judged.labels, contract),
            **without_duplicates(judged.probabilities, judged.labels, in_train),
            "history": history,
        }
        write_json(folder / METRICS_NAME, metrics)
        write_predictions(folder / PREDICTIONS_NAME, Judged(digests, judged.labels, judged.probabilities), contract)
        draw_confusion(metrics["confusion_matrix"], contract, folder / CONFUSION_NAME)
        return {
            "test_accuracy": metrics["test_accuracy"],
            "test_loss": metrics["test_loss"],
            "golden_difference": judged.golden_difference,
        }

    record, facts = run_stage(
        artifacts_dir / "evaluated",
        STAGE,
        {"dataset": prepared.dataset, "prepared": prepared.record.digest, "trained": trained.record.digest},
        build,
    )
    _publish(prepared.dataset, record.path)
    return Evaluation(record=record, **facts)


def measure(
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

    in_train: uint8 (N,), as `tasks.duplicates.find_in_train` makes it.
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


def draw_confusion(confusion: list[list[int]], contract: DatasetContract, path: Path) -> None:
    """A PNG of the confusion matrix: counts in the cells, shade by share of the true class."""
    counts = np.asarray(confusion)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    figure = _figure(7.2, 6.4)
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    places = range(contract.classes)
    axes.set_xticks(places, contract.class_names, rotation=45, ha="right")
    axes.set_yticks(places, contract.class_names)
    axes.set(xlabel="predicted", ylabel="true", title=f"Confusion matrix, {counts.sum():,} test images")
    for row in places:
        for column in places:
            if counts[row, column]:
                colour = "white" if shares[row, column] > 0.5 else "black"
                axes.text(column, row, str(counts[row, column]), ha="center", va="center", color=colour, fontsize=8)
    figure.savefig(path)


def draw_learning(history: list[dict[str, float]], path: Path) -> None:
    """A PNG of loss and accuracy by epoch, train and validation."""
    figure = _figure(7.2, 3.4)
    epochs = range(1, len(history) + 1)
    for axes, name in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        axes.plot(epochs, [entry[name] for entry in history], "o-", markersize=3, label="train, with dropout")
        axes.plot(epochs, [entry[f"val_{name}"] for entry in history], "s--", markersize=3, label="validation")
        axes.set(xlabel="epoch", ylabel=name)
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path)


def _figure(width: float, height: float) -> Any:
    """A figure of inches that no display and no global state is needed for."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _publish(dataset: str, folder: Path) -> None:
    metrics = json.loads((folder / METRICS_NAME).read_bytes())
    publish_table(
        f"{dataset}-per-class",
        [{key: _short(value) for key, value in row.items()} for row in metrics["per_class"]],
        "Precision, recall and F1 of each class on the test split",
    )
    publish_markdown(
        f"{dataset}-evaluation",
        f"| figure | value |\n|---|---|\n"
        f"| test accuracy | {metrics['test_accuracy']:.4f} |\n"
        f"| test loss | {metrics['test_loss']:.4f} |\n"
        f"| expected calibration error | {metrics['expected_calibration_error']:.4f} |\n"
        f"| test rows | {metrics['test_rows']} |\n"
        f"| test accuracy without rows that stand in train | {_shown(metrics['test_accuracy_without_duplicates'])} |\n"
        f"| test rows without them | {metrics['test_rows_without_duplicates']} |\n\n"
        f"All figures: `{folder / METRICS_NAME}`\n",
        "The model on the test split",
    )
    publish_png(f"{dataset}-confusion-matrix", folder / CONFUSION_NAME, "True against predicted class")
    publish_png(f"{dataset}-learning-curve", folder / LEARNING_NAME, "Loss and accuracy by epoch")


def _shown(accuracy: float | None) -> str:
    return "no row is left" if accuracy is None else f"{accuracy:.4f}"


def _short(value: Any) -> Any:
    if isinstance(value, list):  # an interval
        return f"{value[0]:.4f} to {value[1]:.4f}"
    return round(value, 4) if isinstance(value, float) else value
