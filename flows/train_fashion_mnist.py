"""train-fashion-mnist: from CSVs to a versioned model."""

from pathlib import Path

from prefect import flow

from flows.fit_model import fit_model
from schemas.config import DeviceChoice, PromotionConfig, TrainingConfig, artifacts_folder, data_folder
from schemas.contract import SPLITS, DatasetName
from schemas.references import ModelVersion
from tasks.evaluate import evaluate
from tasks.fetch import fetch
from tasks.ingest import ingest
from tasks.prepare import prepare
from tasks.stage import in_use
from tasks.validate import validate
from tasks.version import version

DEFAULT_TRAINING = TrainingConfig()
DEFAULT_PROMOTION = PromotionConfig()


@flow(name="train-fashion-mnist")
def train_fashion_mnist(
    dataset: DatasetName = "fashion-mnist",
    data_dir: Path | None = None,
    artifacts_dir: Path | None = None,
    training: TrainingConfig = DEFAULT_TRAINING,
    promotion: PromotionConfig = DEFAULT_PROMOTION,
    device: DeviceChoice = "auto",
) -> ModelVersion:
    """Fetch, ingest, validate, prepare, train, evaluate, version.

    A stage whose output for the same inputs is there and whole is skipped. The folders default to
    FASHION_ANN_DATA_DIR and FASHION_ANN_ARTIFACTS_DIR, then to data/ and artifacts/ of the checkout.
    """
    artifacts = artifacts_folder(artifacts_dir)
    with in_use(artifacts):
        csvs = fetch(dataset, data_folder(data_dir))
        data = {split: validate(ingest(csvs[split], dataset, artifacts), dataset) for split in SPLITS}
        prepared = prepare(data["train"], data["test"], dataset, training.validation_size, training.seed, artifacts)
        trained = fit_model(prepared, training, artifacts, device)
        evaluation = evaluate(prepared, trained, artifacts)
        return version(data, prepared, trained, evaluation, training, promotion, artifacts)
