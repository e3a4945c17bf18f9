"""Build a stage's output once per cache key, whole or not at all, and verify it before it is reused.

An output is a folder with a `stage.json` that lists its files. Both are written to a temporary folder, which is then
renamed to the beginning of the key: the digest of the stage's inputs, parameters, code and lock.

With FASHION_ANN_REMOTE an output that this machine lacks is fetched from there, and a new one is stored there.
"""

import logging
import os
import time
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar, overload

from pydantic import Field

from schemas.errors import StageNotWritten, StoredArtifactError
from schemas.layout import RECORD_NAME, short_key
from schemas.references import StageRecord
from schemas.store import StoredFile, StoredJson
from tasks.runtime.events import StageFinished, StageMissed, StageStarted, emit
from tasks.runtime.files import (
    atomic_folder,
    describe_files,
    digest_of,
    discard_folder,
    remove_leftover,
    without_temporary_names,
    write_json,
)
from tasks.runtime.fingerprint import code_digest, lock_digest
from tasks.runtime.locks import lock
from tasks.runtime.remote import STAGES, Remote, configured_remote
from tasks.runtime.stages import Stage
from tasks.runtime.stored_file import check_stored, parse_json, read_json

logger = logging.getLogger(__name__)

Parsed = TypeVar("Parsed")


# Raised by the parsers of json, numpy, pyarrow and pydantic for the content of a file, and by code that then uses it.
_OTHER_CONTENT = (ValueError, TypeError, LookupError, AttributeError, OSError, EOFError, zipfile.BadZipFile)


class _Record(StoredJson):
    """The part of stage.json that is read."""

    stage: str
    key: str
    facts: dict[str, Any]
    seconds: float
    files: dict[Annotated[str, Field(pattern=r"^[^/.\x00][^/\x00]*(/[^/.\x00][^/\x00]*)*$")], StoredFile]
    record_sha256: str


def stage_key(stage: Stage, inputs: Mapping[str, Any]) -> str:
    """Return the digest of everything that a stage's output depends on."""
    return digest_of(_cache_inputs(stage, inputs))


def output_folder(folder: Path, key: str) -> Path:
    """Return the folder in which `run_stage` stores the output for ``key``, a `stage_key`."""
    return folder / short_key(key)


def _cache_inputs(stage: Stage, inputs: Mapping[str, Any]) -> dict[str, Any]:
    return {"stage": stage.name, "inputs": dict(inputs), "code": code_digest(stage.core), "lock": lock_digest()}


@overload
def run_stage(
    folder: Path, stage: Stage, inputs: Mapping[str, Any], build: Callable[[Path], Mapping[str, Any]]
) -> tuple[StageRecord, dict[str, Any]]: ...
@overload
def run_stage(
    folder: Path,
    stage: Stage,
    inputs: Mapping[str, Any],
    build: Callable[[Path], Mapping[str, Any]],
    parse: Callable[[StageRecord, dict[str, Any]], Parsed],
) -> Parsed: ...
def run_stage(
    folder: Path,
    stage: Stage,
    inputs: Mapping[str, Any],
    build: Callable[[Path], Mapping[str, Any]],
    parse: Callable[[StageRecord, dict[str, Any]], Any] = lambda record, facts: (record, facts),
) -> Any:
    """Build a stage's output, or return the one that an earlier run built for the same key.

    folder: holds the outputs of this stage, one folder per key.
    inputs: everything but code that the output depends on, as JSON: digests of data, parameters. No paths.
    build: writes the output into the empty folder that it receives and returns facts about it, as JSON.
    parse: receives the record and the facts, and reads files that another process may have replaced and resealed. If it
        raises an error for an earlier output, that output is built again.

    An output that is neither on this machine nor in the remote is built. One that the remote lacks is stored there.

    Returns what ``parse`` returns, by default the record and the facts. Exceptions of ``build`` propagate; no partial
    output remains. Raises `StageNotWritten` for an OSError that names no file, and `RemoteUnavailable`, after which the
    output is kept on this machine.
    """
    remote, damaged = configured_remote(), False
    cache_inputs = _cache_inputs(stage, inputs)
    key, split = digest_of(cache_inputs), inputs.get("split")
    final = output_folder(folder, key)
    folder.mkdir(parents=True, exist_ok=True)
    report = emit if not stage.per_shard else lambda event: None  # the stage that it is part of reports the shards
    report(StageStarted(stage.name, split))
    with lock(folder / f".{final.name}.lock", waiting=f"{stage.name}: another run is building it; waiting for it"):
        for temporary in folder.glob(f".{final.name}.*.tmp"):
            if remove_leftover(temporary):
                logger.info("removed %s, left by a run that was killed", temporary)
        earlier = _earlier_output(final, stage, key, parse)
        if earlier is None and remote is not None and (found := remote.read(record_name(stage.name, key))) is not None:
            fetch_output(remote, found, final)
            earlier = _earlier_output(final, stage, key, parse)
            damaged = earlier is None
        if earlier is None:
            report(StageMissed(stage.name, split))
            record = _build_output(final, {**cache_inputs, "key": key}, build)
            reference, facts = _reference(final, record, reused=False), record["facts"]
        else:
            reference, facts, parsed = earlier
        if remote is not None:
            _push_output(remote, reference, replace=damaged)
    report(StageFinished(stage.name, split, reference.reused, reference.seconds, facts))
    return parse(reference, facts) if earlier is None else parsed


def _reference(final: Path, record: Mapping[str, Any], *, reused: bool) -> StageRecord:
    return StageRecord(
        stage=record["stage"],
        split=record["inputs"].get("split"),
        key=record["key"],
        digest=digest_of(record["files"]),
        path=final,
        reused=reused,
        seconds=record["seconds"],
    )


