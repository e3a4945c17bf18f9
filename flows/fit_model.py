"""fit-model: training as a flow of its own, so that it can be deployed to a worker with a GPU."""

from pathlib import Path

from prefect import flow

from flows.hooks import let_stages_speak
from schemas.config import DeviceChoice, TrainingConfig
from schemas.references import PreparedData, TrainedModel
from tasks.runtime.locks import artifacts_lock
from tasks.train import train


# The result is kept for whoever had it run elsewhere.
@flow(
    name="fit-model",
    flow_run_name="{prepared.dataset} fit seed {training.seed}",
    persist_result=True,
    result_serializer="json",
    on_running=[let_stages_speak],
)
def fit_model(
    prepared: PreparedData, training: TrainingConfig, artifacts_dir: Path, device: DeviceChoice = "auto"
) -> TrainedModel:
    """Train on the prepared splits; a reference comes back, not a model."""
    with artifacts_lock(artifacts_dir):  # on a worker elsewhere the main flow's hold may not reach
        return train(prepared, training, artifacts_dir, device)
