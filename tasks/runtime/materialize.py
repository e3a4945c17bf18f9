"""Bring the outputs that a reference names to this machine: the task that returned it may have run on another."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from schemas.config import REMOTE_VARIABLE
from schemas.errors import DataContractError, RemoteUnavailable, StoredArtifactError, WrongUsage
from schemas.layout import RECORD_NAME, is_short_key, short_key
from schemas.references import CsvFile, ParquetPart, Reference, StageRecord
from tasks.runtime.files import digest_of, discard_folder, sha256_file
from tasks.runtime.locks import lock
from tasks.runtime.remote import Remote, configured_remote, file_name
from tasks.runtime.stage_cache import fetch_output, is_record_of, read_record, read_stage, record_name
from tasks.runtime.stages import BY_NAME

Here = TypeVar("Here", bound=Reference | None)
File = TypeVar("File", CsvFile, ParquetPart)


def materialize(reference: Here, artifacts_dir: Path) -> Here:
    """Return ``reference`` with paths of this machine. Fetch each output that is not in ``artifacts_dir``.

    Without FASHION_ANN_REMOTE the reference is returned as it is: all machines then have the same disk.

    Raises `StoredArtifactError` for an output that is neither here nor in the remote.
    """
    remote = configured_remote()
    return reference if remote is None else _here(remote, reference, artifacts_dir)


@contextmanager
def file_here(file: File, folder: Path, artifacts_dir: Path | None) -> Iterator[File]:
    """Yield ``file`` with a path of this machine. One that is not here is fetched to ``folder`` for the block.

    artifacts_dir: that of a task per shard, see `tasks.runtime.task_runs.shard_artifacts`. If it is given, the file is
        on the disk of the run and is yielded as it is. Hashing a CSV here, too, takes a tenth of the CPU time of its
        ingest, whose reader verifies the digest.

    Raises `StoredArtifactError` for a file that is neither here nor in the remote.
    """
    remote = configured_remote()
    if remote is None or artifacts_dir is not None or (file.path.is_file() and sha256_file(file.path) == file.sha256):
        yield file
        return
    if (stored := remote.stat(file_name(file.sha256))) is None:
        if file.path.is_file():  # the reader reports that it was changed
            yield file
            return
        raise StoredArtifactError(
            f"{file.path}: expected a file with sha256 {file.sha256}, which is neither on this machine nor in "
            f"{remote.address}. All machines of a run need the same release and packages."
        )
    fetched = folder / file.path.name
    try:
        remote.fetch_file(file.sha256, stored.size, fetched)
        yield file.model_copy(update={"path": fetched})
    finally:
        fetched.unlink(missing_ok=True)


def send_csv(csv: CsvFile) -> None:
    """Store a CSV in the remote, where `file_here` finds it on another machine. Raises `DataContractError` if changed.

    It is no part of an output, so garbage collection in the remote deletes it when it has not been used for a while.
    """
    if (remote := configured_remote()) is None:
        return
    if (actual := sha256_file(csv.path)) != csv.sha256:  # other content must not get this name
        raise DataContractError(
            f"{csv.path} changed since it was hashed: expected sha256 {csv.sha256}, received {actual}. "
            "Run again when nothing writes to it."
        )
    remote.push_file(csv.path, csv.sha256)


def send_file(path: Path, sha256: str) -> None:
    """Store a file in the remote, for `receive_file` on another machine. Garbage collection deletes it as a CSV."""
    _required_remote().push_file(path, sha256)


def receive_file(sha256: str, path: Path) -> None:
    """Write the file that another machine stored by `send_file` to ``path``. Raises `StoredArtifactError`."""
    remote = _required_remote()
    stored = remote.stat(file_name(sha256))
    remote.fetch_file(sha256, 0 if stored is None else stored.size, path)


def _required_remote() -> Remote:
    if (remote := configured_remote()) is None:
        raise WrongUsage(f"Expected an address of object storage in {REMOTE_VARIABLE}, received none.")
    return remote


def _here(remote: Remote, value: Any, artifacts_dir: Path) -> Any:
    if isinstance(value, StageRecord):
        return _record_here(remote, value, artifacts_dir)
    if isinstance(value, tuple):
        return tuple(_here(remote, entry, artifacts_dir) for entry in value)
    if not isinstance(value, Reference):
        return value
    # A record last: the output of validate is inside that of ingest.
    names = sorted(type(value).model_fields, key=lambda name: name == "record")
    fields = {name: _here(remote, getattr(value, name), artifacts_dir) for name in names}
    before = getattr(value, "record", None)
    if isinstance(before, StageRecord):
        fields = {name: _moved(field, before.path, fields["record"].path) for name, field in fields.items()}
    return value.model_copy(update=fields)


def _moved(value: Any, before: Path, after: Path) -> Any:
    """Return a value with the folder ``before`` replaced by ``after`` in its paths, also in parts without a record."""
    if isinstance(value, Path):
        return after / value.relative_to(before) if value.is_relative_to(before) else value
    if isinstance(value, tuple):
        return tuple(_moved(entry, before, after) for entry in value)
    if isinstance(value, ParquetPart):
        return value.model_copy(update={"path": _moved(value.path, before, after)})
    return value


def _record_here(remote: Remote, record: StageRecord, artifacts_dir: Path) -> StageRecord:
    if _is_output(record.path, record):
        return record
    path = artifacts_dir / _inside_artifacts(record)
    if not _is_output(path, record):
        path.parent.mkdir(parents=True, exist_ok=True)
        waiting = f"{record.stage}: another run is fetching or building it; waiting for it"
        with lock(path.parent / f".{path.name}.lock", waiting=waiting):
            if not _is_output(path, record):
                _fetch(remote, record, path)
    return record.model_copy(update={"path": path})


def _fetch(remote: Remote, record: StageRecord, path: Path) -> None:
    if path.exists():
        discard_folder(path, RECORD_NAME)  # damaged, or not the output of this machine that the record names
    names = [record_name(record.stage, record.key, digest) for digest in (None, record.digest)]
    reason = "it has no record of it."
    for name in names:
        content = remote.read(name)
        if content is None or not is_record_of(content, record):
            continue
        if (error := fetch_output(remote, content, path)) is None and _is_output(path, record, verify=True):
            return
        if path.exists():
            discard_folder(path, RECORD_NAME)
        reason = str(error or f"{remote.address}/{name} is damaged.")
        # The machine that has the output then stores it again.
        with suppress(RemoteUnavailable):  # as without the permission to delete
            remote.delete([name])
    raise StoredArtifactError(
        f"{record.path}: expected an output of {record.stage} with digest {record.digest}, which is neither on this "
        f"machine nor intact in {remote.address}: {reason} Run again: the machine that has it stores it again, or it "
        "is built again. If this error returns, delete the object that it names."
    )


def _is_output(path: Path, record: StageRecord, *, verify: bool = False) -> bool:
    """Return whether ``path`` is the output of ``record``. Without ``verify`` its files are not read."""
    if not (path / RECORD_NAME).is_file():
        return False
    try:
        stored = read_stage(path) if verify else read_record(path)
    except StoredArtifactError:
        return False
    return bool(digest_of(stored["files"]) == record.digest)


def _inside_artifacts(record: StageRecord) -> Path:
    """Return the path of an output below the artifacts folder of any machine."""
    folder = BY_NAME[record.stage].folder if record.stage in BY_NAME else None
    if folder is not None:
        parts = record.path.parts[-len(Path(folder).parts) - 1 :]
        expected = (*Path(folder).parts, short_key(record.key))
        if len(parts) == len(expected) and all(
            part == name or (name == "*" and is_short_key(part)) for part, name in zip(parts, expected, strict=True)
        ):
            return Path(*parts)
    raise StoredArtifactError(f"{record.path}: expected a path of an output of {record.stage}.")
