"""Write files atomically, and digest them."""

import glob
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil


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


def pretty_json(value: Any) -> bytes:
    """The one spelling of a JSON file, indented, so that a changed byte shows even where it says nothing."""
    return (json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n").encode()


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file for people and programs, and force it to disk."""
    with path.open("wb") as file:
        file.write(pretty_json(value))
        file.flush()
        os.fsync(file.fileno())


def sync_to_disk(path: Path) -> None:
    """A file's content, or a folder's names: else a power cut can leave a name without what it stands for."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A temporary neighbour of ``path`` to write to; it takes the name of ``path`` when the block ends well.

    On an error nothing is left of it. What a killed process left is removed by `sweep_temporaries`.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def sweep_temporaries(path: Path) -> None:
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


def describe_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and sha256 of every file below ``folder``, under its relative path."""
    return {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
