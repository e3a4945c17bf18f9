"""Kill a process at a chosen moment, and wait for the end of processes that others started."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from typing import Any

import psutil

_PATIENCE_SECONDS = 120


def killed_when(reached: Callable[[], object], target: Callable[..., object], *arguments: Any) -> None:
    """Run ``target`` in a new process and kill it as soon as ``reached`` is true. Fails if the process ends earlier."""
    process = multiprocessing.get_context("spawn").Process(target=target, args=arguments)
    process.start()
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while not reached():
        assert process.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode == -signal.SIGKILL


def gone(pid: int) -> bool:
    """Return True if the process has ended, also if its parent has not waited for it yet."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def wait_until_gone(pid: int) -> None:
    """Wait for the end of a process, at most 30 s."""
    deadline = time.monotonic() + 30
    while not gone(pid):
        assert time.monotonic() < deadline
        time.sleep(0.01)
