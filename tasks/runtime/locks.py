"""Locks that log when they wait."""

import fcntl
import logging
import os
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
def artifacts_lock(artifacts_dir: Path, *, alone: bool = False) -> Iterator[bool]:
    """Hold the outputs of stages: a run shares them with other runs, whoever removes some wants them ``alone``.

    Between its stages a run relies on outputs that no version names yet. Yields whether they are held: a run waits for
    that, ``alone`` never does. The kernel lets go when the holder dies.
    """
    artifacts_dir.mkdir(parents=True, exist_ok=True)
    # Opened for writing, because a lock for one alone on a shared disk demands it.
    descriptor = os.open(Artifacts(artifacts_dir).lock, os.O_RDWR | os.O_CREAT, 0o666)
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
