"""verify-store: verify every version of a store."""

from pathlib import Path

from prefect import flow

from flows.states import ON_RUNNING
from schemas.config import artifacts_folder
from schemas.contract import DatasetName
from schemas.references import VerifiedStore
from tasks.verify_store import verify_versions


@flow(name="verify-store", flow_run_name="{dataset} verify", on_running=ON_RUNNING)
def verify_store(dataset: DatasetName = "fashion-mnist", artifacts_dir: Path | None = None) -> VerifiedStore:
    """Load and check every version, and the alias log. The run fails if one is damaged.

    artifacts_dir: defaults to that of train-fashion-mnist.
    """
    return verify_versions(dataset, artifacts_folder(artifacts_dir))
