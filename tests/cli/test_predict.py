"""`predict` in this process: usage errors, output and exit status."""

import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import pytest

from tasks.registry import batch_prediction
from tasks.registry.store import ModelStore
from tests.cli.conftest import Run
from tests.field_faults import field_fault
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
    def interrupt(*arguments: object, **options: object) -> None:
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


# --- checks -----------------------------------------------------------------------------------------------------

Bytes = npt.NDArray[np.uint8]
ROWS = np.loadtxt(IMAGES, np.uint8, delimiter=",", skiprows=1)  # (200, 785), 20 per class
PIXELS, LABELS = ROWS[:, 1:], ROWS[:, 0]


@pytest.fixture
def trained(sample_version: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An output for predictions of a version that the stages made from the sample."""
    monkeypatch.setenv("FASHION_ANN_ARTIFACTS_DIR", str(sample_version.parents[3]))
    return tmp_path / "out.parquet"


def write_csv(path: Path, pixels: npt.ArrayLike, labels: Sequence[Any] | None = None) -> Path:
    rows = np.asarray(pixels).reshape(-1, 784).astype(np.uint8)
    header = [f"pixel{number}" for number in range(1, 785)]
    if labels is not None:
        rows, header = np.column_stack([np.asarray(labels, np.uint8), rows]), ["label", *header]
    np.savetxt(path, rows, "%d", ",", header=",".join(header), comments="")
    return path


def squares(change: Callable[[Bytes], Bytes]) -> Bytes:
    return change(PIXELS.reshape(-1, 28, 28))


def digits() -> Bytes:
    """Handwritten digits of 24 x 24 pixels in the middle, as MNIST has them."""
    from sklearn.datasets import load_digits

    large = np.kron(load_digits().images[:200] * 15.9, np.ones((1, 3, 3)))
    return np.pad(large.astype(np.uint8), ((0, 0), (2, 2), (2, 2)))


def case(name: str, pixels: Callable[[], npt.ArrayLike], cause: str) -> Any:
    return pytest.param(pixels, cause, id=name)


_WARNS = "`predict` warns on stderr, in JSON and in the Parquet; with `--strict` it exits with 3 and writes nothing"


@field_fault(
    "predictions unchecked", "Images are inverted, scaled to 0 and 1, halved, or have another background", _WARNS
)
@field_fault("predictions unchecked", "Images are transposed, turned, mirrored, upside down or moved", _WARNS)
@field_fault("predictions unchecked", "Images are blank, white, noise, shuffled pixels or digits of MNIST", _WARNS)
@field_fault("predictions unchecked", "Only some of the images, or one pixel of each, are faulty", _WARNS)
@pytest.mark.parametrize(
    ("pixels", "cause"),
    [
        case("images are inverted (255 - x)", lambda: 255 - PIXELS, "the images look inverted, background is 255"),
        case("pixels are scaled to 0 and 1 (x // 255)", lambda: PIXELS // 255, "of the median image is 1,"),
        case("pixels are halved", lambda: PIXELS // 2, "the largest pixel of the median image is 127"),
        case("rows are columns", lambda: squares(lambda image: image.transpose(0, 2, 1)), "look transposed"),
        case("images are turned by 90 degrees", lambda: squares(lambda image: np.rot90(image, 1, (1, 2))), "turned by"),
        case("images are upside down", lambda: PIXELS[:, ::-1], "the images look upside down"),
        case("images are mirrored", lambda: squares(lambda image: image[:, :, ::-1]), "the images look mirrored left"),
        case("images are moved to the side", lambda: squares(lambda image: np.roll(image, 3, 2)), "look moved"),
        case("images are moved down by half", lambda: squares(lambda image: np.roll(image, 14, 1)), "look moved"),
        case("images are blank", lambda: PIXELS * 0, "200 of 200 images have the same value in every pixel"),
        case("images are white", lambda: PIXELS * 0 + 255, "200 of 200 images have the same value in every pixel"),
        case("the last rows are blank", lambda: np.where(np.arange(200)[:, None] < 190, PIXELS, 0), "10 of 200 images"),
        case("half of the images are inverted", lambda: np.where(np.arange(200)[:, None] % 2, PIXELS, 255 - PIXELS),
             "100 of 200 sampled images have a bright border"),
        case("images are digits", digits, "drift: "),
        case("pixels are shuffled", lambda: PIXELS[:, np.random.default_rng(0).permutation(784)], "look permuted"),
        case("images are noise", lambda: np.random.default_rng(0).integers(0, 256, (200, 784)), "similarity: "),
        case("background is not 0", lambda: np.maximum(PIXELS, 9), "200 of 200 sampled images have no pixel of 0"),
        case("a column is stuck", lambda: np.where(np.arange(784) == 406, 128, PIXELS), "constant_columns: pixel407"),
        case("one image has pixels of 0 and 1", lambda: PIXELS[:1] // 255, "of the median image is 1,"),
        case("one image is inverted", lambda: 255 - PIXELS[:1], "1 of 1 sampled images have a bright border"),
    ],
)  # fmt: skip
def test_warns_of_other_images(run: Run, trained: Path, pixels: Callable[[], npt.ArrayLike], cause: str) -> None:
    images = write_csv(trained.parent / "images.csv", pixels())
    trained.write_bytes(b"old predictions")
    status, out, err = run("predict", images, "--output", trained, "--strict")
    assert (status, out) == (3, "")
    assert cause in err
    assert trained.read_bytes() == b"old predictions"
    assert sorted(trained.parent.iterdir()) == [images, trained]
    status, out, err = run("predict", images, "--output", trained, "--json")
    assert status == 0
    warnings = json.loads(out)["warnings"]
    assert cause in "; ".join(warnings)
    assert json.loads(pq.read_schema(trained).metadata[b"fashion_ann.warnings"]) == warnings
    assert json.loads(pq.read_metadata(trained).metadata[b"fashion_ann.warnings"]) == warnings


@pytest.mark.parametrize("rows", [1, 5, 20, 100, 200])
def test_few_correct_images_cause_no_warning(run: Run, trained: Path, caplog: Any, rows: int) -> None:
    drawn = np.sort(np.random.default_rng(rows).choice(200, rows, replace=False))
    images = write_csv(trained.parent / "images.csv", PIXELS[drawn], LABELS[drawn])
    assert run("predict", images, "--output", trained, "--strict")[0] == 0
    assert json.loads(pq.read_schema(trained).metadata[b"fashion_ann.warnings"]) == []
    assert caplog.records == []


@field_fault("predictions unchecked", "A file has images of one class only", "`predict` does not warn")
@pytest.mark.parametrize("label", range(10))
def test_one_class_alone_causes_no_warning(run: Run, trained: Path, label: int) -> None:
    images = write_csv(trained.parent / "images.csv", PIXELS[label == LABELS], LABELS[label == LABELS])
    assert run("predict", images, "--output", trained, "--strict")[0] == 0


@field_fault(
    "predictions unchecked", "Labels are shifted by one", "`predict` warns that the accuracy is below the version's"
)
def test_a_low_accuracy_is_a_warning(run: Run, trained: Path) -> None:
    images = write_csv(trained.parent / "images.csv", PIXELS, (LABELS + 1) % 10)
    status, out, _ = run("predict", images, "--output", trained, "--json")
    assert status == 0
    result = json.loads(out)
    (warning,) = result["warnings"]
    assert warning.startswith(f"images.csv: accuracy: {result['accuracy']:.4f} on 200 labels, ")
    (check,) = [check for check in result["checks"] if check["check"] == "accuracy"]
    assert (check["result"], check["bound"]) == ("warned", ">= 0.001")
    assert check["figure"] < 1e-10
    assert run("predict", images, "--output", trained, "--strict")[0] == 3


# --- output -----------------------------------------------------------------------------------------------------


@field_fault(
    "stray files and bad values", "`--output` is a link", "`predict` writes the link's target, and the link stays"
)
def test_a_link_leads_to_the_output(run: Run, output: Path) -> None:
    folder = output.parent / "folder"
    folder.mkdir()
    output.symlink_to("folder/latest.parquet")
    assert run("predict", IMAGES, "--output", output)[0] == 0
    assert output.is_symlink()
    assert pq.read_table(folder / "latest.parquet").num_rows == 200
    assert sorted(path.name for path in folder.iterdir()) == ["_latest.parquet.profile.json", "latest.parquet"]


@field_fault(
    "stray files and bad values",
    "`--output` is a mount point, or in a folder that is read-only",
    "`predict` exits with 2 before any work",
)
@pytest.mark.parametrize(
    ("mount", "name", "message"),
    [
        pytest.param("mount --bind file out.parquet", "out.parquet", "is a mount point", id="file"),
        pytest.param("mount --bind file out.parquet", "link.parquet", "is a mount point", id="link to a file"),
        pytest.param("mount -t tmpfs -o ro none folder", "folder/out.parquet", "can be written to", id="read-only"),
    ],
)
def test_an_output_that_cannot_be_replaced_is_refused(tmp_path: Path, mount: str, name: str, message: str) -> None:
    if subprocess.run(["unshare", "-rm", "true"], check=False).returncode:
        pytest.skip("this user may not mount")
    for file in ("file", "out.parquet"):
        (tmp_path / file).write_bytes(b"")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link.parquet").symlink_to("out.parquet")
    script = f"cd {tmp_path} && {mount} && {sys.executable} -m cli.main predict none.csv --output {name}"
    process = subprocess.run(["unshare", "-rm", "sh", "-c", script], capture_output=True, text=True, check=False)
    assert process.returncode == 2, process.stderr
    assert f"{tmp_path / name} " in process.stderr
    assert message in process.stderr
