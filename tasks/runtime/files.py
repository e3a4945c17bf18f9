"""Write files atomically, remove them, and digest them."""

import errno
import glob
import hashlib
import json
import logging
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from schemas.layout import is_litter
from tasks.runtime.locks import abandoned, create_in_use

logger = logging.getLogger(__name__)

# Most permissions of rejected rows, logs and the state of services, which may quote data. The umask removes more.
PRIVATE_FILE, PRIVATE_FOLDER = 0o640, 0o750
SECRET_FILE = 0o600  # of passwords

# Errors of file systems that cannot sync a file or a folder. Any other error is a failure to write.
_NO_SYNC = {errno.EINVAL, errno.EBADF, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
_unsynced: set[int] = set()  # those that were logged


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
        sync_opened(opened, path)
    finally:
        os.close(opened)


def sync_opened(opened: int, path: Path) -> None:
    """Sync the file ``path`` by its descriptor. Log one warning if its file system cannot do that."""
    try:
        os.fsync(opened)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise
        if error.errno not in _unsynced:
            _unsynced.add(error.errno)
            logger.warning("%s cannot be synced to disk (%s): a power cut could damage new files", path, error.strerror)


def temporary_name(path: Path) -> Path:
    """Return a new hidden path beside ``path``, for its content while it is written or removed."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")


def without_temporary_names(text: str) -> str:
    """Return a message with each `temporary_name` replaced by the final name.

    Messages about one incident, such as a full disk, are then equal, and cause one notification.
    """
    return re.sub(r"\.([^/]+)\.[0-9a-f]{32}\.tmp", r"\1", text)


@contextmanager
def atomic_write(path: Path, *, mode: int = 0o666, near: Path | None = None) -> Iterator[Path]:
    """Yield an empty temporary file beside ``path``. Rename it to ``path`` when the block ends without an error.

    An error removes the temporary file. `sweep_temporaries` removes those of killed processes.

    mode: permissions of the file before the umask removes some.
    near: a path on the same file system. The temporary file is beside it instead.
    """
    with _replacing(path, partial(Path.touch, mode=mode), near) as temporary:
        yield temporary


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder beside ``path``, and rename it to ``path`` when the block ends without an error.

    An error removes the folder. The next holder of the output's lock removes those of killed processes.
    """
    with _replacing(path, Path.mkdir) as temporary:
        yield temporary


@contextmanager
def _replacing(path: Path, create: Callable[[Path], None], near: Path | None = None) -> Iterator[Path]:
    def create_temporary() -> Path:
        temporary = temporary_name(near or path)
        create(temporary)
        return temporary

    try:
        temporary, mark = create_in_use(create_temporary)
        try:
            yield temporary
            temporary.replace(path)
        finally:
            os.close(mark)
            remove_path(temporary)
    except OSError as error:
        if isinstance(error.filename, str | Path):
            error.filename = without_temporary_names(str(error.filename))
        raise


def link_or_copy(source: Path, target: Path) -> None:
    """Make ``target`` a hard link to the file ``source``, or a copy where the file system allows no link.

    Neither file may be changed afterwards. Either may be removed.
    """
    try:
        target.hardlink_to(source)
    except FileExistsError:
        raise
    except OSError:  # another file system, one without links, or too many links to one file
        shutil.copyfile(source, target)


def sweep_temporaries(path: Path) -> None:
    """Remove the temporary files of ``path`` that killed processes left, on this or another machine."""
    for temporary in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        with abandoned(temporary) as dead:
            if dead:
                remove_path(temporary)


def is_mount_point(path: Path) -> bool:
    """Return whether something is mounted on ``path`` itself, also a file of the same file system."""
    return any(mount.mountpoint == str(path) for mount in psutil.disk_partitions(all=True))


def contains_mount_point(folder: Path) -> bool:
    """Return whether something is mounted on ``folder`` or below it."""
    real = folder.resolve()
    return any(Path(mount.mountpoint).is_relative_to(real) for mount in psutil.disk_partitions(all=True))


def remove_path(path: Path) -> None:
    """Remove a file, a link or a whole folder, if it exists. The target of a link stays."""
    if not path.is_dir() or path.is_symlink():
        path.unlink(missing_ok=True)
        return
    try:
        shutil.rmtree(path)
    except OSError as error:
        if error.errno is not None:
            raise
        # It takes a folder for a link if its inode number is unstable, as on some FUSE and SMB file systems.
        for entry in path.iterdir():
            remove_path(entry)
        path.rmdir()


def remove_leftover(path: Path) -> bool:
    """Remove a file or folder that no reader opens, and return whether that succeeded. A failure is logged.

    NFS keeps files that a process has open, as ``.nfs...``, and their folder with them.
    """
    try:
        remove_path(path)
    except OSError as error:
        logger.warning("%s cannot be removed yet (%s)", path, error.strerror or error)
        return False
    return True


def discard_folder(folder: Path, index: str) -> bool:
    """Remove a folder that readers may open, and return whether everything was removed; see `remove_leftover`.

    For readers the folder is complete or absent, whenever this process is killed.

    index: the file without which readers use nothing in the folder; see `is_discarded`.
    """
    hidden = temporary_name(folder)
    try:
        folder.rename(hidden)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        # overlayfs renames no folder of a lower layer, such as one in a container's image, but every file.
        marker = temporary_name(folder.with_name(f"{folder.name}.{index}"))
        with suppress(FileNotFoundError):  # a removal that was killed renamed it
            (folder / index).rename(marker)
        return remove_leftover(folder) and remove_leftover(marker)
    return remove_leftover(hidden)


def is_discarded(folder: Path, index: str) -> bool:
    """Return whether `discard_folder` has removed the ``index`` but not the rest of the folder."""
    return not (folder / index).exists() and any(folder.parent.glob(f".{folder.name}.{index}.*.tmp"))


def describe_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the size and sha256 of every file below ``folder``, by relative path. Litter does not count."""
    return {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(map(is_litter, path.relative_to(folder).parts))
    }
