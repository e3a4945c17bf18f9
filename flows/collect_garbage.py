"""collect-garbage: delete old versions and unreferenced artifacts."""

from pathlib import Path
from typing import Annotated

from prefect import State, flow
from pydantic import Field

from flows.states import ON_RUNNING, run_active
from schemas.config import separate_folders
from schemas.contract import DatasetName
from schemas.references import Garbage
from tasks.collect_garbage import collect


@flow(name="collect-garbage", flow_run_name="{dataset} collect garbage", on_running=ON_RUNNING)
def collect_garbage(
    dataset: DatasetName = "fashion-mnist", keep: Annotated[int, Field(ge=1)] = 5, artifacts_dir: Path | None = None
) -> Garbage | State[Garbage]:
    """Delete what `fashion-ann gc` deletes. If a run is active, the run ends as Run active, and some garbage stays.

    keep: number of newest versions that stay. artifacts_dir: defaults to that of train-fashion-mnist.
    """
    garbage = collect(dataset, keep, separate_folders(artifacts_dir)[0])
    return run_active(garbage) if garbage.run_active else garbage
