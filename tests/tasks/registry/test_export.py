"""An export is written if its own runtime gives the stored predictions on every test row, and only then."""

import errno
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import numpy.typing as npt
import pytest

from schemas.contract import FASHION_MNIST, PixelScale
from schemas.errors import (
    CandidateRejected,
    DataUnavailable,
    ExtraNotInstalled,
    FashionAnnError,
    StoredArtifactError,
    WrongUsage,
)
from schemas.export import ExportedModel, ExportFormat
from tasks.data.splits import open_split, scale_pixels
from tasks.model.export import calibration_images, with_scaling, write_export
from tasks.model.run_export import run_export
from tasks.registry.export import Expected, expected_of, export_version, prove
from tasks.registry.store import ModelStore, StoredVersion
from tests.plain_keras import plain_network

FORMATS = get_args(ExportFormat)
METADATA = {"dataset": "fashion-mnist", "version": 1, "class_names": FASHION_MNIST.class_names}

pytestmark = pytest.mark.usefixtures("in_this_process")


@pytest.fixture(scope="module")
def version(sample_version: Path) -> StoredVersion:
    return ModelStore(sample_version.parent.parent).version(1)


@pytest.fixture(scope="module")
def expected(version: StoredVersion, sample_artifacts: Path) -> Expected:
    return expected_of(version, sample_artifacts)


@pytest.fixture(scope="module")
def exports(
    version: StoredVersion,
    sample_artifacts: Path,
    tmp_path_factory: pytest.TempPathFactory,
    in_this_process: None,
) -> dict[str, ExportedModel]:
    """The sample's version in every format, in one folder. Read-only."""
    output = tmp_path_factory.mktemp("exports")
    return {name: export_version(version, name, output, sample_artifacts) for name in FORMATS}


@pytest.fixture
def onnx(exports: dict[str, ExportedModel], tmp_path: Path) -> Path:
    """A folder for exports with one of version 1 as ONNX."""
    copied = exports["onnx"].path.parent
    shutil.copytree(copied, tmp_path / "exports" / copied.parent.name / copied.name)
    return tmp_path / "exports"


@pytest.mark.parametrize("name", FORMATS)
def test_record_has_digests_versions_and_what_was_measured(
    exports: dict[str, ExportedModel], version: StoredVersion, name: str
) -> None:
    exported = exports[name]
    record = json.loads(exported.record_path.read_bytes())
    assert record == json.loads(exported.record.model_dump_json())
    assert (record["version"], record["rows"], record["changed_classes"]) == (1, 200, 0)
    assert record["manifest_sha256"] == version.manifest.manifest_sha256
    assert 0 <= record["largest_difference"] <= 1e-5
    assert tuple(record["class_names"]) == FASHION_MNIST.class_names
    runtime = {"savedmodel": "tensorflow", "onnx": "onnxruntime", "litert": "ai-edge-litert", "keras": "keras"}[name]
    assert any(package.startswith(runtime) for package in record["runtime"])
    folder = exported.record_path.parent
    written = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert written == {"export.json", *record["files"]}
    assert record["cost"]["bytes"] == sum(entry["bytes"] for entry in record["files"].values())


def test_folders_have_the_layout_of_tensorflow_serving(exports: dict[str, ExportedModel]) -> None:
    output = exports["savedmodel"].path.parent.parent
    assert (output / "fashion-mnist" / "1" / "saved_model.pb").is_file()
    assert exports["savedmodel"].path == output / "fashion-mnist" / "1"
    assert exports["onnx"].path == output / "fashion-mnist-onnx" / "1" / "model.onnx"
    assert exports["litert"].path == output / "fashion-mnist-litert" / "1" / "model.tflite"
    assert exports["keras"].path == output / "fashion-mnist-keras" / "1" / "model.keras"


@contextmanager
def rejected(*words: str) -> Iterator[None]:
    with pytest.raises(StoredArtifactError) as raised:
        yield
    assert all(word in str(raised.value) for word in words), raised.value


@pytest.mark.parametrize("fault", ["weight", "unused weight", "unused bias", "scale", "class names"])
@pytest.mark.parametrize("name", FORMATS)
def test_other_predictions_are_rejected(
    version: StoredVersion, expected: Expected, tmp_path: Path, name: ExportFormat, fault: str
) -> None:
    network, scale, metadata = plain_network(version.folder), FASHION_MNIST.scale, METADATA
    match fault:
        case "weight":
            kernel, bias = network.layers[1].get_weights()
            unit = np.abs(network.layers[3].get_weights()[0]).max(axis=1).argmax()
            kernel[14 * 28 + 14, unit] += 1e-3  # of a pixel in the middle
            network.layers[1].set_weights([kernel, bias])
        case "unused weight":
            kernel, bias = network.layers[1].get_weights()
            kernel[0, 0] += 1e-3  # of a pixel that is 0 in all test rows
            network.layers[1].set_weights([kernel, bias])
        case "unused bias":
            kernel, bias = network.layers[1].get_weights()
            bias[inactive_unit(expected, kernel, bias)] -= 1e-3
            network.layers[1].set_weights([kernel, bias])
        case "scale":
            scale = PixelScale(0, 1)
        case "class names":
            metadata = {**METADATA, "class_names": FASHION_MNIST.class_names[::-1]}
    write_export(with_scaling(network, scale), name, tmp_path / "export", metadata)
    unused = dict.fromkeys(("unused weight", "unused bias"), "weights of layer 1")
    words = {"class names": "Bag", **unused}.get(fault, "largest difference")
    with rejected(words):
        prove(tmp_path / "export", name, expected)


