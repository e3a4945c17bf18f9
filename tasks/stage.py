"""A stage's output is whole or absent, is made once for the same inputs, and is checked before it is used again.

An output is a folder with a `stage.json` that names every file in it, written last inside a temporary folder that is
then renamed. The folder's name carries the key: the digest of the stage's inputs, parameters, code and lock.
"""

import ast
import fcntl
import glob
import hashlib
import json
import logging
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock, Timeout

from schemas.config import PROJECT_ROOT
from schemas.errors import StageNotWritten, StoredArtifactError
from schemas.references import StageRecord
from tasks.fingerprint import CUDNN, installed_extra
from tasks.progress import Begun, Ended, tell

logger = logging.getLogger(__name__)

RECORD_NAME = "stage.json"
LOCK_NAME = ".in-use"
_PARSING_TRIES = 10
_PROJECT_PACKAGES = ("schemas", "tasks")
# What the numbers of a model can depend on.
_PACKAGES = (
    *("keras", "tensorflow", "tensorflow-cpu", CUDNN, "jax", "numpy", "pandas", "pyarrow"),
    *("great-expectations", "prefect", "fashion-ann"),
)


def sha256_file(path: Path) -> str:
    """Digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def canonical_json(value: Any) -> bytes:
    """The one spelling of a JSON value: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def digest_of(value: Any) -> str:
    """sha256 of a JSON value, however its keys are ordered."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def json_for_people(value: Any) -> bytes:
    """The one spelling of a JSON file, indented, so that a changed byte shows even where it says nothing."""
    return (json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n").encode()


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file for people and programs, and force it to disk."""
    with path.open("wb") as file:
        file.write(json_for_people(value))
        file.flush()
        os.fsync(file.fileno())


def to_disk(path: Path) -> None:
    """A file's content, or a folder's names: else a power cut can leave a name without what it stands for."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


@cache
def code_digest(module: str) -> str:
    """Digest of a module's code and of all project code that it imports.

    Comments and layout do not count: a reformatted file makes nothing anew.
    """
    seen: dict[str, str] = {}
    _collect_code(module, seen)
    return digest_of(seen)


def _collect_code(module: str, seen: dict[str, str]) -> None:
    path = PROJECT_ROOT.joinpath(*module.split(".")).with_suffix(".py")
    if module in seen or not path.is_file():
        return
    seen[module], imported = _code(path)
    for name in imported:
        _collect_code(name, seen)


@cache
def _code(path: Path) -> tuple[str, list[str]]:
    """A module without comments and layout, and what of the project it may import. Kept: most belong to many stages."""
    tree = _parsed(path)
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    return ast.dump(tree), [name for name in names if name.partition(".")[0] in _PROJECT_PACKAGES]


def _parsed(path: Path) -> ast.Module:
    """Before Python 3.11.8 parsing may fail while another thread parses, Prefect's say: cpython issue 106905."""
    source = path.read_text(encoding="utf-8")
    for _ in range(_PARSING_TRIES - 1):
        with suppress(SystemError):
            return ast.parse(source)
    return ast.parse(source)


@cache
def lock_digest() -> str:
    """Digest of the lock that this environment was installed from."""
    return sha256_file(PROJECT_ROOT / "requirements" / f"{installed_extra()}.lock")


def package_versions() -> dict[str, str]:
    """Of Python and of what the numbers of a model can depend on, those that are installed."""
    versions = {"python": ".".join(map(str, sys.version_info[:3]))}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A temporary neighbour of ``path`` to write to; it takes the name of ``path`` when the block ends well.

    On an error nothing is left of it. What a killed process left is removed by `sweep_replaced`.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def sweep_replaced(path: Path) -> None:
    """Remove what killed processes of this machine left of ``path`` under its temporary names."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        writer = left.name.split(".")[-2]
        if not (writer.isdigit() and psutil.pid_exists(int(writer))):
            left.unlink(missing_ok=True)


def remove_path(path: Path) -> None:
    """Remove a file, a link or a whole folder, if it is there; what a link leads to stays."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def stage_key(module: str, inputs: Mapping[str, Any]) -> str:
    """Digest of all that a stage's output depends on."""
    return digest_of(_hung_on(module, inputs))


def output_folder(folder: Path, key: str) -> Path:
    """Where `run_stage` puts what it makes in ``folder``; ``key`` is its `stage_key`."""
    return folder / key[:16]


def _hung_on(module: str, inputs: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "stage": module.rpartition(".")[2],
        "inputs": dict(inputs),
        "code": code_digest(module),
        "lock": lock_digest(),
    }


