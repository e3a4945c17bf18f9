"""`make bench` takes a quarter of an hour, so no test runs it. These tests import its modules and run its programs."""

import gzip
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from benchmarks.bench import Run
from benchmarks.measure import Finished, at_least, at_most, compared
from benchmarks.peers import plain_ingests
from benchmarks.scale import csv_bytes, varied, write_csvs
from schemas.config import PROJECT_ROOT
from schemas.contract import FASHION_MNIST
from tests.sample import SAMPLE


def test_every_module_can_be_imported() -> None:
    names = sorted(path.stem for path in (PROJECT_ROOT / "benchmarks").glob("[!_]*.py"))
    assert {"rows", "plain_script"} < set(names)
    # In another process, because the import of a peer configures its backend.
    program = f"import importlib\nfor name in {[*names, '__main__']}: importlib.import_module('benchmarks.' + name)"
    done = subprocess.run([sys.executable, "-c", program], cwd=PROJECT_ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def run_module(*arguments: str | Path) -> str:
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(command, cwd=PROJECT_ROOT, capture_output=True, text=True, check=True).stdout


def test_every_peer_of_ingest_writes_the_same_rows(tmp_path: Path) -> None:
    target = tmp_path / "peer.parquet"
    source = tmp_path / "test.csv"
    source.write_bytes(gzip.decompress((SAMPLE / f"{FASHION_MNIST.csv_name('test')}.gz").read_bytes()))
    lines = [list(map(int, line.split(","))) for line in source.read_text().splitlines()[1:]]
    for name, ingest in plain_ingests(source, target, FASHION_MNIST.columns).items():
        ingest()
        table = pq.read_table(target)
        assert tuple(table.column_names) == FASHION_MNIST.columns, name
        assert [list(row.values()) for row in table.to_pylist()] == lines, name
        target.unlink()


def test_times_the_products_of_unequal_batches() -> None:
    assert all(seconds > 0 for seconds in json.loads(run_module("benchmarks.gemm", "301", "256")))


def test_records_when_a_command_returns(tmp_path: Path) -> None:
    stamps = tmp_path / "stamps.json"
    run_module("benchmarks.timed_command", stamps, "versions", "--artifacts-dir", tmp_path / "artifacts")
    ((name, _),) = json.loads(stamps.read_bytes())
    assert name == "returned"


def test_run_counts_from_its_last_epoch_and_skips_the_start() -> None:
    printed = 'Epoch 1/10\n{"test_accuracy": 0.9, "nested": {}}\n'
    events = [("start started", 1.0), ("fetch started", 2.0), ("epoch", 5.0), ("epoch", 7.0), ("returned", 7.5)]
    run = Run(Finished(0.0, 8.0, 8.0, 900.0, printed), events)
    assert (run.first_stage, run.between("epoch", "returned"), run.result["test_accuracy"]) == (2.0, 0.5, 0.9)


def test_goal_is_a_bound_of_the_median_ratio() -> None:
    row = compared("epoch", [0.3, 0.4, 0.9], "`model.fit`", [1.0, 1.0, 1.0], 0.4)
    assert (row.ratio, row.goal) == ("0.40 (0.30..0.90)", "<= 0.4: met")
    assert (at_most(0.4, 0.41), at_most(None, 1), at_least(0.9, 0.89)) == ("<= 0.4: MISSED", "-", ">= 0.9: MISSED")


def test_generated_rows_differ_and_are_a_csv() -> None:
    generator = np.random.default_rng(0)
    published = generator.integers(0, 256, (60, 785), np.uint8)
    published[:, 0] = np.arange(60) % 10
    rows = varied(published, np.arange(60 * 125))
    assert len(np.unique(rows, axis=0)) == 60 * 125
    assert np.bincount(rows[:, 0]).tolist() == [6 * 125] * 10
    assert np.array_equal(rows[700:800], varied(published, np.arange(700, 800)))
    parsed = np.loadtxt(io.BytesIO(csv_bytes(rows[:50])), delimiter=",", dtype=np.uint8)
    np.testing.assert_array_equal(parsed, rows[:50])
    with pytest.raises(SystemExit, match="from 10001 to 7510000, received 10000"):
        write_csvs(Path("unused"), 10_000)