def test_gelu_is_exported_to_onnx(version: StoredVersion, expected: Expected, tmp_path: Path) -> None:
    import keras

    network = plain_network(version.folder)
    network.layers[1].activation = keras.activations.gelu
    write_export(with_scaling(network, FASHION_MNIST.scale), "onnx", tmp_path / "export", METADATA)
    images = open_split(expected.prepared, "test").images[:]
    probabilities = np.asarray(network(scale_pixels(images, FASHION_MNIST.scale), training=False))
    output = run_export(tmp_path / "export" / "model.onnx", "onnx", expected.prepared)
    np.testing.assert_allclose(output.probabilities, probabilities, rtol=0, atol=1e-5)
    assert network.layers[1].activation is keras.activations.gelu


def inactive_unit(expected: Expected, kernel: npt.NDArray[np.float32], bias: npt.NDArray[np.float32]) -> int:
    """Return a unit of the hidden layer whose output is 0 for all test rows."""
    images = scale_pixels(open_split(expected.prepared, "test").images[:], FASHION_MNIST.scale)
    return int(np.flatnonzero((images @ kernel + bias).max(axis=0) < 0)[0])


def test_a_changed_class_is_rejected_within_the_tolerance(
    version: StoredVersion, expected: Expected, tmp_path: Path
) -> None:
    network = plain_network(version.folder)
    network.set_weights([np.zeros_like(values) for values in network.get_weights()])  # all classes tie
    write_export(with_scaling(network, FASHION_MNIST.scale), "onnx", tmp_path / "export", METADATA)
    probabilities = np.full_like(expected.stored.probabilities, 0.1)
    expected = replace(expected, layers=())
    prove(tmp_path / "export", "onnx", stored_as(expected, probabilities))
    probabilities[5, 3] += 1e-6
    with rejected("largest difference of 9.98e-07 and 1 rows of another class"):
        prove(tmp_path / "export", "onnx", stored_as(expected, probabilities))


def stored_as(expected: Expected, probabilities: npt.NDArray[np.float32]) -> Expected:
    return replace(expected, stored=replace(expected.stored, probabilities=probabilities))


