"""fit-model: training as a separate flow, and the choice of where it runs."""

from pathlib import Path

from prefect import flow

from flows.states import ON_KILLED, ON_RUNNING
from schemas.config import DeviceChoice, TrainingConfig, TrainOn, artifacts_folder
from schemas.references import PreparedData, TrainedModel
from tasks.runtime.locks import artifacts_lock
from tasks.runtime.task_runs import artifacts_here
from tasks.train import is_trained, train
from tasks.train_on_worker import store_result, train_on_gpu_worker


# The result is persisted for a main flow in another process, which reads it with `tasks.train_on_worker.read_result`.
@flow(
    name="fit-model",
    flow_run_name="{prepared.dataset} fit seed {training.seed}",
    persist_result=True,
    result_serializer="json",
    on_running=ON_RUNNING,
    on_crashed=ON_KILLED,
    on_cancellation=ON_KILLED,
)
def fit_model(
    prepared: PreparedData, training: TrainingConfig, artifacts_dir: Path | None = None, device: DeviceChoice = "auto"
) -> TrainedModel:
    """Train on the prepared splits and return a reference to the model.

    artifacts_dir: None for a worker that shares only FASHION_ANN_REMOTE, and uses its own FASHION_ANN_ARTIFACTS_DIR.

    Raises `WrongUsage` for None on a worker without FASHION_ANN_REMOTE.
    """
    given = None if artifacts_dir is None else artifacts_folder(artifacts_dir)
    # The main flow's lock may not be visible on another machine.
    with artifacts_here(given) as artifacts, artifacts_lock(artifacts):
        trained = train(prepared, training, artifacts, device)
    store_result(trained)
    return trained


def fit_where_asked(
    prepared: PreparedData,
    training: TrainingConfig,
    artifacts_dir: Path,
    device: DeviceChoice,
    train_on: TrainOn,
    gpu_worker_seconds: float,
) -> TrainedModel:
    """Reuse the trained model, train in this process, or train on a worker of the gpu pool."""
    if train_on == "gpu":
        return train_on_gpu_worker(prepared, training, artifacts_dir, device, gpu_worker_seconds)
    if is_trained(prepared, training, artifacts_dir, device):
        return train(prepared, training, artifacts_dir, device)  # a subflow for a reused model would cost one second
    # Not persisted, because a retry of this run reuses the trained model, and nothing would delete the result. Prefect
    # also reads a result with the serializer that its file names.
    return fit_model.with_options(persist_result=False)(prepared, training, artifacts_dir, device)
