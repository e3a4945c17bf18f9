"""promote-version: make a version the champion."""

from pathlib import Path

from prefect import flow

from flows.states import ON_RUNNING
from schemas.config import Reason, ShadowRows, separate_folders
from schemas.contract import DatasetName
from schemas.store import AliasEvent
from tasks.promote_version import promote


@flow(name="promote-version", flow_run_name="{dataset} promote {version}", on_running=ON_RUNNING)
def promote_version(
    version: int | str,
    reason: Reason,
    dataset: DatasetName = "fashion-mnist",
    artifacts_dir: Path | None = None,
    minimum_shadow_rows: ShadowRows | None = None,
) -> AliasEvent:
    """Verify a version and make it champion, as `fashion-ann promote` does.

    version: a number or an alias. reason: recorded in the alias log.
    artifacts_dir: defaults to that of train-fashion-mnist.
    minimum_shadow_rows: rows that the version must have answered as a shadow of the champion; defaults to its rules.
    """
    return promote(dataset, str(version), reason, separate_folders(artifacts_dir)[0], minimum_shadow_rows)
