"""Bring the outputs that a reference names to this machine: the task that returned it may have run on another."""

from pathlib import Path
from typing import Any, TypeVar

from schemas.errors import StoredArtifactError
from schemas.layout import RECORD_NAME, is_short_key, short_key
from schemas.references import ParquetPart, Reference, StageRecord
from tasks.runtime.files import digest_of, discard_folder
from tasks.runtime.locks import lock
from tasks.runtime.remote import Remote, configured_remote
from tasks.runtime.stage_cache import fetch_output, read_record, read_stage, record_name
from tasks.runtime.stages import BY_NAME

Here = TypeVar("Here", bound=Reference | None)


def materialize(reference: Here, artifacts_dir: Path) -> Here:
    """Return ``reference`` with paths of this machine. Fetch each output that is not in ``artifacts_dir``.

    Without FASHION_ANN_REMOTE the reference is returned as it is: all machines then have the same disk.

    Raises `StoredArtifactError` for an output that is neither here nor in the remote.
    """
    remote = configured_remote()
    return reference if remote is None else _here(remote, reference, artifacts_dir)


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
    for digest in (None, record.digest):
        content = remote.read(record_name(record.stage, record.key, digest))
        if content is not None:
            fetch_output(remote, content, path)
            if _is_output(path, record, verify=True):
                return
            if path.exists():
                discard_folder(path, RECORD_NAME)
    raise StoredArtifactError(
        f"{record.path}: expected an output of {record.stage} with digest {record.digest}, which is neither on this "
        f"machine nor intact in {remote.address}. Run again to build it."
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
