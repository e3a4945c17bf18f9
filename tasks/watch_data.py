"""Watch the data folder, and emit an event when its CSVs differ from those announced last."""

import logging
from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE

from schemas.contract import contract_of
from schemas.layout import Artifacts
from schemas.references import WatchedData
from tasks.data.data_folder import folder_digest
from tasks.data.missing_data import describe_missing, may_fetch
from tasks.data.remote_folder import local_data_folder
from tasks.runtime.files import digest_of
from tasks.runtime.prefect_events import announce, read_announced

logger = logging.getLogger(__name__)

EVENT = "fashion-ann.data.updated"


@task(name="watch", cache_policy=NO_CACHE)
def watch(dataset: str, data_dir: Path, artifacts_dir: Path) -> WatchedData:
    """Emit `EVENT` if the CSVs of ``data_dir`` differ from those announced last.

    After a kill the same digest may be announced again, which trains nothing twice. Data that is incomplete, or changes
    while it is read, is checked again by the next run.
    """
    contract, folder = contract_of(dataset), local_data_folder(data_dir, artifacts_dir)
    digest = folder_digest(contract, folder)
    missing = describe_missing(contract, folder) if digest is None else None
    if missing is not None:
        logger.log(logging.INFO if may_fetch(contract, folder) else logging.WARNING, "%s", missing)
    watched = WatchedData(data_dir=data_dir, digest=digest, announced=False, missing=missing)
    # One file per folder, so that watching two folders in turn announces no change.
    memory = Artifacts(artifacts_dir).announced / f"{dataset}-{digest_of(str(data_dir))[:8]}.json"
    if digest is None or digest == read_announced(memory, lambda content: str(content["digest"]), None):
        return watched
    resource = {"prefect.resource.id": f"fashion-ann.data.{dataset}"}
    payload = {"digest": digest, "data_dir": str(data_dir)}
    announce([{"event": EVENT, "resource": resource, "payload": payload}], memory, payload)
    logger.info("%s: new data, announced with digest %s", data_dir, digest)
    return watched.model_copy(update={"announced": True})
