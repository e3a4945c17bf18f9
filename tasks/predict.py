"""Predict: a class and its probabilities for each image of a CSV, with a stored version."""

from pathlib import Path

from prefect import task

from schemas.references import Predictions
from tasks.registry.batch_prediction import predict_csv


@task(name="predict", task_run_name="predict")
def predict(images: Path, output: Path, version: str, dataset: str, artifacts_dir: Path) -> Predictions:
    """Run `tasks.registry.batch_prediction.predict_csv`, and return a reference to its output."""
    return predict_csv(images, output, version, dataset, artifacts_dir)
