"""Delete versions that are not needed, and stage outputs that no kept version refers to."""

import logging
import time
from collections import defaultdict
from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE

from schemas.errors import LockHeld
from schemas.layout import Artifacts
from schemas.references import Garbage
from tasks.registry import gc
from tasks.registry.store import ModelStore
from tasks.registry.version_events import send_unsent
from tasks.reports.mlflow_sync import update_mlflow
from tasks.reports.versions_page import write_versions_page
from tasks.runtime.files import remove_leftover
from tasks.runtime.log_rotation import rotate_logs
from tasks.runtime.prefect_artifacts import publish_table
from tasks.runtime.prefect_events import sender_of_run

logger = logging.getLogger(__name__)

# A run needs less to add its version, so only a writer that hangs exceeds this time.
SECONDS_TO_WAIT = 600
# As long as Prefect's server keeps a flow run, see pyproject.toml: a retry of the run reads its results.
SECONDS_OF_RESULTS = 7_776_000


@task(name="collect", task_run_name="collect", cache_policy=NO_CACHE)
def collect(dataset: str, keep: int, artifacts_dir: Path, seconds: float = SECONDS_TO_WAIT) -> Garbage:
    """Run `tasks.registry.gc.collect`, and publish what it deleted. While a run is active, some or all garbage stays.

    Logs of `fashion-ann up` are also rotated, and old results of flow runs deleted.

    seconds: how long to wait for a process that writes to the store.
    """
    for log in rotate_logs(Artifacts(artifacts_dir).service_logs):
        logger.info("%s: rotated", log)
    for result in Artifacts(artifacts_dir).flow_results.glob("*"):
        if result.is_file() and time.time() - result.lstat().st_mtime > SECONDS_OF_RESULTS:
            logger.info("to be deleted: result of a flow run %s", result)
            remove_leftover(result)
    # First, because an event describes a version that may be deleted below.
    send_unsent(ModelStore.of(artifacts_dir, dataset), sender_of_run())
    try:
        plan = gc.collect(artifacts_dir, dataset, keep, seconds, _log_removals)
        update_mlflow(ModelStore.of(artifacts_dir, dataset))  # it may have logged the promotion of a killed run
    except LockHeld as error:
        plan = gc.Plan((), (), (str(error),), run_active=True)
    write_versions_page(ModelStore.of(artifacts_dir, dataset))
    totals: dict[str, list[int]] = defaultdict(list)
    for removal in plan.removed:
        totals[removal.kind].append(removal.bytes)
    kept = ", ".join(map(str, plan.kept_versions)) or "none"
    publish_table(
        f"{dataset}-garbage",
        [{"kind": kind, "items": len(sizes), "bytes": sum(sizes)} for kind, sizes in totals.items()],
        " ".join([f"Deleted {len(plan.removed)} items, {plan.bytes:,} bytes; versions kept: {kept}.", *plan.notes]),
    )
    for note in plan.notes:
        logger.info("%s", note)
    return Garbage(
        dataset=dataset,
        removed=len(plan.removed),
        bytes=plan.bytes,
        kept_versions=plan.kept_versions,
        notes=plan.notes,
        run_active=plan.run_active,
    )


def _log_removals(plan: gc.Plan) -> None:
    for removal in plan.removed:
        logger.info("to be deleted: %s %s, %d bytes", removal.kind, removal.path, removal.bytes)
