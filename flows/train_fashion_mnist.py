"""train-fashion-mnist: from CSVs to a versioned model."""

from pathlib import Path

from prefect import State, flow

from flows.endings import nothing_new, superseded
from flows.fit_model import fit_model
from flows.hooks import let_stages_speak
from schemas.config import (
    BadRows,
    DataDigest,
    DeviceChoice,
    PromotionConfig,
    TrainingConfig,
    TrainOn,
    WorkerSeconds,
    artifacts_folder,
    data_folder,
)
from schemas.contract import DatasetName
from schemas.references import ModelVersion
from tasks.data.data_folder import digest_of_csvs
from tasks.evaluate import evaluate
from tasks.fetch import fetch
from tasks.ingest import ingest
from tasks.model.warm_up import prestart_workers
from tasks.prepare import prepare
from tasks.runtime.locks import artifacts_lock
from tasks.train import is_trained
from tasks.train import train as train_model
from tasks.train_on_worker import train_on_gpu_worker
from tasks.validate import validate
from tasks.version import version

DEFAULT_TRAINING = TrainingConfig()
DEFAULT_PROMOTION = PromotionConfig()


# Until the version is there, which then names the run.
@flow(name="train-fashion-mnist", flow_run_name="{dataset} seed {training.seed}", on_running=[let_stages_speak])
def train_fashion_mnist(
    dataset: DatasetName = "fashion-mnist",
    data_dir: Path | None = None,
    artifacts_dir: Path | None = None,
    training: TrainingConfig = DEFAULT_TRAINING,
    promotion: PromotionConfig = DEFAULT_PROMOTION,
    train_on: TrainOn = "here",
    device: DeviceChoice = "auto",
    gpu_worker_seconds: WorkerSeconds = 90,
    data_digest: DataDigest | None = None,
    bad_rows: BadRows = 0,
) -> ModelVersion | State[ModelVersion]:
    """Fetch, ingest, validate, prepare, train, evaluate, version.

    A stage whose output for the same inputs is there and whole is skipped. The folders default to
    FASHION_ANN_DATA_DIR and FASHION_ANN_ARTIFACTS_DIR, then to data/ and artifacts/ of the checkout.

    train_on: "gpu" trains on a worker of the gpu pool, which may take gpu_worker_seconds to turn up.
    bad_rows: how many rows of a split may be bad, or what share of them ("0.5%"); they are set aside.
    data_digest: the only data that is trained on; the run ends as Superseded when the folder holds another.
    """
    artifacts, data_home = artifacts_folder(artifacts_dir), data_folder(data_dir)
    with artifacts_lock(artifacts), prestart_workers(train_here=train_on == "here"):
        csvs = fetch(dataset, data_home, download=data_digest is None)
        if data_digest is not None and data_digest != (found := digest_of_csvs(csvs)):
            return superseded(data_home, data_digest, found)
        train = validate(ingest(csvs["train"], dataset, artifacts, bad_rows), dataset, artifacts)
        test = validate(ingest(csvs["test"], dataset, artifacts, bad_rows), dataset, artifacts, train)
        prepared = prepare(train, test, dataset, training.validation_size, training.seed, artifacts)
        if train_on == "gpu":
            trained = train_on_gpu_worker(prepared, training, artifacts, device, gpu_worker_seconds)
        elif is_trained(prepared, training, artifacts, device):
            trained = train_model(prepared, training, artifacts, device)  # a flow run to look at it costs a second
        else:
            trained = fit_model(prepared, training, artifacts, device)
        evaluation = evaluate(prepared, trained, artifacts)
        made = version({"train": train, "test": test}, prepared, trained, evaluation, training, promotion, artifacts)
        return made if made.created else nothing_new(made)
