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
    """Return the sha256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def canonical_json(value: Any) -> bytes:
    """Return the canonical spelling of a JSON value: sorted keys, no spaces. Raises ValueError for NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def digest_of(value: Any) -> str:
    """Return the sha256 of a JSON value, which the order of its keys does not change."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def pretty_json(value: Any) -> bytes:
    """Return the canonical spelling of a JSON file: indented, sorted keys, a final newline."""
    return (json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n").encode()


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file in its canonical spelling, and sync it to disk."""
    path.write_bytes(pretty_json(value))
    sync_to_disk(path)


def sync_to_disk(path: Path) -> None:
    """Sync a file's content, or a folder's entries: a power cut could leave a name without its content."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def temporary_name(path: Path) -> Path:
    """Return the hidden path beside ``path`` that this process uses while it writes or removes it."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``, and rename it to ``path`` when the block ends without an error.

    An error removes the temporary file. `sweep_temporaries` removes those of killed processes.
    """
    temporary = temporary_name(path)
    try:
        yield temporary
        temporary.replace(path)
    finally:
        remove_path(temporary)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder beside ``path``, and rename it to ``path`` when the block ends without an error.

    An error removes the folder. The next holder of the output's lock removes those of killed processes.
    """
    with atomic_write(path) as temporary:
        temporary.mkdir()
        yield temporary


def sweep_temporaries(path: Path) -> None:
    """Remove the temporary files of ``path`` that killed processes of this machine left."""
    for temporary in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        writer = temporary.name.split(".")[-2]
        if not (writer.isdigit() and psutil.pid_exists(int(writer))):
            temporary.unlink(missing_ok=True)


def is_mount_point(path: Path) -> bool:
    """Return whether something is mounted on ``path`` itself, also a file of the same file system."""
    return any(mount.mountpoint == str(path) for mount in psutil.disk_partitions(all=True))


def remove_path(path: Path) -> None:
    """Remove a file, a link or a whole folder, if it exists. The target of a link stays."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def describe_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the size and sha256 of every file below ``folder``, by relative path."""
    return {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
