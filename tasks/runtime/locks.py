"""Locks that log when they wait."""

import fcntl
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from schemas.layout import Artifacts

logger = logging.getLogger(__name__)


@contextmanager
def wait_for_lock(path: Path, waiting: str) -> Iterator[None]:
    """Hold the lock file ``path``; log ``waiting`` if another run holds it.

    The kernel releases the lock when its holder dies.
    """
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        logger.info("%s", waiting)
        lock.acquire()
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
