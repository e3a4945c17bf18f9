"""rollback-champion: make the previous champion champion again."""

from pathlib import Path

from prefect import flow

from flows.states import ON_RUNNING
from schemas.config import Reason, separate_folders
from schemas.contract import DatasetName
from schemas.store import AliasEvent
from tasks.rollback_champion import rollback


@flow(name="rollback-champion", flow_run_name="{dataset} rollback", on_running=ON_RUNNING)
def rollback_champion(
    reason: Reason, dataset: DatasetName = "fashion-mnist", artifacts_dir: Path | None = None
) -> AliasEvent:
    """Restore the champion before the current one, as `fashion-ann rollback` does.

    reason: recorded in the alias log. artifacts_dir: defaults to that of train-fashion-mnist.
    """
    return rollback(dataset, reason, separate_folders(artifacts_dir)[0])
