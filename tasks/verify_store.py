"""Verify every version of a store, and its alias log."""

import logging
from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE

from schemas.errors import StoredArtifactError
from schemas.references import VerifiedStore
from tasks.registry.store import ModelStore
from tasks.registry.verify import log_fault, verify_each
from tasks.reports.versions_page import write_versions_page
from tasks.runtime.prefect_artifacts import publish_table

logger = logging.getLogger(__name__)


@task(name="verify", task_run_name="verify", cache_policy=NO_CACHE)
def verify_versions(dataset: str, artifacts_dir: Path) -> VerifiedStore:
    """Load every version and repeat its golden predictions. Raises `StoredArtifactError` after the last one."""
    store = ModelStore.of(artifacts_dir, dataset).refresh()
    if store.copied:
        write_versions_page(store)
    results = list(verify_each(store, store.numbers()))
    rows = [{"version": result.version, "result": result.fault or "intact"} for result in results]
    if (fault := log_fault(store)) is not None:
        rows.append({"version": "alias log", "result": fault})
    publish_table(f"{dataset}-verified", rows, f"The versions in {store.root}")
    if faults := [str(row["result"]) for row in rows if row["result"] != "intact"]:
        raise StoredArtifactError("\n".join(faults))
    logger.info("%s: %d versions are intact", store.root, len(results))
    return VerifiedStore(dataset=dataset, versions=tuple(result.version for result in results))
