"""`fashion-ann predict` in this process: usage, answers and exit status."""

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

from tasks import predict
from tasks.registry.store import store_folder, version_folder
from tests.cli.test_main import _run
from tests.sample import SAMPLE

IMAGES = str(SAMPLE / "fashion-mnist_test.csv.gz")


@pytest.fixture
def output(two_versions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FASHION_ANN_ARTIFACTS_DIR", str(two_versions))
    return tmp_path / "out.parquet"


def test_the_champion_predicts_and_the_answer_names_version_rows_accuracy_and_output(
    capsys: pytest.CaptureFixture[str], output: Path
) -> None:
    status, out, _ = _run(capsys, "predict", IMAGES, "--output", str(output))
    assert status == 0
    assert out.splitlines()[0] == "200 rows predicted by version 1"
    assert f"output  {output}" in out
    status, answer, _ = _run(capsys, "predict", IMAGES, "--output", str(output), "--json")
    told = json.loads(answer)
    assert status == 0
    assert (told["version"], told["rows"], told["output"]) == (1, 200, str(output))
    assert 0 <= told["accuracy"] <= 1
    assert f"accuracy {told['accuracy']:.4f}" in out
    assert pq.read_table(output).num_rows == 200


def test_another_version_is_named_by_its_flag(capsys: pytest.CaptureFixture[str], output: Path) -> None:
    _run(capsys, "predict", IMAGES, "--output", str(output), "--version", "2")
    assert pq.read_schema(output).metadata[b"fashion_ann.version"] == b"2"


def test_without_labels_there_is_no_accuracy(capsys: pytest.CaptureFixture[str], output: Path, tmp_path: Path) -> None:
    lines = gzip.decompress(Path(IMAGES).read_bytes()).splitlines(keepends=True)
    bare = tmp_path / "bare.csv"
    bare.write_bytes(b"".join(line.partition(b",")[2] for line in lines))
    status, out, _ = _run(capsys, "predict", str(bare), "--output", str(output))
    assert status == 0
    assert "accuracy" not in out
    assert json.loads(_run(capsys, "predict", str(bare), "--output", str(output), "--json")[1])["accuracy"] is None


def test_a_relative_output_lies_where_the_command_was_called_and_is_told_whole(
    capsys: pytest.CaptureFixture[str], output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(output.parent)
    told = json.loads(_run(capsys, "predict", IMAGES, "--output", output.name, "--json")[1])
    assert told["output"] == str(output)
    assert output.exists()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["predict", IMAGES], "--output"),
        (["predict", "--output", "out.parquet"], "IMAGES"),
        (["predict", IMAGES, "--output", "out.feather"], ".parquet or .csv"),
        (["predict", IMAGES, "--output", "none/out.parquet"], "none"),
    ],
)
def test_wrong_usage_ends_with_2(
    capsys: pytest.CaptureFixture[str], output: Path, arguments: list[str], named: str
) -> None:
    status, out, err = _run(capsys, *arguments)
    assert (status, out) == (2, "")
    assert named in err
    assert "Traceback" not in err


def test_a_damaged_cell_ends_with_3_and_leaves_nothing(
    capsys: pytest.CaptureFixture[str], output: Path, tmp_path: Path
) -> None:
    images = tmp_path / "images.csv"
    images.write_bytes(gzip.decompress(Path(IMAGES).read_bytes()).replace(b",0,", b",256,", 1))
    status, out, err = _run(capsys, "predict", str(images), "--output", str(output))
    assert (status, out) == (3, "")
    assert "images.csv line 2, column pixel" in err
    assert "received 256" in err
    assert list(tmp_path.iterdir()) == [images]


def test_a_version_that_is_not_there_ends_with_1(capsys: pytest.CaptureFixture[str], output: Path) -> None:
    status, out, err = _run(capsys, "predict", IMAGES, "--output", str(output), "--version", "9")
    assert (status, out) == (1, "")
    assert "no version or alias '9'" in err
    assert not output.exists()


def test_damaged_weights_end_with_5(
    capsys: pytest.CaptureFixture[str], output: Path, two_versions: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(two_versions, tmp_path / "artifacts")
    (version_folder(store_folder(copy, "fashion-mnist"), 1) / "model.weights.h5").write_bytes(b"\x89HDF")
    status, out, err = _run(capsys, "predict", IMAGES, "--output", str(output), "--artifacts-dir", str(copy))
    assert (status, out) == (5, "")
    assert "model.weights.h5: expected sha256" in err
    assert not output.exists()


def test_an_interrupted_prediction_claims_nothing_to_go_on_from(
    capsys: pytest.CaptureFixture[str], output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(predict, "predict_csv", interrupted)
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)  # the handlers are pytest's
    status, out, err = _run(capsys, "predict", IMAGES, "--output", str(output))
    assert (status, out, err) == (130, "", "Interrupted. Nothing was written.\n")


def test_no_server_is_started_or_asked(output: Path, tmp_path: Path) -> None:
    program = (
        "import sys; sys.modules['cli.prefect_run'] = None\n"
        "from cli.main import main\n"
        f"main(['predict', {IMAGES!r}, '--output', {str(output)!r}])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=_dead_api(tmp_path))
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert not (tmp_path / "home" / "prefect.db").exists()


def test_columns_in_another_order_are_told_on_stderr_alone(output: Path, tmp_path: Path) -> None:
    lines = gzip.decompress(Path(IMAGES).read_bytes()).splitlines()
    images = tmp_path / "images.csv"
    images.write_bytes(b"".join(b"%b,%b\n" % line.partition(b",")[::-2] for line in lines))
    program = f"from cli.main import main; main(['predict', {str(images)!r}, '--output', {str(output)!r}, '--json'])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=_dead_api(tmp_path))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["rows"] == 200
    (told,) = done.stderr.splitlines()
    assert "images.csv: columns were reordered (pixel1 is column 1, expected 2)" in told


def _dead_api(folder: Path) -> dict[str, str]:
    return {**os.environ, "PREFECT_API_URL": "http://127.0.0.1:9/api", "PREFECT_HOME": str(folder / "home")}
