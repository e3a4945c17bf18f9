"""predict-fashion-mnist: from a CSV of images to a class and its probabilities a row."""

from pathlib import Path

from prefect import flow

from flows.hooks import let_stages_speak
from schemas.config import artifacts_folder
from schemas.contract import DatasetName
from schemas.references import Predictions
from tasks.predict import predict
from tasks.registry.alias_log import CHAMPION


@flow(
    name="predict-fashion-mnist",
    flow_run_name="{dataset} predict {images.name} by {version}",
    on_running=[let_stages_speak],
)
def predict_fashion_mnist(
    images: Path,
    output: Path,
    version: str = CHAMPION,
    artifacts_dir: Path | None = None,
    dataset: DatasetName = "fashion-mnist",
) -> Predictions:
    """Predict ``images``, a CSV with or without labels, by ``version``, a number or an alias, into ``output``.

    ``output`` ends in .parquet or .csv, and is written whole or not at all. ``artifacts_dir`` defaults to
    FASHION_ANN_ARTIFACTS_DIR, then to artifacts/ of the checkout.
    """
    return predict(images, output, version, dataset, artifacts_folder(artifacts_dir))