def _earlier_output(
    final: Path, stage: Stage, key: str, parse: Callable[[StageRecord, dict[str, Any]], Parsed]
) -> tuple[StageRecord, dict[str, Any], Parsed] | None:
    """Return reference, facts and parsed content of the output in ``final``, if any. A damaged output is removed."""
    if not os.path.lexists(final):
        return None
    try:
        record = read_stage(final)
        if (record["stage"], record["key"]) != (stage.name, key):
            raise StoredArtifactError(f"{final / RECORD_NAME}: expected key {key}, received {record['key']}.")
        reference, facts = _reference(final, record, reused=True), record["facts"]
        try:
            parsed = parse(reference, facts)
        except _OTHER_CONTENT as error:
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            message = f"{final} has other content than this stage writes ({reason})."
            raise StoredArtifactError(message) from error
    except StoredArtifactError as error:
        logger.warning("%s: an earlier output is damaged and is rebuilt. %s", stage.name, error)
        discard_folder(final, RECORD_NAME)
        return None
    logger.debug("reused %s", final.name)
    return reference, facts, parsed


def record_name(stage: str, key: str, digest: str | None = None) -> str:
    """Return the name of a record in the remote: of the first output for a key, or of the one with this ``digest``.

    Two machines may build the same output at once, and a GPU need not give the same files twice.
    """
    return f"{STAGES}/{stage}/{key}/{digest or 'stage'}.json"


def is_built(stage: Stage, artifacts_dir: Path | None, inputs: Mapping[str, Any]) -> bool:
    """Return whether ``artifacts_dir`` has an output for the inputs of `run_stage`. It is not verified."""
    if artifacts_dir is None:
        return False
    return output_folder(stage.outputs(artifacts_dir), stage_key(stage, inputs)).exists()


def is_in_remote(stage: Stage, inputs: Mapping[str, Any]) -> bool:
    """Return whether the remote has an output for the inputs of `run_stage`."""
    remote = configured_remote()
    return remote is not None and remote.stat(record_name(stage.name, stage_key(stage, inputs))) is not None


def fetch_output(remote: Remote, record: bytes, final: Path) -> StoredArtifactError | None:
    """Fetch the output with this record to the new folder ``final``.

    If it is damaged in the remote, log a warning and return the error, which names the object.
    """
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        with atomic_folder(final) as temporary:
            (temporary / RECORD_NAME).write_bytes(record)
            for name, entry in read_record(temporary)["files"].items():
                path = temporary / name
                path.parent.mkdir(parents=True, exist_ok=True)
                remote.fetch_file(entry["sha256"], entry["bytes"], path)
    except StoredArtifactError as error:
        logger.warning("%s: an output in the remote is damaged and is not used. %s", final.name, error)
        return error
    logger.info("%s: fetched from %s", final.name, remote.address)
    return None


def _push_output(remote: Remote, reference: StageRecord, *, replace: bool) -> None:
    """Store a verified output in the remote, unless it has it. ``replace``: the output in the remote is damaged."""
    content = (reference.path / RECORD_NAME).read_bytes()
    first = record_name(reference.stage, reference.key)
    own = record_name(reference.stage, reference.key, reference.digest)
    found = None if replace else remote.get(first)
    if found is not None and not is_record_of(found[1], reference):  # another machine built it, too
        first, found = own, remote.get(own)
    if found is None:
        for name, entry in read_record(reference.path)["files"].items():
            remote.push_file(reference.path / name, entry["sha256"])
        if replace:
            remote.write(first, content)
        elif not remote.create(first, content) and not is_record_of(remote.read(first) or b"", reference):
            remote.create(own, content)
    elif found[0].needs_rewrite:
        remote.write(first, content)


def is_record_of(content: bytes, reference: StageRecord) -> bool:
    """Return whether a record in the remote describes the same files as ``reference``."""
    try:
        return digest_of(parse_json(content)["files"]) == reference.digest
    except (ValueError, LookupError, TypeError):
        return False


def _build_output(
    final: Path, identity: Mapping[str, Any], build: Callable[[Path], Mapping[str, Any]]
) -> dict[str, Any]:
    started = time.monotonic()
    try:
        with atomic_folder(final) as temporary:
            facts = dict(build(temporary))
            seconds = round(time.monotonic() - started, 3)
            record = {**identity, "facts": facts, "seconds": seconds, "files": describe_files(temporary)}
            write_json(temporary / RECORD_NAME, {**record, "record_sha256": digest_of(record)})
    except OSError as error:
        if error.filename is not None:
            raise
        # numpy and pyarrow leave out the file name, mostly on a full disk.
        reason = without_temporary_names(error.strerror or str(error))
        raise StageNotWritten(f"{identity['stage']} could not write to {final.parent}: {reason}.") from error
    return record


def read_stage(folder: Path) -> dict[str, Any]:
    """Return the record of a finished stage, after verifying its digest and every file that it lists.

    Raises `StoredArtifactError` if the record or a file is missing or was changed.
    """
    record = read_record(folder)
    for name, entry in record["files"].items():
        check_stored(folder / name, entry["sha256"], largest=entry["bytes"])  # arrays grow with the data
    return record


def read_record(folder: Path) -> dict[str, Any]:
    """Return the record of a finished stage, after verifying its digest. The files that it lists are not verified.

    Raises `StoredArtifactError` if the record is missing or was changed.
    """
    path = folder / RECORD_NAME
    record: dict[str, Any] = read_json(path)
    _Record.parse(record, str(path))
    expected = record.pop("record_sha256")
    if (actual := digest_of(record)) != expected:
        raise StoredArtifactError(f"{path}: expected content with sha256 {expected}, received {actual}.")
    return record
