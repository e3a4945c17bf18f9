"""Measure this project's performance claims, each against a peer in the same run: `make bench`.

Prints each row on stderr when it is measured, and the table in Markdown on stdout at the end. The pipeline and its peer
take turns, round by round, so that noise affects both. Each cell is the median with its range. Reads the published data
in the data folder, and downloads it first if the folder has no CSVs.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import psutil

from benchmarks.bench import Bench
from benchmarks.rows import ROWS
from schemas.config import data_folder
from schemas.contract import FASHION_MNIST
from tasks.data.published_data import fetch_data
from tasks.model.backend import cpu_name
from tasks.registry.provenance import code_revision
from tasks.runtime.fingerprint import package_versions


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="rounds per measurement (default: 3)")
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="seeds of the accuracy row (default: 5)")
    parser.add_argument("--only", nargs="+", choices=ROWS, metavar="NAME", help=f"rows to measure: {', '.join(ROWS)}")
    options = parser.parse_args()
    if min(options.rounds, options.seeds) < 1:
        parser.error("--rounds and --seeds have to be at least 1")
    data_dir = data_folder()
    csvs = fetch_data(FASHION_MNIST, data_dir)  # also hashes them, so the file cache is warm from here on
    started = time.monotonic()
    lines = ["| what | fashion-ann | peer | ratio | goal |", "|---|---|---|---|---|"]
    with tempfile.TemporaryDirectory(prefix="fashion-ann-bench-") as folder:
        bench = Bench(Path(folder), data_dir, csvs, options.rounds, options.seeds)
        for name in options.only or ROWS:
            for row in ROWS[name](bench):
                lines.append(f"| {' | '.join((row.name, row.ours, row.peer, row.ratio, row.goal))} |")
                print(lines[-1], file=sys.stderr, flush=True)
    print(_machine(options.rounds), *lines, f"\nTotal: {(time.monotonic() - started) / 60:.1f} min.", sep="\n")


def _machine(rounds: int) -> str:
    packages = ", ".join(f"{name} {version}" for name, version in package_versions().items())
    revision = code_revision()
    return (
        f"{cpu_name()}, {psutil.virtual_memory().total / 1e9:.0f} GB; {packages}; "
        f"commit {(revision['revision'] or 'unknown')[:12]}{' with changes' if revision['dirty'] else ''}; "
        f"n = {rounds} unless a cell states another\n"
    )


if __name__ == "__main__":
    main()
