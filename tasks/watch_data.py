"""Watch the data folder, and emit an event when its CSVs differ from those announced last."""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from prefect import task
from prefect.client.orchestration import get_client
from prefect.events import Event, Resource

from schemas.contract import SPLITS, DatasetContract, Split, contract_of
from schemas.references import CsvFile, CsvSplit, WatchedData, sha256sum_digest
from tasks.data.data_folder import present_csvs
from tasks.runtime.files import atomic_write, digest_of, sha256_file, write_json

logger = logging.getLogger(__name__)

EVENT = "fashion-ann.data.updated"
ANNOUNCED_FOLDER = "announced"


def data_digest(csvs: Mapping[Split, CsvSplit]) -> str:
    """Return one digest of the CSVs of both splits, as ``sha256sum TEST.. TRAIN.. | sha256sum`` in their folder."""
    return sha256sum_digest(file for csv in csvs.values() for file in csv.files)


@task(name="watch")
def watch(dataset: str, data_dir: Path, artifacts_dir: Path) -> WatchedData:
    """Emit `EVENT` if the CSVs of ``data_dir`` differ from those announced last.

    The digest is stored after the server has accepted the event. A kill in between announces it again, which trains
    nothing twice. Data that is incomplete, or changes while it is read, is checked again by the next run.
    """
    digest = _complete_digest(contract_of(dataset), data_dir)
    watched = WatchedData(data_dir=data_dir, digest=digest, announced=False)
    # One file per folder, so that watching two folders in turn announces no change.
    memory = artifacts_dir / ANNOUNCED_FOLDER / f"{dataset}-{digest_of(str(data_dir))[:8]}.json"
    if digest is None or digest == _announced(memory):
        return watched
    _emit(dataset, watched)
    memory.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(memory) as temporary:
        write_json(temporary, {"digest": digest, "data_dir": str(data_dir)})
    logger.info("%s: new data, announced with digest %s", data_dir, digest)
    return watched.model_copy(update={"announced": True})


def _complete_digest(contract: DatasetContract, data_dir: Path) -> str | None:
    """Return the digest of the CSVs, None if a split is missing or the files change while they are read."""
    try:
        return _unchanged_digest(contract, data_dir)
    except FileNotFoundError as error:
        logger.info("%s was removed while it was read; the next run checks again", error.filename)
        return None


def _unchanged_digest(contract: DatasetContract, data_dir: Path) -> str | None:
    present = present_csvs(contract, data_dir)
    if len(present) < len(SPLITS):
        names = ", ".join(path.name for paths in present.values() for path in paths) or "no CSV"
        logger.info("%s contains %s; an event needs both splits", data_dir, names)
        return None
    before = _stamps(present)
    csvs = [CsvFile(path=path, sha256=sha256_file(path)) for paths in present.values() for path in paths]
    if _stamps(present) != before or present_csvs(contract, data_dir) != present:
        logger.info("%s: files are still being written; the next run checks again", data_dir)
        return None
    return sha256sum_digest(csvs)


def _stamps(present: Mapping[Split, Sequence[Path]]) -> list[tuple[int, int, int]]:
    entries = [path.stat() for paths in present.values() for path in paths]
    return [(entry.st_ino, entry.st_size, entry.st_mtime_ns) for entry in entries]


def _announced(memory: Path) -> str | None:
    """Return the digest announced last. An unreadable file counts as none: a repeated event trains nothing twice."""
    try:
        return str(json.loads(memory.read_bytes())["digest"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        logger.warning("%s cannot be read and is ignored: %s", memory, error)
        return None


def _emit(dataset: str, watched: WatchedData) -> None:
    """Send the event to the API. Prefect's `emit_event` only queues it, so the process could end before it is sent."""
    event = Event(
        event=EVENT,
        resource=Resource({"prefect.resource.id": f"fashion-ann.data.{dataset}"}),
        payload={"digest": watched.digest, "data_dir": str(watched.data_dir)},
    )
    with get_client(sync_client=True) as client:
        client.request("POST", "/events", json=[event.model_dump(mode="json")])
