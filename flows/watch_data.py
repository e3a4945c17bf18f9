"""watch-data: emit an event when the CSVs in the data folder have changed."""

from datetime import UTC, datetime
from pathlib import Path

from prefect import State, flow, runtime
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter

from flows.states import ON_RUNNING, no_new_data, superseded_check
from schemas.config import separate_folders
from schemas.contract import DatasetName
from schemas.references import WatchedData
from tasks.watch_data import watch


@flow(name="watch-data", flow_run_name="{dataset} watch", on_running=ON_RUNNING)
def watch_data(
    dataset: DatasetName = "fashion-mnist", data_dir: Path | None = None, artifacts_dir: Path | None = None
) -> WatchedData | State[WatchedData]:
    """Emit the event `fashion-ann.data.updated` if the CSVs differ from those announced last.

    Checks that waited for a worker end as Superseded. The folders default to those of train-fashion-mnist.
    """
    _supersede_waiting_checks()
    artifacts, data_home = separate_folders(artifacts_dir, data_dir)
    watched = watch(dataset, data_home, artifacts)
    return watched if watched.announced else no_new_data(watched)


def _supersede_waiting_checks() -> None:
    """End the runs of the same deployment and parameters that are due. The next run ends those beyond the first 200."""
    deployment_id, run_id = runtime.deployment.id, runtime.flow_run.id
    if deployment_id is None:
        return
    due = FlowRunFilter.model_validate(
        {
            "deployment_id": {"any_": [deployment_id]},
            "state": {"type": {"any_": ["SCHEDULED"]}},
            "next_scheduled_start_time": {"before_": datetime.now(UTC)},
        }
    )
    with get_client(sync_client=True) as client:
        parameters = client.read_flow_run(run_id).parameters
        for waiting in client.read_flow_runs(flow_run_filter=due):
            if waiting.parameters == parameters:
                client.set_flow_run_state(waiting.id, superseded_check())
