"""Predictions equal those of plain Keras, in file order, in bounded memory; the output is complete or absent."""

import gzip
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from operator import eq
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from schemas.contract import FASHION_MNIST
from schemas.errors import DataContractError, StageNotWritten, StoredArtifactError, VersionNotFound, WrongUsage
from schemas.layout import STORED_NAMES
from schemas.predictions import PredictionProfile
from schemas.references import Predictions
from schemas.store import VersionFacts
from tasks.checks import scan
from tasks.data import csv_reader
from tasks.predict import predict
from tasks.registry import batch_prediction
from tasks.registry.batch_prediction import in_batches, predict_csv
from tasks.registry.prediction_records import read_records
from tasks.registry.store import ModelStore, StoredVersion
from tasks.runtime.files import sha256_file
from tests.memory import peak_bytes
from tests.plain_keras import plain_network
from tests.sample import SAMPLE
from tests.stored import facts

LINES = gzip.decompress((SAMPLE / "fashion-mnist_test.csv.gz").read_bytes()).splitlines()  # a header, 200 rows
PROBABILITIES = [f"p{label}" for label in range(10)]


def without_label(lines: list[bytes]) -> list[bytes]:
    return [line.partition(b",")[2] for line in lines]


def put(folder: Path, lines: list[bytes], name: str = "images.csv") -> Path:
    path = folder / name
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


