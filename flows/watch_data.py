"""watch-data: tell the server when the data folder holds other CSVs than before."""

from pathlib import Path

from prefect import State, flow

from flows.endings import no_news
from flows.hooks import let_stages_speak
from schemas.config import artifacts_folder, data_folder
from schemas.contract import DatasetName
from schemas.references import WatchedData
from tasks.watch_data import watch


@flow(name="watch-data", flow_run_name="{dataset} watch", on_running=[let_stages_speak])
def watch_data(
    dataset: DatasetName = "fashion-mnist", data_dir: Path | None = None, artifacts_dir: Path | None = None
) -> WatchedData | State[WatchedData]:
    """Emit the event `fashion-ann.data.updated` if the CSVs changed since it was emitted last.

    The folders default to those of train-fashion-mnist.
    """
    seen = watch(dataset, data_folder(data_dir), artifacts_folder(artifacts_dir))
    return seen if seen.announced else no_news(seen)
