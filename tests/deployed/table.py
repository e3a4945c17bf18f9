"""docs/faults.md: what the tests of faults saw, as they saw it."""

import os
import platform
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from schemas.config import PROJECT_ROOT

DATABASES = ("sqlite", "Postgres")

_PAGE = """# When something fails

Written by `make test-deployed`; do not edit. The faults are those of
[tests/deployed/test_faults.py](../tests/deployed/test_faults.py): real processes on one machine, a run of
`train-fashion-mnist/on-demand` with `train_on=gpu`, hit while its training goes on on the gpu worker.

After each of them, which the tests demand:

- both runs end by themselves, in the states below; seconds are counted from the fault;
- no process of theirs is left;
- every file of the store is what its manifest says;
- a second run of the same parameters makes the one version, or has nothing to do. A training that was interrupted goes
  on from its last checkpoint.

What waits about two minutes waits for the automation that marks runs without a heartbeat crashed
([events.md](events.md)): neither the process nor its worker was left to tell the server, and Prefect alone would leave
them running for ever. While the server or its database is away, a run tries again for about a minute. A cancelled
parent takes its child along at the server's next round. Training is held (SIGSTOP) after a few epochs and goes on with
the fault; a cancel and a SIGTERM find it held until they have arrived: that of the sample would be over by then. All
versions of a database are in one store, whose files are hashed after each fault; `fashion-ann verify --all` loads them
at the end. The full disk is a small tmpfs that holds the artifacts, which needs root.

{rows}

n = 1 each, {day}, commit {commit}, {machine}, Python {python}, Prefect {prefect}.
"""


@dataclass(frozen=True)
class Row:
    """What one fault led to; an end is a state and how many seconds after the fault."""

    fault: str
    database: str
    child: tuple[str, float]
    parent: tuple[str, float]
    second_run: str


def write_table(path: Path, rows: Iterable[Row]) -> None:
    """The page, from all rows of one run of the tests."""
    page = _PAGE.format(
        rows="\n".join(_lines(rows)),
        day=datetime.now(UTC).date(),
        commit=_commit(),
        machine=f"{os.cpu_count()} cores of {_processor()}",
        python=platform.python_version(),
        prefect=version("prefect"),
    )
    path.write_text(page, encoding="utf-8")


def _lines(rows: Iterable[Row]) -> Iterable[str]:
    yield "| fault | database | training's run | main flow's run | second run |"
    yield "|---|---|---|---|---|"
    ordered = sorted(rows, key=lambda row: DATABASES.index(row.database))  # within one as they were run
    for row in ordered:
        ends = (f"{state}, {seconds:.0f} s" for state, seconds in (row.child, row.parent))
        yield f"| {' | '.join((row.fault, row.database, *ends, row.second_run))} |"


def _commit() -> str:
    said = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=PROJECT_ROOT, capture_output=True, text=True)
    return said.stdout.strip() or "unknown"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
