"""fit-model: training as a separate flow, so that a worker with a GPU can run it."""

from pathlib import Path

from prefect import flow

from flows.states import enable_task_logging
from schemas.config import DeviceChoice, TrainingConfig
from schemas.references import PreparedData, TrainedModel
from tasks.runtime.locks import artifacts_lock
from tasks.train import train


# The result is persisted for the main flow, which may run in another process.
@flow(
    name="fit-model",
    flow_run_name="{prepared.dataset} fit seed {training.seed}",
    persist_result=True,
    result_serializer="json",
    on_running=[enable_task_logging],
)
def fit_model(
    prepared: PreparedData, training: TrainingConfig, artifacts_dir: Path, device: DeviceChoice = "auto"
) -> TrainedModel:
    """Train on the prepared splits and return a reference to the model."""
    with artifacts_lock(artifacts_dir):  # the main flow's lock may not be visible on another machine
        return train(prepared, training, artifacts_dir, device)
