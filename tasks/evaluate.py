"""Judge the trained model on the test split, and draw what the figures say."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from prefect import task

from schemas.contract import DatasetContract, contract_of
from schemas.layout import HISTORY_NAME, METRICS_NAME, PREDICTIONS_NAME, TEST_IN_TRAIN_NAME, Artifacts, images_name
from schemas.references import Evaluation, PreparedData, TrainedModel
from tasks.model.inference import start_stored_model
from tasks.model.metrics import compute_metrics, without_duplicates
from tasks.model.test_predictions import StoredPredictions, image_digests, write_predictions
from tasks.runtime.files import write_json
from tasks.runtime.fingerprint import Stage
from tasks.runtime.prefect_artifacts import publish_markdown, publish_png, publish_table
from tasks.runtime.stage_cache import run_stage

STAGE = Stage("evaluate", core=("tasks.model.inference", "tasks.model.metrics", "tasks.model.test_predictions"))

CONFUSION_NAME = "confusion_matrix.png"
LEARNING_NAME = "learning_curve.png"


@task(name="evaluate", task_run_name="evaluate")
def evaluate(prepared: PreparedData, trained: TrainedModel, artifacts_dir: Path) -> Evaluation:
    """Have a fresh process load the model, repeat its golden predictions and predict the test split.

    Writes metrics.json, test_predictions.parquet (`tasks.model.test_predictions`), and two pictures. Raises `StoredArtifactError` when
    what was trained cannot be loaded.
    """
    contract = contract_of(prepared.dataset)

    def build(folder: Path) -> dict[str, Any]:
        with start_stored_model(trained.record.path, prepared.record.path) as output_of_model:
            history = json.loads((trained.record.path / HISTORY_NAME).read_bytes())
            draw_learning(history, folder / LEARNING_NAME)  # while the process starts
            digests = image_digests(np.load(prepared.record.path / images_name("test"), mmap_mode="r"), contract)
            judged = output_of_model()
        in_train = np.load(prepared.record.path / TEST_IN_TRAIN_NAME)
        metrics = {
            "test_loss": judged.loss,
            **compute_metrics(judged.probabilities, judged.labels, contract),
            **without_duplicates(judged.probabilities, judged.labels, in_train),
            "history": history,
        }
        write_json(folder / METRICS_NAME, metrics)
        write_predictions(
            folder / PREDICTIONS_NAME, StoredPredictions(digests, judged.labels, judged.probabilities), contract
        )
        draw_confusion(metrics["confusion_matrix"], contract, folder / CONFUSION_NAME)
        return {
            "test_accuracy": metrics["test_accuracy"],
            "test_loss": metrics["test_loss"],
            "golden_difference": judged.golden_difference,
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
