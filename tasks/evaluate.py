"""Evaluate the trained model on the test split, and draw its metrics."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from prefect import task

from schemas.contract import DatasetContract, contract_of
from schemas.layout import HISTORY_NAME, METRICS_NAME, PREDICTIONS_NAME, TEST_IN_TRAIN_NAME, Artifacts, images_name
from schemas.references import Evaluation, PreparedData, TrainedModel
from tasks.model.inference import start_stored_model
from tasks.model.metrics import evaluation_metrics
from tasks.model.test_predictions import StoredPredictions, image_digests, write_predictions
from tasks.runtime.files import write_json
from tasks.runtime.fingerprint import Stage
from tasks.runtime.prefect_artifacts import publish_markdown, publish_png, publish_table
from tasks.runtime.stage_cache import run_stage

STAGE = Stage("evaluate", core=("tasks.model.inference", "tasks.model.metrics", "tasks.model.test_predictions"))

CONFUSION_NAME = "confusion_matrix.png"
LEARNING_NAME = "learning_curve.png"

_SHOWN_METRICS = (
    *("test_accuracy", "test_loss", "expected_calibration_error", "test_rows"),
    *("test_accuracy_without_duplicates", "test_rows_without_duplicates"),
)


@task(name="evaluate", task_run_name="evaluate")
def evaluate(prepared: PreparedData, trained: TrainedModel, artifacts_dir: Path) -> Evaluation:
    """Load the model in a fresh process, compare its golden predictions and predict the test split.

    Writes metrics.json, test_predictions.parquet and two pictures. Raises `StoredArtifactError` if the trained files
    cannot be loaded.
    """
    contract = contract_of(prepared.dataset)

    def build(folder: Path) -> dict[str, Any]:
        with start_stored_model(trained.record.path, prepared.record.path) as wait_for_output:
            # While the process starts.
            history = json.loads((trained.record.path / HISTORY_NAME).read_bytes())
            draw_learning(history, folder / LEARNING_NAME)
            digests = image_digests(np.load(prepared.record.path / images_name("test"), mmap_mode="r"), contract)
            output = wait_for_output()
        metrics = evaluation_metrics(output, np.load(prepared.record.path / TEST_IN_TRAIN_NAME), history, contract)
        write_json(folder / METRICS_NAME, metrics)
        predictions = StoredPredictions(digests, output.labels, output.probabilities)
        write_predictions(folder / PREDICTIONS_NAME, predictions, contract)
        draw_confusion(metrics["confusion_matrix"], contract, folder / CONFUSION_NAME)
        return {
            "test_accuracy": metrics["test_accuracy"],
            "test_loss": metrics["test_loss"],
            "golden_difference": output.golden_difference,
        }

    record, facts = run_stage(
        Artifacts(artifacts_dir).evaluated,
        STAGE,
        {"dataset": prepared.dataset, "prepared": prepared.record.digest, "trained": trained.record.digest},
        build,
    )
    _publish(prepared.dataset, record.path)
    return Evaluation(record=record, **facts)


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
        "Per-class metrics on the test split",
    )
    publish_markdown(
        f"{dataset}-evaluation",
        "| metric | value |\n|---|---|\n"
        + "".join(f"| {name.replace('_', ' ')} | {_short(metrics[name])} |\n" for name in _SHOWN_METRICS)
        + "\nDuplicates are test images that are also in train, exactly or nearly. "
        f"All metrics: `{folder / METRICS_NAME}`\n",
        "Metrics on the test split",
    )
    publish_png(f"{dataset}-confusion-matrix", folder / CONFUSION_NAME, "True against predicted class")
    publish_png(f"{dataset}-learning-curve", folder / LEARNING_NAME, "Loss and accuracy by epoch")


def _short(value: Any) -> Any:
    """Return a metric with four decimals. An interval becomes text; None means that no rows were left."""
    match value:
        case None:
            return "no rows"
        case [low, high]:
            return f"{low:.4f} to {high:.4f}"
        case float():
            return round(value, 4)
    return value
