"""Interleaved rounds, time and memory of child processes, and the text of table cells."""

import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TypeVar

import psutil

from cli.server_process import stop_tree

T = TypeVar("T")
_SAMPLE_SECONDS = 0.2
SECONDS_TO_END = 10


@dataclass(frozen=True)
class Row:
    """One line of the table, as text."""

    name: str
    ours: str
    peer: str = "-"
    ratio: str = "-"
    goal: str = "-"


@dataclass(frozen=True)
class Finished:
    """Usage of a child process that succeeded, with all its descendants.

    started: Unix time. cpu_seconds: user and system time. peak_mb: largest sampled sum of PSS in 10^6 bytes; a page
    that n processes share counts as 1/n in each.
    """

    started: float
    wall_seconds: float
    cpu_seconds: float
    peak_mb: float
    stdout: str


def interleaved(name: str, rounds: int, **calls: Callable[[int], T]) -> dict[str, list[T]]:
    """Run each call once per round, in turns (A B A B), and return its results. A call receives the round's number."""
    results: dict[str, list[T]] = {who: [] for who in calls}
    for number in range(rounds):
        for who, call in calls.items():
            print(f"{name}: round {number + 1} of {rounds}, {who}", file=sys.stderr, flush=True)
            results[who].append(call(number))
    return results


def ratios(ours: Sequence[float], peer: Sequence[float]) -> list[float]:
    """Divide round by round. If the peer has fewer rounds, divide each of ours by the peer's median."""
    divisors = peer if len(ours) == len(peer) else [statistics.median(peer)] * len(ours)
    return [one / other for one, other in zip(ours, divisors, strict=True)]


def spread(values: Sequence[float], unit: str = "", digits: int = 2) -> str:
    """Format the median and the range, or a single value."""
    middle = f"{statistics.median(values):.{digits}f}{unit}"
    return f"{middle} (n = 1)" if len(values) == 1 else f"{middle} ({min(values):.{digits}f}..{max(values):.{digits}f})"


def at_most(limit: float | Fraction | None, value: float) -> str:
    """Format a goal and its result; with None there is no goal."""
    return "-" if limit is None else f"<= {limit}: {'met' if value <= limit else 'MISSED'}"


def at_least(limit: float, value: float) -> str:
    return f">= {limit}: {'met' if value >= limit else 'MISSED'}"


def bounded(name: str, values: Sequence[float], limit: float | None = None, digits: int = 2) -> Row:
    """Return the row of a measurement without a peer. The goal is a median of at most ``limit``."""
    return Row(name, spread(values, digits=digits), goal=at_most(limit, statistics.median(values)))


def compared(
    name: str,
    ours: Sequence[float],
    peer_name: str,
    peer: Sequence[float],
    limit: float | Fraction | None = None,
    *,
    digits: int = 2,
    ratio_digits: int = 2,
) -> Row:
    """Return the row of two measurements. The goal is a median ratio of at most ``limit``; with None there is none."""
    against = ratios(ours, peer)
    return Row(
        name,
        spread(ours, digits=digits),
        f"{peer_name}: {spread(peer, digits=digits)}",
        spread(against, digits=ratio_digits),
        at_most(limit, statistics.median(against)),
    )


def run_child(command: Sequence[str | Path], env: Mapping[str, str], folder: Path) -> Finished:
    """Run a command in ``folder`` and wait for it. Raises RuntimeError with the end of its stderr when it fails."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        began, started = time.time(), time.perf_counter()
        process = subprocess.Popen(command, env=dict(env), cwd=folder, stdin=subprocess.DEVNULL, stdout=out, stderr=err)
        with _memory_sampler(process.pid) as peak:
            try:
                _, status, usage = os.wait4(process.pid, 0)
            except BaseException:  # Ctrl-C, too
                stop_tree(process.pid, SECONDS_TO_END)
                raise
            wall = time.perf_counter() - started
            process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        stdout = out.read().decode()
        if process.returncode:
            raise RuntimeError(f"{command} exited with status {process.returncode}: {err.read().decode()[-2000:]}")
        return Finished(began, wall, usage.ru_utime + usage.ru_stime, max(peak, default=0) / 1e6, stdout)


@contextmanager
def _memory_sampler(pid: int) -> Iterator[list[int]]:
    """Sample the PSS of a process and its descendants in a thread. Yields the list of sums, in bytes."""
    sums: list[int] = []

    def sample() -> None:
        root = psutil.Process(pid)
        sums.append(sum(_pss(process) for process in [root, *root.children(recursive=True)]))

    with sampling(sample, _SAMPLE_SECONDS):
        yield sums


@contextmanager
def sampling(sample: Callable[[], object], seconds: float) -> Iterator[None]:
    """Call ``sample`` in a thread every ``seconds`` while the block runs, until it raises a `psutil.Error`."""
    stop = threading.Event()

    def repeat() -> None:
        with suppress(psutil.Error):
            while not stop.wait(seconds):
                sample()

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _pss(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().pss)
    except psutil.Error:  # the process has just exited
        return 0
