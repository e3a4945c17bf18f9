"""Watch the data folder: when its CSVs are not those that were announced last, an event says so."""

import json
import logging
from pathlib import Path

from prefect import task
from prefect.client.orchestration import get_client
from prefect.events import Event, Resource

from schemas.contract import contract_of
from schemas.layout import Artifacts
from schemas.references import WatchedData
from tasks.data.data_folder import folder_digest
from tasks.runtime.files import atomic_write, digest_of, write_json

logger = logging.getLogger(__name__)

EVENT = "fashion-ann.data.updated"


@task(name="watch")
def watch(dataset: str, data_dir: Path, artifacts_dir: Path) -> WatchedData:
    """Emit `EVENT` if the CSVs of ``data_dir`` are others than those that were announced last.

    What was announced is remembered only after the server has the event: a kill between the two announces it again,
    which trains nothing twice. Data that is not whole, or that changes while it is read, is left for the next look.
    """
    digest = folder_digest(contract_of(dataset), data_dir)
    seen = WatchedData(data_dir=data_dir, digest=digest, announced=False)
    # By folder, so that two folders that are watched in turn are not each other's change.
    memory = Artifacts(artifacts_dir).announced / f"{dataset}-{digest_of(str(data_dir))[:8]}.json"
    if digest is None or digest == _announced(memory):
        return seen
    _emit(dataset, seen)
    memory.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(memory) as temporary:
        write_json(temporary, {"digest": digest, "data_dir": str(data_dir)})
    logger.info("%s: new data, announced as %s", data_dir, digest)
    return seen.model_copy(update={"announced": True})


def _announced(memory: Path) -> str | None:
    """A memory that cannot be read remembers nothing: announcing again costs a run that finds nothing new."""
    try:
        return str(json.loads(memory.read_bytes())["digest"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        logger.warning("%s cannot be read (%s) and is ignored", memory, error)
        return None


def _emit(dataset: str, seen: WatchedData) -> None:
    """Hand the event to the API. Prefect's `emit_event` only queues it, and a process may end before it is sent."""
    event = Event(
        event=EVENT,
        resource=Resource({"prefect.resource.id": f"fashion-ann.data.{dataset}"}),
        payload={"digest": seen.digest, "data_dir": str(seen.data_dir)},
    )
    with get_client(sync_client=True) as client:
        client.request("POST", "/events", json=[event.model_dump(mode="json")])
