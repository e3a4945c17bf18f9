"""watch-predictions: compare the predictions of each day with the version that predicted."""

from datetime import UTC, datetime
from pathlib import Path

from prefect import flow

from flows.states import ON_KILLED, ON_RUNNING
from schemas.config import DEFAULT_WATCHED_DAYS, WatchedDays, separate_folders
from schemas.contract import DatasetName
from schemas.references import WatchedPredictions
from tasks.watch_predictions import watch


@flow(
    name="watch-predictions",
    flow_run_name="{dataset} watch predictions",
    on_running=ON_RUNNING,
    on_crashed=ON_KILLED,
    on_cancellation=ON_KILLED,
)
def watch_predictions(
    dataset: DatasetName = "fashion-mnist",
    days: WatchedDays = DEFAULT_WATCHED_DAYS,
    artifacts_dir: Path | None = None,
) -> WatchedPredictions:
    """Find drift of images, shift of classes and loss of accuracy in the predictions of the last ``days`` days.

    Emits the event `fashion-ann.predictions.drifted` once per day and version beyond a bound of the dataset, and writes
    predictions.html. artifacts_dir: defaults to FASHION_ANN_ARTIFACTS_DIR, then to artifacts/ of the checkout.
    """
    artifacts, _ = separate_folders(artifacts_dir)
    return watch(dataset, days, artifacts, datetime.now(UTC))
