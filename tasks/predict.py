"""Predict: a class and its probabilities for each image of a CSV, with a stored version."""

from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE

from schemas.references import Predictions
from tasks.registry.batch_prediction import predict_csv
from tasks.registry.store import ModelStore
from tasks.reports.versions_page import write_versions_page
from tasks.runtime.prefect_artifacts import publish_table


@task(name="predict", task_run_name="predict", cache_policy=NO_CACHE)
def predict(
    images: Path, output: Path, version: str, dataset: str, artifacts_dir: Path, strict: bool = False
) -> Predictions:
    """Run `tasks.registry.batch_prediction.predict_csv`, and return a reference to its output."""
    predictions = predict_csv(images, output, version, dataset, artifacts_dir, strict)
    if (store := ModelStore.of(artifacts_dir, dataset)).mirror is not None:
        write_versions_page(store)  # it may have been copied
    publish_table(
        f"{dataset}-prediction-checks",
        [{"result": check.result, **check.model_dump(exclude={"result"})} for check in predictions.checks],
        "\n\n".join(
            (
                f"{predictions.rows} rows of {images.name} predicted by version {predictions.version}: "
                f"{len(predictions.warnings)} warnings",
                *predictions.warnings,
            )
        ),
    )
    return predictions