def test_a_rejected_export_leaves_nothing(
    version: StoredVersion, sample_artifacts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.registry.export.TOLERANCE", -1.0)
    with rejected("The export is rejected"):
        export_version(version, "onnx", tmp_path / "exports", sample_artifacts)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_export_is_proven_again(
    version: StoredVersion, sample_artifacts: Path, onnx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path: path.stat().st_mtime_ns for path in onnx.rglob("*")}
    again = export_version(version, "onnx", onnx, sample_artifacts)
    assert (again.created, again.record.largest_difference <= 1e-5) == (False, True)
    assert {path: path.stat().st_mtime_ns for path in onnx.rglob("*")} == before
    monkeypatch.setattr("tasks.registry.export.TOLERANCE", -1.0)
    with rejected("largest difference"):
        export_version(version, "onnx", onnx, sample_artifacts)


def test_an_export_that_another_process_wrote_meanwhile_is_proven(
    version: StoredVersion, sample_artifacts: Path, onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "output"
    folder = output / "fashion-mnist-onnx" / "1"
    other = tmp_path / "other"
    shutil.copytree(onnx / "fashion-mnist-onnx" / "1", other)
    monkeypatch.setattr("tasks.registry.export.sync_to_disk", lambda path: other.exists() and other.rename(folder))
    exported = export_version(version, "onnx", output, sample_artifacts)
    assert (exported.created, exported.path) == (False, folder / "model.onnx")
    assert list(folder.parent.iterdir()) == [folder]


def test_a_full_disk_names_the_folder(
    version: StoredVersion, sample_artifacts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tasks.registry.export.sync_to_disk", fail)
    with pytest.raises(OSError, match="No space left on device") as raised:
        export_version(version, "onnx", tmp_path, sample_artifacts)
    folder = tmp_path / "fashion-mnist-onnx" / "1"
    assert raised.value.filename == str(folder)
    assert list(folder.parent.iterdir()) == []


def change_weight(folder: Path, version: StoredVersion) -> None:
    """Add 1e-3 to one weight in the file, wherever it is."""
    kernel = plain_network(version.folder).layers[1].get_weights()[0]
    path = folder / "model.onnx"
    content = path.read_bytes()
    place = content.index(kernel.tobytes())
    path.write_bytes(content[:place] + (kernel[0, :1] + np.float32(1e-3)).tobytes() + content[place + 4 :])


def add_file(folder: Path, version: StoredVersion) -> None:
    (folder / "labels.txt").write_text("Bag")


def remove_file(folder: Path, version: StoredVersion) -> None:
    (folder / "model.onnx").unlink()


def break_record(folder: Path, version: StoredVersion) -> None:
    (folder / "export.json").write_text("{}")


def forget_record(folder: Path, version: StoredVersion) -> None:
    (folder / "export.json").unlink()


def of_another_version(folder: Path, version: StoredVersion) -> None:
    record = json.loads((folder / "export.json").read_bytes())
    (folder / "export.json").write_text(json.dumps({**record, "manifest_sha256": "0" * 64}))


def claim_more_rows(folder: Path, version: StoredVersion) -> None:
    record = json.loads((folder / "export.json").read_bytes())
    (folder / "export.json").write_text(json.dumps({**record, "rows": 10_000}))


@pytest.mark.parametrize(
    ("damage", "error", "words"),
    [
        (change_weight, StoredArtifactError, "model.onnx: expected sha256"),
        (add_file, StoredArtifactError, "labels.txt: expected no such file"),
        (remove_file, StoredArtifactError, "model.onnx: expected sha256"),
        (break_record, StoredArtifactError, "export.json"),
        (claim_more_rows, StoredArtifactError, "export.json: expected rows 200, received 10000"),
        (forget_record, WrongUsage, "is no export"),
        (of_another_version, WrongUsage, "received " + "0" * 64),
    ],
)
def test_a_changed_export_is_rejected_and_kept(
    version: StoredVersion,
    sample_artifacts: Path,
    onnx: Path,
    damage: Callable[[Path, StoredVersion], None],
    error: type[FashionAnnError],
    words: str,
) -> None:
    damage(onnx / "fashion-mnist-onnx" / "1", version)
    before = sorted(onnx.rglob("*"))
    with pytest.raises(error, match=words):
        export_version(version, "onnx", onnx, sample_artifacts)
    assert sorted(onnx.rglob("*")) == before


@pytest.mark.parametrize("name", ["onnx", "litert"])
def test_int8_is_smaller_and_compared_with_float(
    version: StoredVersion, expected: Expected, sample_artifacts: Path, tmp_path: Path, name: ExportFormat
) -> None:
    exported = export_version(version, name, tmp_path, sample_artifacts, "int8")
    record, stored = exported.record, expected.stored
    assert exported.path.parent == tmp_path / f"fashion-mnist-{name}-int8" / "1"
    assert record.quantized is not None
    assert 3 * record.cost.bytes < record.quantized.float_cost.bytes
    assert record.largest_difference > 1e-5
    gained = record.quantized.fixed - record.quantized.broken
    assert record.quantized.test_accuracy == pytest.approx(stored.right.mean() + gained / 200)
    assert set(record.cost.latency_ms) == set(record.quantized.float_cost.latency_ms) == {"1", "1000"}
    # The float model predicts every row correctly: the errors of the quantized one are beyond noise.
    perfect = np.eye(10, dtype=np.float32)[stored.labels]
    with pytest.raises(CandidateRejected, match="0 fixed"):
        prove(exported.path.parent, name, stored_as(expected, perfect), "int8")


def test_calibration_rows_are_a_fixed_sample_of_train(expected: Expected) -> None:
    first, again, other = (calibration_images(expected.prepared, 50, seed) for seed in (7, 7, 8))
    np.testing.assert_array_equal(first, again)
    assert first.shape == other.shape == (50, 784)
    assert (first != other).any()


@pytest.mark.parametrize("name", ["savedmodel", "keras"])
def test_other_formats_are_not_quantized(
    version: StoredVersion, sample_artifacts: Path, tmp_path: Path, name: ExportFormat
) -> None:
    with pytest.raises(WrongUsage, match=f"expected the format onnx or litert, received {name}"):
        export_version(version, name, tmp_path, sample_artifacts, "int8")


@pytest.mark.parametrize("missing", ["tf2onnx", "onnx", "onnxruntime"])
def test_a_missing_package_names_the_extra(
    version: StoredVersion, sample_artifacts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ExtraNotInstalled, match=rf"needs {missing}, which .*requirements/export\.lock"):
        export_version(version, "onnx", tmp_path, sample_artifacts)


def test_missing_test_rows_are_named(version: StoredVersion, tmp_path: Path) -> None:
    with pytest.raises(DataUnavailable, match=r"prepared data of version 1 is missing.*fashion-mnist_test\.csv"):
        export_version(version, "onnx", tmp_path / "exports", tmp_path)


def test_output_inside_a_file_is_wrong_usage(version: StoredVersion, sample_artifacts: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(WrongUsage, match="file is not a folder"):
        export_version(version, "keras", tmp_path / "file" / "exports", sample_artifacts)
