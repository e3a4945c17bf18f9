"""`predict` in this process: usage errors, output and exit status."""

import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tasks.registry import batch_prediction
from tasks.registry.store import ModelStore
from tests.cli.conftest import Run
from tests.sample import SAMPLE

IMAGES = str(SAMPLE / "fashion-mnist_test.csv.gz")


@pytest.fixture
def output(two_versions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FASHION_ANN_ARTIFACTS_DIR", str(two_versions))
    return tmp_path / "out.parquet"


def test_predicts_with_the_champion(run: Run, output: Path) -> None:
    status, out, _ = run("predict", IMAGES, "--output", output)
    assert status == 0
    assert out.splitlines()[0] == "200 rows predicted by version 1"
    assert f"output  {output}" in out
    status, text, _ = run("predict", IMAGES, "--output", output, "--json")
    result = json.loads(text)
    assert status == 0
    assert (result["version"], result["rows"], result["output"]) == (1, 200, str(output))
    assert 0 <= result["accuracy"] <= 1
    assert f"accuracy {result['accuracy']:.4f}" in out
    assert pq.read_table(output).num_rows == 200


def test_predicts_with_another_version(run: Run, output: Path) -> None:
    run("predict", IMAGES, "--output", output, "--version", "2")
    assert pq.read_schema(output).metadata[b"fashion_ann.version"] == b"2"


def test_predicts_without_labels(run: Run, output: Path, tmp_path: Path) -> None:
    lines = gzip.decompress(Path(IMAGES).read_bytes()).splitlines(keepends=True)
    bare = tmp_path / "bare.csv"
    bare.write_bytes(b"".join(line.partition(b",")[2] for line in lines))
    status, out, _ = run("predict", bare, "--output", output)
    assert status == 0
    assert "accuracy" not in out
    assert json.loads(run("predict", bare, "--output", output, "--json")[1])["accuracy"] is None


def test_a_tilde_is_expanded(run: Run, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(output.parent))
    (output.parent / "images.csv.gz").symlink_to(IMAGES)
    status, _, err = run("predict", "~/images.csv.gz", "--output", f"~/{output.name}")
    assert (status, err) == (0, "")
    assert output.exists()
    status, _, err = run("predict", IMAGES, "--output", "~no-such-user/out.parquet")
    assert (status, err.count("\n")) == (2, 1)
    assert "~no-such-user/out.parquet: the home folder is unknown" in err


def test_reports_a_relative_output_as_absolute(run: Run, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(output.parent)
    assert json.loads(run("predict", IMAGES, "--output", output.name, "--json")[1])["output"] == str(output)
    assert output.exists()


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        ([IMAGES], 2, "--output"),
        (["--output", "out.parquet"], 2, "IMAGES"),
        ([IMAGES, "--output", "out.feather"], 2, ".parquet or .csv"),
        ([IMAGES, "--output", "none/out.parquet"], 2, "none"),
        ([IMAGES, "--output", "out.parquet", "--version", "9"], 1, "no version or alias '9'"),
    ],
)
def test_rejects_wrong_arguments(
    run: Run, output: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], status: int, message: str
) -> None:
    monkeypatch.chdir(output.parent)
    actual, out, err = run("predict", *arguments)
    assert (actual, out) == (status, "")
    assert message in err
    assert "Traceback" not in err
    assert list(output.parent.iterdir()) == []


def test_bad_cell_exits_with_3(run: Run, output: Path, tmp_path: Path) -> None:
    images = tmp_path / "images.csv"
    images.write_bytes(gzip.decompress(Path(IMAGES).read_bytes()).replace(b",0,", b",256,", 1))
    status, out, err = run("predict", images, "--output", output)
    assert (status, out) == (3, "")
    assert "images.csv line 2, column pixel" in err
    assert "received 256" in err
    assert list(tmp_path.iterdir()) == [images]


def test_damaged_weights_exit_with_5(run: Run, output: Path, two_versions: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(two_versions, tmp_path / "artifacts")
    (ModelStore.of(copy, "fashion-mnist").folder(1) / "model.weights.h5").write_bytes(b"\x89HDF")
    status, out, err = run("predict", IMAGES, "--output", output, "--artifacts-dir", copy)
    assert (status, out) == (5, "")
    assert "model.weights.h5: expected sha256" in err
    assert not output.exists()


def test_interrupt_exits_with_130(run: Run, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(batch_prediction, "predict_csv", interrupt)
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)  # keep the handlers of pytest
    assert run("predict", IMAGES, "--output", output) == (130, "", "Interrupted. Nothing was written.\n")


def test_uses_no_server_and_warns_on_stderr(output: Path, tmp_path: Path) -> None:
    lines = gzip.decompress(Path(IMAGES).read_bytes()).splitlines()
    reordered = tmp_path / "images.csv"
    reordered.write_bytes(b"".join(b"%b,%b\n" % line.partition(b",")[::-2] for line in lines))
    home = tmp_path / "home"
    environment = {**os.environ, "PREFECT_API_URL": "http://127.0.0.1:9/api", "PREFECT_HOME": str(home)}
    program = "import sys; sys.modules['cli.embedded_server'] = None; from cli.main import main; main(sys.argv[1:])"
    for images, warnings in ((IMAGES, 0), (str(reordered), 1)):
        command = [sys.executable, "-c", program, "predict", images, "--output", str(output), "--json"]
        process = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert process.returncode == 0, process.stderr
        assert json.loads(process.stdout)["rows"] == 200
        assert len(process.stderr.splitlines()) == warnings
    assert "images.csv" in process.stderr
    assert "pixel1 is column 1, expected 2" in process.stderr
    assert not (home / "prefect.db").exists()