def run_stage(
    folder: Path,
    module: str,
    inputs: Mapping[str, Any],
    produce: Callable[[Path], Mapping[str, Any]],
) -> tuple[StageRecord, dict[str, Any]]:
    """Run a stage, or find what it made before.

    folder: where outputs of this stage lie, one folder a key.
    module: ``__name__`` of the stage, whose code is part of the key.
    inputs: all else that the output depends on, as JSON: digests of data, parameters. No paths of this machine.
    produce: writes the output into the empty folder that it is handed and returns facts about it, as JSON.

    Returns the record and the facts. Whatever `produce` raises passes through, and leaves nothing behind.
    """
    hung_on = _hung_on(module, inputs)
    stage, key = hung_on["stage"], digest_of(hung_on)
    final = output_folder(folder, key)
    folder.mkdir(parents=True, exist_ok=True)
    split = inputs.get("split")
    tell(Begun(stage, split))
    with _only_maker(folder / f".{key[:16]}.lock", stage):
        _sweep(folder, key)
        if final.exists():
            try:
                record = read_stage(final)
            except StoredArtifactError as error:
                logger.warning("%s: an earlier output is damaged and is made anew. %s", stage, error)
                shutil.rmtree(final)
            else:
                logger.info("%s: reused %s", stage, final.name)
                tell(Ended(stage, split, True, record["seconds"], record["facts"]))
                return _reference(record, final, reused=True), record["facts"]
        temporary = folder / f".{key[:16]}.{os.getpid()}.tmp"
        temporary.mkdir()
        started = time.monotonic()
        try:
            facts = dict(produce(temporary))
            seconds = round(time.monotonic() - started, 3)
            record = {**hung_on, "key": key, "facts": facts, "seconds": seconds, "files": describe_files(temporary)}
            write_json(temporary / RECORD_NAME, {**record, "record_sha256": digest_of(record)})
            temporary.rename(final)
        except OSError as error:
            if error.filename is not None:
                raise
            # A full disk, mostly: numpy and pyarrow do not say which.
            raise StageNotWritten(f"{stage} could not write to {folder}: {error.strerror or error}.") from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        tell(Ended(stage, split, False, seconds, facts))
        return _reference(record, final, reused=False), facts


@contextmanager
def _only_maker(path: Path, stage: str) -> Iterator[None]:
    """A second run that needs the same output waits for the first, and then finds it."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=1)
    except Timeout:
        logger.info("%s: another run is making the same; waiting for it", stage)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def in_use(artifacts_dir: Path, *, alone: bool = False) -> Iterator[bool]:
    """Hold the outputs of stages: a run shares them with other runs, whoever removes some wants them ``alone``.

    Between its stages a run relies on outputs that no version names yet. Yields whether they are held: a run waits for
    that, ``alone`` never does. The kernel lets go when the holder dies.
    """
    artifacts_dir.mkdir(parents=True, exist_ok=True)
    # Opened for writing, because a lock for one alone on a shared disk demands it.
    descriptor = os.open(artifacts_dir / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        held = _flock(descriptor, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        if not held and not alone:
            logger.info("%s is being cleaned up; waiting for the end of it", artifacts_dir)
            held = _flock(descriptor, fcntl.LOCK_SH)
        yield held
    finally:
        os.close(descriptor)


def _flock(descriptor: int, how: int) -> bool:
    try:
        fcntl.flock(descriptor, how)
    except BlockingIOError:
        return False
    return True


def read_stage(folder: Path) -> dict[str, Any]:
    """The record of a finished stage, after its own digest and every file that it names were checked.

    Raises `StoredArtifactError` when the record or a file is missing, or is not what was written.
    """
    path = folder / RECORD_NAME
    try:
        record: dict[str, Any] = json.loads(path.read_bytes())
        stated = record.pop("record_sha256")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoredArtifactError(f"{path} cannot be read as the record of a stage ({error!r}).") from error
    if digest_of(record) != stated:
        raise StoredArtifactError(f"{path}: expected content with sha256 {stated}, found {digest_of(record)}.")
    for name, entry in record["files"].items():
        size, sha256 = entry["bytes"], entry["sha256"]
        file = folder / name
        found = sha256_file(file) if file.is_file() and file.stat().st_size == size else "nothing of that size"
        if found != sha256:
            raise StoredArtifactError(f"{file}: expected sha256 {sha256} ({size} bytes), found {found}.")
    return record


def _reference(record: Mapping[str, Any], folder: Path, *, reused: bool) -> StageRecord:
    return StageRecord(
        stage=record["stage"],
        key=record["key"],
        digest=digest_of(record["files"]),
        path=folder,
        reused=reused,
        seconds=record["seconds"],
    )


def describe_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and sha256 of every file below ``folder``, under its relative path."""
    return {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _sweep(folder: Path, key: str) -> None:
    """Remove what a killed run left of this output. Under the lock nobody else is writing it."""
    for left in folder.glob(f".{key[:16]}.*.tmp"):
        logger.info("removed %s, left by a run that was killed", left)
        shutil.rmtree(left)
