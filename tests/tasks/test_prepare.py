"""The prepare stage: arrays of train, validation and test."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from schemas.contract import Split
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
    arrays = {path.stem: np.load(path) for path in sample_prepared.record.path.glob("*_*.npy")}
    for split, rows in (("train", 900), ("validation", 100), ("test", 200)):
        images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
        assert (images.shape, images.dtype) == ((rows, 784), np.uint8)
        assert (labels.shape, labels.dtype) == ((rows,), np.int32)
        assert images.min() == 0
        assert images.max() == 255
        assert set(np.bincount(labels)) == {rows // 10}
        opened = open_split(sample_prepared.record.path, split)
        np.testing.assert_array_equal(opened.scaled(slice(3, 9)), images[3:9] / np.float32(255))
        np.testing.assert_array_equal(opened.labels, labels)
    # Train and validation together have each row of the train file once.
    source, source_labels = read_rows(*sample_data["train"].data.files)
    together = np.concatenate([arrays["train_images"], arrays["validation_images"]])
    labels = np.concatenate([arrays["train_labels"], arrays["validation_labels"]])
    expected = sorted(zip(source_labels.tolist(), source.tolist(), strict=True))
    assert sorted(zip(labels.tolist(), together.tolist(), strict=True)) == expected
    # The test file keeps its order.
    np.testing.assert_array_equal(arrays["test_images"], read_rows(*sample_data["test"].data.files)[0])


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
    path = tmp_path / "test.parquet"
    pq.write_table(pq.read_table(test.data.path).take(list(range(199, -1, -1))), path)
    other = test.model_copy(update={"data": test.data.model_copy(update={"path": path, "sha256": sha256_file(path)})})
    changed = prepare.fn(sample_data["train"], other, "fashion-mnist", 100, 7, sample_artifacts)
    assert not changed.record.reused
    labels, before = (np.load(each.record.path / "test_labels.npy") for each in (changed, sample_prepared))
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
    assert np.load(changed.record.path / TEST_IN_TRAIN_NAME).tolist() == [2] * 200


def test_rejects_a_parquet_that_was_changed(sample_data: dict[Split, ValidatedSplit], tmp_path: Path) -> None:
    path = tmp_path / "test.parquet"
    path.write_bytes(sample_data["test"].data.path.read_bytes() + b"x")
    test = sample_data["test"]
    changed = test.model_copy(update={"data": test.data.model_copy(update={"path": path})})
    with pytest.raises(StoredArtifactError, match="changed after it was ingested"):
        prepare.fn(sample_data["train"], changed, "fashion-mnist", 100, 7, tmp_path)


def test_leaves_out_the_test_split(sample_data: dict[Split, ValidatedSplit], tmp_path: Path) -> None:
    arguments = (sample_data["train"], None, "fashion-mnist", 100, 7, tmp_path)
    prepared = prepare.fn(*arguments)
    assert (prepared.train_rows, prepared.test_rows, prepared.duplicates) == (900, 0, None)
    assert not list(prepared.record.path.glob("test*"))
    assert prepare.fn(*arguments).record.reused
