"""Copy the CSVs below an address of object storage to this machine."""

import logging
import os
from pathlib import Path

from schemas.config import as_address
from schemas.errors import DataUnavailable
from schemas.layout import Artifacts
from tasks.runtime.files import atomic_write, digest_of, remove_path, sweep_temporaries
from tasks.runtime.locks import lock
from tasks.runtime.remote import Remote, StoredObject, remote_at

logger = logging.getLogger(__name__)

CSV_SUFFIXES = (".csv", ".csv.gz")
_ATTEMPTS = 3


def local_data_folder(data_dir: Path, artifacts_dir: Path) -> Path:
    """Return ``data_dir``, or for an address a folder on this machine with copies of the CSVs directly below it.

    Only objects that changed are fetched again. Copies of objects that no longer exist are removed.

    Raises `DataUnavailable` for an object that changes while it is read, and `RemoteUnavailable`.
    """
    address = as_address(data_dir)
    if address is None:
        return data_dir
    folder = Artifacts(artifacts_dir).downloaded / digest_of(address)[:16]
    folder.mkdir(parents=True, exist_ok=True)
    remote = remote_at(address)
    waiting = f"{address}: another run is fetching; waiting for it"
    with lock(folder.with_name(f".{folder.name}.lock"), waiting=waiting):
        found = {entry.name: entry for entry in remote.objects("") if _is_csv(entry.name)}
        for path in folder.iterdir():
            if _is_csv(path.name) and path.name not in found:
                remove_path(path)
        for name, entry in found.items():
            if not _is_copy(folder / name, entry):
                _fetch(remote, entry, folder / name)
    return folder


def _is_csv(name: str) -> bool:
    return "/" not in name and not name.startswith(".") and name.endswith(CSV_SUFFIXES)


def _is_copy(path: Path, entry: StoredObject) -> bool:
    """Return whether a file has the size and the modification time of an object."""
    if not path.is_file():
        return False
    found = path.stat()
    return (found.st_size, found.st_mtime) == (entry.size, entry.modified.timestamp())


def _fetch(remote: Remote, entry: StoredObject, path: Path) -> None:
    sweep_temporaries(path)
    for _ in range(_ATTEMPTS):
        with atomic_write(path) as temporary:
            with temporary.open("wb") as file:
                for piece in remote.pieces(entry.name, entry.size):
                    file.write(piece)
            after = remote.stat(entry.name)
            os.utime(temporary, (entry.modified.timestamp(),) * 2)
        if after is not None and (after.e_tag, after.size) == (entry.e_tag, entry.size):
            logger.info("%s/%s: fetched, %d bytes", remote.address, entry.name, entry.size)
            return
        path.unlink()
        if after is None:
            break
        entry = after
    raise DataUnavailable(f"{remote.address}/{entry.name} changed while it was read. Run again when it is complete.")
