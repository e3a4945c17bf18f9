"""Write docs/faults.md from the results of the fault tests."""

import platform
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from schemas.config import PROJECT_ROOT
from tasks.model.backend import cpu_name

DATABASES = ("sqlite", "Postgres")

_PAGE = """# When something fails

Written by `make test-deployed`; do not edit. The faults come from
[tests/deployed/test_faults.py](../tests/deployed/test_faults.py), with real processes on one machine. Each fault hits a
run of `train-fashion-mnist/on-demand` with `train_on=gpu` while the gpu worker trains. The faults that concern slots of
deployments with a limit hit a run of `train-fashion-mnist/nightly`.

After each fault the tests require:

- Both runs end by themselves, in the states below. Seconds count from the fault.
- None of their processes is left.
- Every file in the store matches its manifest.
- A second run with the same parameters creates the one version, or has nothing to do. An interrupted training resumes
  from its last checkpoint.

Notes:

- Ends after about 100 s come from the automation that marks runs without a heartbeat as crashed
  ([events.md](events.md)). Neither process nor worker was left to report to the server. Prefect alone would leave these
  runs Running for ever.
- While the server or its database is down, a run retries for about a minute.
- A run renews its slot every 225 s, in these tests every 60 s. After the restart of the server training stays suspended
  until both runs have renewed theirs.
- After the power cut no `deploy` runs, as after a reboot. The next run of `nightly` gets the slot of the dead one.
- The late runs were created as late, while no worker ran. The server has to answer every request while the worker
  picks them up.
- After a cancel of the main flow's run the server cancels the training at its next check.
- The tests suspend training (SIGSTOP) after a few epochs, and resume it with the fault. A cancel and a SIGTERM take
  longer to arrive than the sample takes to train, so training resumes after they have arrived.
- All versions of one database are in one store. Its files are hashed after each fault, and `fashion-ann verify --all`
  loads every version at the end.
- The full disk is a small tmpfs that contains the artifacts. Mounting it needs root.

{rows}

n = 1 each, {day}, commit {commit}, {machine}, Python {python}, Prefect {prefect}.
"""


@dataclass(frozen=True)
class Row:
    """The effect of one fault. An end is a state and the seconds from the fault to it."""

    fault: str
    database: str
    child: tuple[str, float]
    parent: tuple[str, float]
    second_run: str


def write_table(path: Path, rows: Iterable[Row]) -> None:
    """Write the page with the rows of one test session."""
    page = _PAGE.format(
        rows="\n".join(table_lines(rows)),
        day=datetime.now(UTC).date(),
        commit=commit(),
        machine=cpu_name(),
        python=platform.python_version(),
        prefect=version("prefect"),
    )
    path.write_text(page, encoding="utf-8")


def table_lines(rows: Iterable[Row]) -> Iterable[str]:
    yield "| fault | database | fit-model run | main flow's run | second run |"
    yield "|---|---|---|---|---|"
    ordered = sorted(rows, key=lambda row: DATABASES.index(row.database))  # then in the order of the tests
    for row in ordered:
        ends = (f"{state}, {seconds:.0f} s" for state, seconds in (row.child, row.parent))
        yield f"| {' | '.join((row.fault, row.database, *ends, row.second_run))} |"


def commit() -> str:
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=PROJECT_ROOT, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"
