"""Evaluate the trained model on the test split."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from prefect import task
from prefect.cache_policies import NO_CACHE

from schemas.contract import contract_of
from schemas.errors import TrainingDiverged
from schemas.layout import HISTORY_NAME, METRICS_NAME, PREDICTIONS_NAME, TEST_IN_TRAIN_NAME
from schemas.references import Evaluation, PreparedData, StageRecord, TrainedModel
from schemas.store import EvaluatedMetrics
from tasks.checks.near_duplicates import read_in_train
from tasks.data.splits import open_split
from tasks.model.backend import environment, gpu_driver_present
from tasks.model.evaluation import evaluate_stored_model
from tasks.model.metrics import brightness_slices, compute_metrics
from tasks.model.test_predictions import StoredPredictions, image_digest, read_predictions, write_predictions
from tasks.reports.charts import draw_confusion_matrix, draw_learning_curves
from tasks.runtime.files import write_json
from tasks.runtime.materialize import materialize
from tasks.runtime.prefect_artifacts import publish_markdown, publish_svg, publish_table
from tasks.runtime.stage_cache import run_stage
from tasks.runtime.stages import EVALUATE
from tasks.runtime.stored_file import read_json

_SHOWN_METRICS = (
    *("test_accuracy", "test_loss", "expected_calibration_error", "test_rows"),
    *("test_accuracy_without_duplicates", "test_rows_without_duplicates"),
)


@task(name="evaluate", task_run_name="evaluate", cache_policy=NO_CACHE)
def evaluate(prepared: PreparedData, trained: TrainedModel, artifacts_dir: Path) -> Evaluation:
    """Load the model in a fresh process, compare its golden predictions and predict the test split.

    Writes metrics.json, with those of `evaluate_stored_model`, and test_predictions.parquet. Raises
    `StoredArtifactError` if the trained files cannot be loaded, and `TrainingDiverged` for a loss or prediction that is
    not finite.
    """
    contract = contract_of(prepared.dataset)
    prepared, trained = materialize(prepared, artifacts_dir), materialize(trained, artifacts_dir)

    def build(folder: Path) -> dict[str, Any]:
        output = evaluate_stored_model(trained.record.path, prepared.record.path, contract)
        if not np.isfinite([output.loss, output.probabilities.sum()]).all():
            raise TrainingDiverged(
                f"{trained.record.path}: the loss or a prediction of this model is not finite on the test split. Train "
                "with a lower learning rate, or with other data."
            )
        in_train = read_in_train(prepared.record.path / TEST_IN_TRAIN_NAME, prepared.test_rows)
        history = json.loads((trained.record.path / HISTORY_NAME).read_bytes())
        digests: list[bytes] = []
        brightness = []
        for _, block in open_split(prepared.record.path, "test").images.blocks():
            digests += map(image_digest, block)
            brightness.append(block.mean(axis=1))
        slices = brightness_slices(np.concatenate(brightness), output.right)
        metrics = {**compute_metrics(output, in_train, history, contract), "brightness": slices}
        write_json(folder / METRICS_NAME, metrics)
        predictions = StoredPredictions(digests, output.labels, output.probabilities)
        write_predictions(folder / PREDICTIONS_NAME, predictions, contract)
        facts = {name: metrics[name] for name in ("test_accuracy", "test_loss")}
        return {**facts, "golden_difference": output.golden_difference}

    def parse(record: StageRecord, facts: dict[str, Any]) -> Evaluation:
        path = record.path / METRICS_NAME
        metrics = EvaluatedMetrics.parse(read_json(path), str(path))
        if {len(metrics.per_class), *map(len, metrics.confusion_matrix)} != {contract.classes}:
            raise ValueError(f"expected metrics of {contract.classes} classes")
        read_predictions(record.path / PREDICTIONS_NAME, contract)
        return Evaluation(record=record, **facts)

    evaluation = run_stage(
        EVALUATE.outputs(artifacts_dir),
        EVALUATE,
        {
            "dataset": prepared.dataset,
            "contract": contract.digest,
            "prepared": prepared.sha256,
            "trained": trained.record.digest,
            "environment": environment(),
            "device": "gpu" if gpu_driver_present() else "cpu",
        },
        build,
        parse,
    )
    _publish(prepared.dataset, evaluation.record.path)
    return evaluation


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
    publish_svg(
        f"{dataset}-confusion-matrix",
        draw_confusion_matrix(metrics["confusion_matrix"], contract_of(dataset).class_names),
        "True class against predicted class",
    )
    publish_svg(f"{dataset}-learning-curve", draw_learning_curves(metrics["history"]), "Loss and accuracy by epoch")


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
