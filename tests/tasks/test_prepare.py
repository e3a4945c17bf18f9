"""The prepare stage: arrays of train, validation and test."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from schemas.contract import SPLITS, Split
from schemas.errors import StoredArtifactError
from schemas.layout import TEST_IN_TRAIN_NAME
from schemas.references import PreparedData, ValidatedSplit
from tasks.data.splits import open_split
from tasks.prepare import prepare
from tasks.runtime.files import sha256_file
from tests.tasks.checks.rows import read_rows


def test_arrays_have_the_rows_of_the_data(
    sample_prepared: PreparedData, sample_data: dict[Split, ValidatedSplit]
) -> None:
    folder = sample_prepared.record.path
    # The arrays have every row of a file in its order.
    for split in SPLITS:
        images, labels = (np.load(folder / split / f"{name}-00000.npy") for name in ("images", "labels"))
        source, source_labels = read_rows(*sample_data[split].data.files)
        assert (images.dtype, labels.dtype) == (np.uint8, np.int32)
        np.testing.assert_array_equal(images, source)
        np.testing.assert_array_equal(labels, source_labels)
    held_out = np.load(folder / "validation_rows.npy")
    assert held_out.dtype == np.int64
    # Train and validation together have each row of the train file once.
    images, labels = read_rows(*sample_data["train"].data.files)
    trained_on = np.setdiff1d(np.arange(1_000), held_out)
    for split, rows in (("train", trained_on), ("validation", held_out)):
        opened = open_split(folder, split)
        assert set(np.bincount(opened.labels)) == {len(rows) // 10}
        np.testing.assert_array_equal(opened.images[:], images[rows])
        np.testing.assert_array_equal(opened.labels, labels[rows])
        np.testing.assert_array_equal(opened.scaled(slice(3, 9)), images[rows[3:9]] / np.float32(255))


def test_only_a_changed_seed_misses_the_cache(
    sample_prepared: PreparedData, sample_data: dict[Split, ValidatedSplit], sample_artifacts: Path
) -> None:
    arguments = (sample_data["train"], sample_data["test"], "fashion-mnist", 100)
    assert prepare.fn(*arguments, 7, sample_artifacts).record.reused
    assert not prepare.fn(*arguments, 8, sample_artifacts).record.reused


def test_a_changed_test_split_misses_the_cache(
    sample_prepared: PreparedData, sample_data: dict[Split, ValidatedSplit], sample_artifacts: Path, tmp_path: Path
) -> None:
    test = sample_data["test"]
    (part,) = test.data.parts
    path = tmp_path / "test.parquet"
    pq.write_table(pq.read_table(part.path).take(list(range(199, -1, -1))), path)
    reverse = part.model_copy(update={"path": path, "sha256": sha256_file(path)})
    data = test.data.model_copy(update={"parts": (reverse,), "content": "0" * 64})
    other = test.model_copy(update={"data": data})
    changed = prepare.fn(sample_data["train"], other, "fashion-mnist", 100, 7, sample_artifacts)
    assert not changed.record.reused
    labels, before = (open_split(each.record.path, "test").labels for each in (changed, sample_prepared))
    assert labels.tolist() == before[::-1].tolist()


def test_changed_duplicates_miss_the_cache(
    sample_prepared: PreparedData, sample_data: dict[Split, ValidatedSplit], sample_artifacts: Path, tmp_path: Path
) -> None:
    test = sample_data["test"]
    shutil.copytree(test.record.path, tmp_path, dirs_exist_ok=True)
    np.save(tmp_path / TEST_IN_TRAIN_NAME, np.full(200, 2, np.uint8))
    all_known = test.model_copy(update={"record": test.record.model_copy(update={"path": tmp_path})})
    changed = prepare.fn(sample_data["train"], all_known, "fashion-mnist", 100, 7, sample_artifacts)
    assert not changed.record.reused
    assert changed.sha256 != sample_prepared.sha256
    assert np.load(changed.record.path / TEST_IN_TRAIN_NAME).tolist() == [2] * 200


def test_rejects_a_parquet_that_was_changed(sample_data: dict[Split, ValidatedSplit], tmp_path: Path) -> None:
    test = sample_data["test"]
    (part,) = test.data.parts
    path = tmp_path / "test.parquet"
    path.write_bytes(part.path.read_bytes() + b"x")
    longer = test.data.model_copy(update={"parts": (part.model_copy(update={"path": path}),)})
    changed = test.model_copy(update={"data": longer})
    with pytest.raises(StoredArtifactError, match="changed after it was ingested"):
        prepare.fn(sample_data["train"], changed, "fashion-mnist", 100, 7, tmp_path)


def test_leaves_out_the_test_split(sample_data: dict[Split, ValidatedSplit], tmp_path: Path) -> None:
    arguments = (sample_data["train"], None, "fashion-mnist", 100, 7, tmp_path)
    prepared = prepare.fn(*arguments)
    assert (prepared.train_rows, prepared.test_rows, prepared.duplicates) == (900, 0, None)
    assert not list(prepared.record.path.glob("test*"))
    assert prepare.fn(*arguments).record.reused
