"""Locks that log when they wait, and marks of files in use. The kernel releases both when their holder dies.

Neither depends on a process id, a host name or an inode number: containers that share a volume may have equal ones.
"""

import fcntl
import logging
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from schemas.errors import LockHeld, LocksUnavailable, StoredArtifactError
from schemas.layout import Artifacts

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.05
# Without locks, a temporary file of another process counts as abandoned after this time.
_ABANDONED_SECONDS = 86_400


@contextmanager
def lock(
    path: Path, *, exclusive: bool = True, waiting: str | None = None, seconds: float = math.inf
) -> Iterator[bool]:
    """Hold the lock file ``path``, and yield whether it is held.

    If another process holds it: log ``waiting`` and wait, or yield False if that is None.

    Raises `LockHeld` if it is still held after ``seconds``, and `LocksUnavailable` on a file system without locks.
    """
    opened = _open(path)
    try:
        held = _locked(opened, path, exclusive=exclusive)
        if not held and waiting is not None:
            logger.info("%s", waiting)
            deadline = time.monotonic() + seconds
            while not (held := _locked(opened, path, exclusive=exclusive)):
                if time.monotonic() > deadline:
                    raise LockHeld(f"{waiting}. Its lock was still held after {seconds:g} s. Try again later.")
                time.sleep(_POLL_SECONDS)
        yield held
    finally:
        os.close(opened)


def _open(path: Path) -> int:
    """Open a lock file. That of another user may be readable only, which is enough except on NFS.

    Raises `StoredArtifactError` for anything else there: through a link a file could be created anywhere.
    """
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    except OSError as error:
        if path.is_file() and not path.is_symlink():
            return os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        if os.path.lexists(path):
            raise StoredArtifactError(f"{path}: expected a lock file ({error.strerror}). Remove it.") from error
        raise


def _locked(opened: int, path: Path, *, exclusive: bool) -> bool:
    try:
        fcntl.flock(opened, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # the second on some network file systems
        return False
    except OSError as error:
        raise LocksUnavailable(
            f"{path} cannot be locked ({error.strerror}). Expected a file system with locks: without them, two runs "
            f"would overwrite each other's files. Mount {path.parent} with locks, or choose another folder."
        ) from error
    return True


@contextmanager
def artifacts_lock(artifacts_dir: Path, *, exclusive: bool = False) -> Iterator[bool]:
    """Hold a lock on the stage outputs: shared for pipeline runs, ``exclusive`` for garbage collection.

    Between its stages a run relies on outputs that no version names yet. Yields whether the lock is held: only a shared
    one is waited for.
    """
    artifacts_dir.mkdir(parents=True, exist_ok=True)
    waiting = None if exclusive else f"{artifacts_dir}: waiting for a garbage collection to finish"
    with lock(Artifacts(artifacts_dir).lock, exclusive=exclusive, waiting=waiting) as held:
        yield held


def create_in_use(create: Callable[[], Path]) -> tuple[Path, int]:
    """Create a file or folder, and return it with a descriptor. Until that is closed it does not count as `abandoned`.

    create: creates it under a new name at each call.
    """
    while True:
        path = create()
        with suppress(FileNotFoundError):  # removed as abandoned between its creation and the lock
            opened = os.open(path, os.O_RDONLY)
            with suppress(OSError):  # without locks, see `abandoned`
                fcntl.flock(opened, fcntl.LOCK_SH)
            if path.exists():
                return path, opened
            os.close(opened)


@contextmanager
def abandoned(path: Path) -> Iterator[bool]:
    """Yield whether the process that created ``path`` with `create_in_use` has ended; the block may then remove it.

    On a file system without locks, one that has not changed for a day counts as abandoned.
    """
    try:
        opened = os.open(path, os.O_RDONLY)
    except OSError:  # removed meanwhile, or private to another user
        yield False
        return
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        dead = True
    except (BlockingIOError, PermissionError):
        dead = False
    except OSError:
        dead = time.time() - os.fstat(opened).st_mtime > _ABANDONED_SECONDS
    try:
        yield dead
    finally:
        os.close(opened)
