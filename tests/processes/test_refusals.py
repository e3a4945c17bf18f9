"""A file that declares more than it contains is rejected in the memory of a small process."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from schemas.config import PROJECT_ROOT
from schemas.layout import MANIFEST_NAME
from tests.resealed import reseal, three_versions
from tests.sample import SAMPLE

MEGABYTES = 300

# Of the command with its imports. `getrusage` would return the peak of the process that starts it, if that is larger.
SCRIPT = """
import re, sys
from pathlib import Path
from cli.main import main
try:
    main(sys.argv[1:])
finally:
    peak = re.search(r"VmHWM:\\s+([0-9]+) kB", Path("/proc/self/status").read_text())
    sys.stderr.write(f"peak {int(peak[1]) // 1000}\\n")
"""


def _lists(path: Path) -> None:
    path.write_bytes(b"[" + b"[]," * 1_330_000 + b"[]]")


def _gigabytes(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        del file["layers/dense/vars/0"]
        file.create_dataset("layers/dense/vars/0", (784, 1_300_000), "<f4", chunks=(784, 1_300), compression="gzip")


def _layers(path: Path) -> None:
    topology = json.loads(path.read_bytes())
    layers = topology["config"]["layers"]
    layers[1]["config"]["units"] = 10**9
    layers[2:2] = [layers[1]] * 40
    path.write_text(json.dumps(topology))


def _rows(path: Path) -> None:
    schema = pq.read_schema(path)
    rows = 4_000_000
    columns = [pa.repeat(pa.scalar(b"0" * 16 if field.name == "image" else 0, field.type), rows) for field in schema]
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for _ in range(5):
            writer.write_table(pa.table(columns, schema=schema))


def _manifest(path: Path) -> None:
    reseal(path.parent, lambda manifest: manifest.update(seed=None, more=[[] for _ in range(300_000)]))


PREDICT = ["predict", str(SAMPLE / "fashion-mnist_test.csv.gz"), "--output", "out.csv", "--version", "3"]
CASES: dict[str, tuple[str, Callable[[Path], None], list[str]]] = {
    "weights of 4 GB": ("model.weights.h5", _gigabytes, PREDICT),
    "weights of 4 GB to be verified": ("model.weights.h5", _gigabytes, ["verify", "3"]),
    "40 layers of a billion units": ("topology.json", _layers, PREDICT),
    "a profile of lists": ("profile.json", _lists, PREDICT),
    "metrics of lists": ("metrics.json", _lists, PREDICT),
    "golden predictions of lists": ("golden.json", _lists, ["promote", "2", "--reason", "a test"]),
    "a manifest of lists": (MANIFEST_NAME, _manifest, ["show", "3"]),
    "20 million predictions": ("test_predictions.parquet", _rows, ["compare", "2", "3"]),
}


@pytest.mark.parametrize(("name", "edit", "command"), CASES.values(), ids=CASES)
def test_is_rejected_in_little_memory(
    sample_version: Path, tmp_path: Path, name: str, edit: Callable[[Path], None], command: list[str]
) -> None:
    store = three_versions(sample_version, tmp_path)
    for number in (2, 3):
        edit(store.folder(number) / name)
        reseal(store.folder(number))
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *command, "--artifacts-dir", str(tmp_path)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(PROJECT_ROOT), "PREFECT_HOME": str(tmp_path / "prefect")},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, name in done.stderr) == (5, True), done.stderr
    assert int(done.stderr.split()[-1]) < MEGABYTES
