"""Watch the data folder: when its CSVs are not those that were announced last, an event says so."""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from prefect import task
from prefect.client.orchestration import get_client
from prefect.events import Event, Resource

from schemas.contract import SPLITS, DatasetContract, Split, contract_of
from schemas.layout import Artifacts
from schemas.references import CsvFile, CsvSplit, WatchedData, sha256sum_digest
from tasks.data.data_folder import present_csvs
from tasks.runtime.files import atomic_write, digest_of, sha256_file, write_json

logger = logging.getLogger(__name__)

EVENT = "fashion-ann.data.updated"


def data_digest(csvs: Mapping[Split, CsvSplit]) -> str:
    """One digest of the CSVs of both splits: what ``sha256sum TEST.. TRAIN.. | sha256sum`` prints in their folder."""
    return sha256sum_digest(file for csv in csvs.values() for file in csv.files)


@task(name="watch")
def watch(dataset: str, data_dir: Path, artifacts_dir: Path) -> WatchedData:
    """Emit `EVENT` if the CSVs of ``data_dir`` are others than those that were announced last.

    What was announced is remembered only after the server has the event: a kill between the two announces it again,
    which trains nothing twice. Data that is not whole, or that changes while it is read, is left for the next look.
    """
    contract = contract_of(dataset)
    digest = _settled_digest(contract, data_dir)
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


def _settled_digest(contract: DatasetContract, data_dir: Path) -> str | None:
    try:
        return _digest_of_whole(contract, data_dir)
    except FileNotFoundError as error:
        logger.info("%s went away while it was read; the next look tells", error.filename)
        return None


def _digest_of_whole(contract: DatasetContract, data_dir: Path) -> str | None:
    """None where a split is missing, or being written."""
    present = present_csvs(contract, data_dir)
    if len(present) < len(SPLITS):
        found = ", ".join(path.name for paths in present.values() for path in paths) or "no CSV"
        logger.info("%s: %s; nothing is announced before both splits are there", data_dir, found)
        return None
    before = _stamps(present)
    csvs = [CsvFile(path=path, sha256=sha256_file(path)) for paths in present.values() for path in paths]
    if _stamps(present) != before or present_csvs(contract, data_dir) != present:
        logger.info("%s: still being written; the next look tells", data_dir)
        return None
    return sha256sum_digest(csvs)


def _stamps(present: Mapping[Split, Sequence[Path]]) -> list[tuple[int, int, int]]:
    entries = [path.stat() for paths in present.values() for path in paths]
    return [(entry.st_ino, entry.st_size, entry.st_mtime_ns) for entry in entries]


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
