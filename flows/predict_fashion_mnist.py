"""predict-fashion-mnist: predict the class and class probabilities of each row of a CSV of images."""

from pathlib import Path

from prefect import flow

from flows.states import ON_KILLED, ON_RUNNING
from schemas.config import absolute, expanded, separate_folders
from schemas.contract import DatasetName
from schemas.references import Predictions
from tasks.predict import predict
from tasks.registry.alias_log import CHAMPION


@flow(
    name="predict-fashion-mnist",
    flow_run_name="{dataset} predict {images.name} by {version}",
    on_running=ON_RUNNING,
    on_crashed=ON_KILLED,
    on_cancellation=ON_KILLED,
)
def predict_fashion_mnist(
    images: Path,
    output: Path,
    version: str = CHAMPION,
    artifacts_dir: Path | None = None,
    dataset: DatasetName = "fashion-mnist",
    strict: bool = False,
) -> Predictions:
    """Predict ``images``, a CSV with or without labels, with a stored model, and write ``output``.

    version: a number or an alias.
    output: ends in .parquet or .csv. It is written completely or not at all.
    strict: fail, and write nothing, if the images or their labels cause a warning.
    artifacts_dir: defaults to FASHION_ANN_ARTIFACTS_DIR, then to artifacts/ of the checkout.
    """
    artifacts, _ = separate_folders(artifacts_dir)
    return predict(absolute(expanded(images)), absolute(expanded(output)), version, dataset, artifacts, strict)