@pytest.fixture(scope="module", autouse=True)
def load_once(two_versions: Path) -> Iterator[None]:
    """Load each of these two versions once per module: no test changes them."""
    load = batch_prediction.load_model
    models: dict[int, Any] = {}

    def load_cached(version: StoredVersion) -> Any:
        if not version.folder.is_relative_to(two_versions):
            return load(version)
        if version.number not in models:
            models[version.number] = load(version)
        return models[version.number]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch_prediction, "load_model", load_cached)
        yield


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read the 200 rows in about 27 blocks of text, and write them in 4 batches."""
    monkeypatch.setattr(csv_reader, "BLOCK_BYTES", 1 << 14)
    monkeypatch.setattr(batch_prediction, "BATCH_ROWS", 64)


def run(images: Path, artifacts: Path, output: str = "out.parquet", version: str = "champion") -> Predictions:
    return predict_csv(images, images.parent / output, version, "fashion-mnist", artifacts)


def plain_keras(images: Path, artifacts: Path, version: int) -> npt.NDArray[np.float32]:
    """Predict with pandas and Keras alone."""
    model = plain_network(ModelStore.of(artifacts, "fashion-mnist").folder(version))
    frame = pd.read_csv(images).drop(columns="label", errors="ignore")
    probabilities: npt.NDArray[np.float32] = model.predict(frame.to_numpy(np.float32) / 255, verbose=0)
    return probabilities


# --- predictions -----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("version", [1, 2])
def test_predictions_are_those_of_plain_keras(two_versions: Path, tmp_path: Path, version: int) -> None:
    images = put(tmp_path, LINES)
    predictions = run(images, two_versions, version=str(version))
    expected = plain_keras(images, two_versions, version)
    table = pd.read_parquet(predictions.output)
    np.testing.assert_allclose(table[PROBABILITIES], expected, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(table["predicted_label"], expected.argmax(axis=1))
    assert table["name"].tolist() == [FASHION_MNIST.class_names[label] for label in table["predicted_label"]]
    assert (predictions.version, predictions.rows) == (version, 200)
    truth = pd.read_csv(images)["label"].to_numpy()
    np.testing.assert_array_equal(table["label"], truth)
    assert predictions.accuracy == pytest.approx((expected.argmax(axis=1) == truth).mean())


@pytest.mark.usefixtures("small_blocks")
def test_labels_add_the_accuracy_and_their_column(two_versions: Path, tmp_path: Path) -> None:
    labelled = run(put(tmp_path, LINES), two_versions, "labelled.parquet")
    bare = run(put(tmp_path, without_label(LINES), "bare.csv"), two_versions, "bare.parquet")
    table = pq.read_table(labelled.output)
    assert table["label"].to_pylist() == [int(line.partition(b",")[0]) for line in LINES[1:]]
    assert table.drop_columns("label").equals(pq.read_table(bare.output))
    assert labelled.accuracy is not None
    assert bare.accuracy is None


def test_gzip_spaces_and_quotes_are_accepted(two_versions: Path, tmp_path: Path) -> None:
    plain = run(put(tmp_path, without_label(LINES)), two_versions)
    (tmp_path / "packed.csv.gz").write_bytes(gzip.compress((tmp_path / "images.csv").read_bytes()))
    quoted = [b'"' + line.replace(b",", b'", "') + b'"' for line in without_label(LINES)]
    for images in (tmp_path / "packed.csv.gz", put(tmp_path, quoted, "quoted.csv")):
        assert pq.read_table(run(images, two_versions, "other.parquet").output).equals(pq.read_table(plain.output))


@pytest.mark.usefixtures("small_blocks")
def test_rows_keep_their_order_across_blocks(two_versions: Path, tmp_path: Path) -> None:
    predictions = run(put(tmp_path, LINES), two_versions)
    file = pq.ParquetFile(predictions.output)
    assert [file.metadata.row_group(at).num_rows for at in range(file.num_row_groups)] == [64, 64, 64, 8]
    table = file.read().to_pandas()
    assert table["row"].tolist() == list(range(200))
    # A row alone gets the same prediction.
    for row in (0, 63, 64, 127, 199):
        alone = run(put(tmp_path, [LINES[0], LINES[1 + row]], "one.csv"), two_versions, "one.parquet")
        np.testing.assert_allclose(
            pd.read_parquet(alone.output)[PROBABILITIES], table.loc[[row], PROBABILITIES], rtol=0, atol=1e-6
        )


@pytest.mark.parametrize("sizes", [[], [3], [1] * 10, [4, 4], [9], [2, 7, 1, 20]])
def test_batches_hold_the_same_rows_in_the_same_order(sizes: list[int]) -> None:
    rows = np.arange(2 * sum(sizes), dtype=np.uint8).reshape(-1, 2)
    batches = list(in_batches(iter(np.split(rows, np.cumsum(sizes)[:-1])), 4)) if sizes else list(in_batches([], 4))
    assert [len(batch) for batch in batches[:-1]] == [4] * (len(batches) - 1)
    assert all(0 < len(batch) <= 4 for batch in batches)
    assert np.array_equal(np.concatenate([rows[:0], *batches]), rows)


class ConstantModel:
    """A model that gives each class the same probability."""

    def predict_on_batch(self, images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        return np.full((len(images), 10), 0.1, np.float32)


@pytest.mark.usefixtures("small_blocks")
def test_memory_does_not_grow_with_the_file(
    two_versions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_prediction, "load_model", lambda version: ConstantModel())
    monkeypatch.setattr(scan, "SAMPLE_ROWS", 64)
    peaks = []
    for times in (2, 8):
        images = put(tmp_path, LINES[:1] + LINES[1:] * times)
        peaks.append(peak_bytes(partial(run, images, two_versions), 1.5 * sum(peaks)))
        assert pq.read_metadata(images.parent / "out.parquet").num_rows == 200 * times
    assert peaks[1] < 1.5 * peaks[0]


# --- output -------------------------------------------------------------------------------------------------


def test_the_parquet_has_its_schema_and_the_version(two_versions: Path, tmp_path: Path) -> None:
    predictions = run(put(tmp_path, LINES), two_versions, version="v2")
    schema = pq.read_schema(predictions.output)
    assert [(field.name, field.type) for field in schema] == [
        ("row", pa.int64()),
        ("label", pa.int32()),
        ("predicted_label", pa.int32()),
        ("name", pa.string()),
        *((name, pa.float32()) for name in PROBABILITIES),
    ]
    assert not any(field.nullable for field in schema)
    stored = ModelStore.of(two_versions, "fashion-mnist").version(2)
    assert {key.decode(): value.decode() for key, value in schema.metadata.items()} == {
        "fashion_ann.version": "2",
        "fashion_ann.dataset": "fashion-mnist",
        "fashion_ann.manifest_sha256": stored.manifest.manifest_sha256,
        "fashion_ann.weights_sha256": sha256_file(stored.folder / "model.weights.h5"),
        "fashion_ann.warnings": "[]",
    }
    assert predictions.output == tmp_path / "out.parquet"
    assert predictions.sha256 == sha256_file(predictions.output)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("name", ["out.csv", "out.CSV"])
def test_a_csv_contains_the_same_float32_values(two_versions: Path, tmp_path: Path, name: str) -> None:
    images = put(tmp_path, LINES)
    table = pd.read_parquet(run(images, two_versions).output)
    text = run(images, two_versions, name).output
    assert text.read_bytes().startswith(b"row,label,predicted_label,name,p0,p1,p2,p3,p4,p5,p6,p7,p8,p9\n0,")
    read = pd.read_csv(text, dtype=dict.fromkeys(PROBABILITIES, np.float32))
    np.testing.assert_array_equal(read[PROBABILITIES].to_numpy(), table[PROBABILITIES].to_numpy())
    others = ["row", "label", "predicted_label", "name"]
    assert read[others].to_numpy().tolist() == table[others].to_numpy().tolist()


def test_the_task_returns_the_reference(two_versions: Path, tmp_path: Path) -> None:
    images = put(tmp_path, LINES)
    predictions = predict.fn(images, tmp_path / "out.parquet", "2", "fashion-mnist", two_versions)
    again = run(images, two_versions, version="2")
    assert predictions == again
    assert Predictions.model_validate_json(predictions.model_dump_json()) == predictions


# --- errors -------------------------------------------------------------------------------------------------


def damaged(line: int, column: int, cell: bytes) -> list[bytes]:
    """The sample with another cell; ``line`` counts from 1, ``column`` 0 is the label."""
    cells = LINES[line - 1].split(b",")
    cells[column] = cell
    return [*LINES[: line - 1], b",".join(cells), *LINES[line:]]


FAULTS = {
    "pixel": (
        damaged(150, 17, b"300"),
        "images.csv line 150, column pixel17: expected an integer 0..255, received 300",
    ),
    "pixel of an unlabelled file": (without_label(damaged(150, 17, b"x")), "line 150, column pixel17: expected an"),
    "label 10": (damaged(150, 0, b"10"), "line 150, column label: expected an integer 0..9, received 10"),
    "no label in one row": (damaged(150, 0, b""), "line 150, column label: expected an integer 0..9, received ''"),
    "short row": ([*LINES[:149], LINES[149].rpartition(b",")[0]], "line 150, column pixel784: expected 785 values"),
    "short row of an unlabelled file": (
        without_label([*LINES[:149], LINES[149].rpartition(b",")[0]]),
        "line 150, column pixel784: expected 784 values",
    ),
    "labelled row of an unlabelled file": (
        [*without_label(LINES[:149]), LINES[149]],
        "line 150, column 785: expected 784 values",
    ),
    "header alone": (LINES[:1], "a header and no rows"),
    "unlabelled header alone": (without_label(LINES[:1]), "a header and no rows"),
    "empty": ([], "line 1, column label"),
    "no header": (LINES[1:], "the header is missing"),
    "no header, unlabelled": (without_label(LINES[1:]), "the header is missing"),
    "label misspelt": ([LINES[0].replace(b"label", b"Label"), *LINES[1:]], "The column label may be left out"),
    "pixel misspelt": (
        without_label([LINES[0].replace(b"pixel9,", b"pixle9,"), *LINES[1:]]),
        "line 1, column pixel9: expected this name in the header (missing: 'pixel9'; unexpected: 'pixle9')",
    ),
}


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("before", [None, b"old predictions"], ids=["no output", "an output"])
@pytest.mark.parametrize(("lines", "words"), FAULTS.values(), ids=FAULTS.keys())
def test_a_faulty_csv_is_rejected(
    two_versions: Path, tmp_path: Path, lines: list[bytes], words: str, before: bytes | None
) -> None:
    images = put(tmp_path, lines)
    if before is not None:
        (tmp_path / "out.parquet").write_bytes(before)
    existing = sorted(tmp_path.iterdir())
    with pytest.raises(DataContractError) as caught:
        run(images, two_versions)
    assert words in str(caught.value)
    assert str(images) in str(caught.value)
    assert sorted(tmp_path.iterdir()) == existing
    if before is not None:
        assert (tmp_path / "out.parquet").read_bytes() == before


def test_an_empty_or_missing_csv_is_rejected(two_versions: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.csv").write_bytes(b"")
    with pytest.raises(DataContractError, match="is empty"):
        run(tmp_path / "empty.csv", two_versions)
    with pytest.raises(DataContractError, match="cannot be read"):
        run(tmp_path / "none.csv", two_versions)


def test_a_pipe_or_device_is_not_opened(two_versions: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "images.csv")
    for images, received in ((tmp_path / "images.csv", "a pipe"), (Path("/dev/zero"), "a device")):
        with pytest.raises(DataContractError, match=f"{images} is not a file. Expected a CSV, received {received}"):
            predict_csv(images, tmp_path / "out.parquet", "1", "fashion-mnist", two_versions)


def test_images_that_change_while_read_are_rejected(
    two_versions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = put(tmp_path, LINES)

    def predict_and_change(csv: Any, size: int) -> Any:
        yield from in_batches(csv, size)
        put(tmp_path, [*LINES[:-1], LINES[-2]])

    monkeypatch.setattr(batch_prediction, "in_batches", predict_and_change)
    with pytest.raises(DataContractError, match="changed while it was read"):
        run(images, two_versions)
    assert not (tmp_path / "out.parquet").exists()


def test_reordered_columns_are_accepted_and_logged(
    two_versions: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plain = run(put(tmp_path, LINES), two_versions)
    last = [b",".join([*line.split(b",")[1:], line.partition(b",")[0]]) for line in LINES]
    other = run(put(tmp_path, last, "last.csv"), two_versions, "other.parquet")
    assert pq.read_table(other.output).equals(pq.read_table(plain.output))
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warning.startswith("last.csv: columns were reordered")


def test_an_existing_output_is_replaced(two_versions: Path, tmp_path: Path) -> None:
    (tmp_path / "out.parquet").write_bytes(b"old predictions")
    run(put(tmp_path, LINES), two_versions)
    names = ["_out.parquet.profile.json", "images.csv", "out.parquet"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert pq.read_table(tmp_path / "out.parquet").num_rows == 200


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ("out.txt", r"must end in \.parquet or \.csv"),
        ("out", r"must end in \.parquet or \.csv"),
        ("out.csv.gz", r"must end in \.parquet or \.csv"),
        ("none/out.parquet", "must be in an existing folder"),
        ("folder.parquet", "it is a folder"),
        ("images.csv", "the file of the images"),
        ("link.csv", "the file of the images"),
        ("pipe.csv", "it is a device or a pipe"),
        ("device.csv", "it is a device or a pipe"),
        ("loop.csv", "it is a link to itself"),
        ("dangling.csv", "must be in an existing folder"),
    ],
)
def test_an_unusable_output_is_rejected_first(
    two_versions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str, words: str
) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise AssertionError("work started")

    images = put(tmp_path, LINES)
    (tmp_path / "folder.parquet").mkdir()
    (tmp_path / "link.csv").symlink_to(images)
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "device.csv").symlink_to("/dev/null")
    (tmp_path / "loop.csv").symlink_to("loop.csv")
    (tmp_path / "dangling.csv").symlink_to("none/out.csv")
    monkeypatch.setattr(batch_prediction, "open_csv", fail)
    monkeypatch.setattr(batch_prediction, "load_model", fail)
    content = images.read_bytes()
    with pytest.raises(WrongUsage, match=words):
        run(images, two_versions, output)
    assert images.read_bytes() == content


def test_an_unusable_version_leaves_no_output(two_versions: Path, tmp_path: Path) -> None:
    images = put(tmp_path, LINES)
    with pytest.raises(VersionNotFound):
        run(images, two_versions, version="7")
    copy = shutil.copytree(two_versions, tmp_path / "artifacts")
    weights = ModelStore.of(copy, "fashion-mnist").folder(1) / "model.weights.h5"
    weights.write_bytes(weights.read_bytes() + b"\0")
    with pytest.raises(StoredArtifactError, match="sha256"):
        run(images, copy)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["artifacts", "images.csv"]


def test_a_version_without_a_profile_is_a_warning(two_versions: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(two_versions, tmp_path / "artifacts")
    store = ModelStore.of(copy, "fashion-mnist")
    with store.lock():

        def build(folder: Path, number: int) -> VersionFacts:
            for name in STORED_NAMES:
                shutil.copyfile(store.folder(1) / name, folder / name)
            return facts()

        number = store.add(build).number
    (warning,) = run(put(tmp_path, without_label(LINES)), copy, version=str(number)).warnings
    assert warning.startswith(f"images.csv: the images were not checked: version {number} has no profile")


def test_a_full_disk_names_the_output_and_leaves_nothing(
    two_versions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: object, table: pa.Table) -> None:
        raise OSError("[Errno 28] Error writing bytes to file. Detail: No space left on device")

    monkeypatch.setattr(pq.ParquetWriter, "write_table", full)
    with pytest.raises(StageNotWritten, match=r"out\.parquet: .*No space left"):
        run(put(tmp_path, LINES), two_versions)
    assert [path.name for path in tmp_path.iterdir()] == ["images.csv"]


def test_labels_and_class_names_are_those_of_the_dataset(
    two_versions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Labels -5, 0, 5 .. 40 in a column of another name.
    other = replace(FASHION_MNIST, labels={5 * at - 5: letter for at, letter in enumerate("abcdefghij")})
    other = replace(other, label_column="digit")
    monkeypatch.setattr(batch_prediction, "contract_of", lambda dataset: other)
    cells = [line.partition(b",") for line in LINES]
    moved = [b"%d,%b" % (5 * int(label) - 5, pixels) for label, _, pixels in cells[1:]]
    table = pd.read_parquet(run(put(tmp_path, [b"digit," + cells[0][2], *moved]), two_versions).output)
    assert [column for column in table if column.startswith("p")][1:] == [f"p{5 * at - 5}" for at in range(10)]
    np.testing.assert_array_equal(table["label"], [5 * int(label) - 5 for label, _, _ in cells[1:]])
    assert set(table["predicted_label"]) <= set(other.labels)
    assert table["name"].tolist() == [other.labels[label] for label in table["predicted_label"]]


def test_a_shadow_changes_no_byte_of_the_output(two_versions: Path, tmp_path: Path) -> None:
    images = put(tmp_path, LINES)
    alone = run(images, two_versions).output.read_bytes()
    output, now = tmp_path / "out.parquet", datetime(2026, 3, 4, tzinfo=UTC)
    predictions = predict_csv(images, output, "1", "fashion-mnist", two_versions, shadow="2", now=now)
    assert predictions.output.read_bytes() == alone
    table = pq.read_table(tmp_path / "_out.shadow.parquet")
    other = pq.read_table(run(images, two_versions, "other.parquet", version="2").output)
    assert table.equals(other)
    assert table.schema.metadata[b"fashion_ann.version"] == b"2"
    champion, challenger = (pq.read_table(predictions.output), table)
    same = sum(map(eq, champion["predicted_label"].to_pylist(), challenger["predicted_label"].to_pylist()))
    compared = predictions.shadow
    assert compared is not None
    assert compared.paired is not None
    assert (compared.version, compared.rows, compared.agree) == (2, 200, same)
    right = [
        sum(map(eq, each["label"].to_pylist(), each["predicted_label"].to_pylist())) for each in (champion, challenger)
    ]
    assert compared.paired.fixed - compared.paired.broken == right[1] - right[0]
    assert compared.output_sha256 == sha256_file(tmp_path / "_out.shadow.parquet")
    assert predictions.profile is not None
    profile = PredictionProfile.parse(json.loads(predictions.profile.read_bytes()), "the profile")
    assert profile.shadow == compared
    assert (profile.output_sha256, profile.day) == (predictions.sha256, "2026-03-04")
    records = [record.profile for record in read_records(two_versions, FASHION_MNIST)]
    of_day = [(record.version, record.shadow_of) for record in records if record.day == profile.day]
    assert sorted(of_day) == [(1, None), (2, 1)]
    litter = tmp_path / f"._out.shadow.parquet.{'0' * 32}.tmp"  # of a killed process
    litter.touch()
    run(images, two_versions)
    assert not (tmp_path / "_out.shadow.parquet").exists()
    assert not litter.exists()


def test_a_version_is_no_shadow_of_itself(two_versions: Path, tmp_path: Path) -> None:
    with pytest.raises(WrongUsage, match="expected another version"):
        predict_csv(put(tmp_path, LINES), tmp_path / "out.csv", "1", "fashion-mnist", two_versions, shadow="champion")
    assert [path.name for path in tmp_path.iterdir()] == ["images.csv"]


def test_csv_output_has_a_shadow_too(two_versions: Path, tmp_path: Path) -> None:
    predict_csv(put(tmp_path, LINES), tmp_path / "out.csv", "1", "fashion-mnist", two_versions, shadow="2")
    assert len(pd.read_csv(tmp_path / "_out.shadow.csv")) == 200
