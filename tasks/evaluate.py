"""Evaluate the trained model on the test split."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from prefect import task

from schemas.contract import contract_of
from schemas.layout import HISTORY_NAME, METRICS_NAME, PREDICTIONS_NAME, TEST_IN_TRAIN_NAME, Artifacts, images_name
from schemas.references import Evaluation, PreparedData, TrainedModel
from tasks.model.inference import start_stored_model
from tasks.model.metrics import compute_metrics, without_duplicates
from tasks.model.test_predictions import StoredPredictions, image_digests, write_predictions
from tasks.reports.charts import draw_confusion_matrix, draw_learning_curves
from tasks.runtime.files import write_json
from tasks.runtime.fingerprint import Stage
from tasks.runtime.prefect_artifacts import publish_markdown, publish_svg, publish_table
from tasks.runtime.stage_cache import run_stage

STAGE = Stage("evaluate", core=("tasks.model.inference", "tasks.model.metrics", "tasks.model.test_predictions"))


@task(name="evaluate", task_run_name="evaluate")
def evaluate(prepared: PreparedData, trained: TrainedModel, artifacts_dir: Path) -> Evaluation:
    """Have a fresh process load the model, repeat its golden predictions and predict the test split.

    Writes metrics.json and test_predictions.parquet (`tasks.model.test_predictions`). Raises `StoredArtifactError` if
    the trained model cannot be loaded.
    """
    contract = contract_of(prepared.dataset)

    def build(folder: Path) -> dict[str, Any]:
        with start_stored_model(trained.record.path, prepared.record.path) as output_of_model:
            digests = image_digests(np.load(prepared.record.path / images_name("test"), mmap_mode="r"), contract)
            judged = output_of_model()
        in_train = np.load(prepared.record.path / TEST_IN_TRAIN_NAME)
        metrics = {
            "test_loss": judged.loss,
            **compute_metrics(judged.probabilities, judged.labels, contract),
            **without_duplicates(judged.probabilities, judged.labels, in_train),
            "history": json.loads((trained.record.path / HISTORY_NAME).read_bytes()),
        }
        write_json(folder / METRICS_NAME, metrics)
        write_predictions(
            folder / PREDICTIONS_NAME, StoredPredictions(digests, judged.labels, judged.probabilities), contract
        )
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
    publish_svg(
        f"{dataset}-confusion-matrix",
        draw_confusion_matrix(metrics["confusion_matrix"], contract_of(dataset).class_names),
        "True class against predicted class",
    )
    publish_svg(f"{dataset}-learning-curve", draw_learning_curves(metrics["history"]), "Loss and accuracy by epoch")


def _shown(accuracy: float | None) -> str:
    return "no row is left" if accuracy is None else f"{accuracy:.4f}"


def _short(value: Any) -> Any:
    if isinstance(value, list):  # an interval
        return f"{value[0]:.4f} to {value[1]:.4f}"
    return round(value, 4) if isinstance(value, float) else value
