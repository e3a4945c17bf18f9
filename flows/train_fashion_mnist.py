"""train-fashion-mnist: from CSVs to a versioned model."""

from pathlib import Path

from prefect import State, flow

from flows.fit_model import fit_where_asked
from flows.states import ON_KILLED, ON_RUNNING, end_of_training, superseded
from schemas.config import (
    BadRows,
    DataDigest,
    DeviceChoice,
    Note,
    PromotionConfig,
    Runner,
    TrainingConfig,
    TrainOn,
    WorkerSeconds,
    separate_folders,
)
from schemas.contract import DatasetName, Split
from schemas.references import ModelVersion, ValidatedSplit
from tasks.data.data_folder import digest_of_csvs
from tasks.evaluate import evaluate
from tasks.fetch import fetch as fetch_csvs
from tasks.ingest import ingest
from tasks.model.warm_up import pipeline_session
from tasks.prepare import prepare
from tasks.registry.bom import read_packages
from tasks.registry.signatures import training_key
from tasks.reports.mlflow_sync import require_mlflow
from tasks.reports.rendering import compile_templates
from tasks.runtime.task_runs import tasks_on
from tasks.validate import validate
from tasks.version import version

DEFAULT_TRAINING = TrainingConfig()
DEFAULT_PROMOTION = PromotionConfig()


# The run has this name until the version exists, which then renames it.
@flow(
    name="train-fashion-mnist",
    flow_run_name="{dataset} seed {training.seed}",
    on_running=ON_RUNNING,
    on_crashed=ON_KILLED,
    on_cancellation=ON_KILLED,
)
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
    fetch: bool = False,
    note: Note | None = None,
    runner: Runner = "threads",
) -> ModelVersion | State[ModelVersion]:
    """Fetch, ingest, validate, prepare, train, evaluate, version.

    A stage whose output for the same inputs exists is reused. The folders default to FASHION_ANN_DATA_DIR and
    FASHION_ANN_ARTIFACTS_DIR, then to data/ and artifacts/ of the checkout.

    train_on: "gpu" trains on a worker of the gpu pool, which must take the training within gpu_worker_seconds.
    data_digest: the data to train on. If the folder contains other data, the run ends as Superseded.
    bad_rows: number or share ("0.5%") of a split's rows that may be bad. They are quarantined.
    note: a remark that is stored with a new version and shown beside it.
    fetch: download the published data into any folder without CSVs, not only into data/ of the checkout.
    runner: "dask" runs the tasks per shard on the cluster of FASHION_ANN_DASK_ADDRESS, or on a local one.
    """
    training_key()  # a wrong key must not be found after the training
    require_mlflow()
    artifacts, data_home = separate_folders(artifacts_dir, data_dir)
    session = pipeline_session(
        artifacts, prestart_trainer=train_on == "here", while_training=(read_packages, compile_templates)
    )
    with session, tasks_on(runner):
        csvs = fetch_csvs(dataset, data_home, fetch, data_digest is not None, artifacts_dir=artifacts)
        if data_digest is not None and data_digest != (actual := digest_of_csvs(csvs)):
            return superseded(data_home, data_digest, actual)
        train_data = validate(ingest(csvs["train"], dataset, artifacts, bad_rows), dataset, artifacts)
        test_data = validate(ingest(csvs["test"], dataset, artifacts, bad_rows), dataset, artifacts, train_data)
        prepared = prepare(train_data, test_data, dataset, training.validation_size, training.seed, artifacts)
        trained = fit_where_asked(prepared, training, artifacts, device, train_on, gpu_worker_seconds)
        evaluation = evaluate(prepared, trained, artifacts)
        data: dict[Split, ValidatedSplit] = {"train": train_data, "test": test_data}
        result = version(data, prepared, trained, evaluation, training, promotion, artifacts, note, further=())
        return end_of_training(result)
