"""Locks that log when they wait."""

import fcntl
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from schemas.errors import StoreInUse
from schemas.layout import Artifacts

logger = logging.getLogger(__name__)


@contextmanager
def wait_for_lock(path: Path, waiting: str, seconds: float | None = None) -> Iterator[None]:
    """Hold the lock file ``path``; log ``waiting`` if another run holds it.

    The kernel releases the lock when its holder dies. Raises `StoreInUse` if it is still held after ``seconds``.
    """
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        logger.info("%s", waiting)
        try:
            lock.acquire(timeout=-1 if seconds is None else seconds)
        except Timeout:
            raise StoreInUse(f"{waiting}. Its lock was still held after {seconds:g} s. Try again later.") from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def artifacts_lock(artifacts_dir: Path, *, exclusive: bool = False) -> Iterator[bool]:
    """Hold a lock on the stage outputs: shared for pipeline runs, ``exclusive`` for garbage collection.

    Between its stages a run relies on outputs that no version names yet. Yields whether the lock is held: only a shared
    one is waited for. The kernel releases it when the holder dies.
    """
    artifacts_dir.mkdir(parents=True, exist_ok=True)
    # Opened for writing: network file systems require it for an exclusive lock.
    with Artifacts(artifacts_dir).lock.open("a+b") as file:
        held = True
        try:
            fcntl.flock(file, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except BlockingIOError:
            held = not exclusive
            if held:
                logger.info("%s: waiting for a garbage collection to finish", artifacts_dir)
                fcntl.flock(file, fcntl.LOCK_SH)
        yield held
