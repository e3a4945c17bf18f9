"""watch-data: emit an event when the CSVs in the data folder have changed."""

from pathlib import Path

from prefect import State, flow

from flows.states import enable_task_logging, no_new_data
from schemas.config import artifacts_folder, data_folder
from schemas.contract import DatasetName
from schemas.references import WatchedData
from tasks.watch_data import watch


@flow(name="watch-data", flow_run_name="{dataset} watch", on_running=[enable_task_logging])
def watch_data(
    dataset: DatasetName = "fashion-mnist", data_dir: Path | None = None, artifacts_dir: Path | None = None
) -> WatchedData | State[WatchedData]:
    """Emit the event `fashion-ann.data.updated` if the CSVs differ from those announced last.

    The folders default to those of train-fashion-mnist.
    """
    watched = watch(dataset, data_folder(data_dir), artifacts_folder(artifacts_dir))
    return watched if watched.announced else no_new_data(watched)
