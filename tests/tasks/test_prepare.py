import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.contract import FASHION_MNIST, Split
from schemas.errors import DataContractError, StoredArtifactError
from schemas.layout import TEST_IN_TRAIN_NAME
from schemas.references import PreparedData, ValidatedSplit
from tasks.data.splits import read_images, scale_pixels, stratified_split, write_arrays
from tasks.prepare import prepare
from tasks.runtime.files import sha256_file
from tests.memory import peak_bytes


def test_pixels_are_scaled_to_0_to_1_in_float32() -> None:
    scaled = scale_pixels(np.array([[0, 51, 255]], dtype=np.uint8), FASHION_MNIST)
    assert scaled.dtype == np.float32
    np.testing.assert_array_equal(scaled, np.array([[0, 0.2, 1]], dtype=np.float32))


@given(
    counts=st.lists(st.integers(8, 60), min_size=2, max_size=5),
    size=st.integers(10, 400),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_split_takes_every_row_once_and_every_class_in_proportion(counts: list[int], size: int, seed: int) -> None:
    labels = np.repeat(np.arange(len(counts)), counts).astype(np.int32)
    expected = min(size, len(labels) // 5)
    if expected * min(counts) < len(labels):
        return  # a class without a share of its own is the subject of the test below
    kept, held_out = stratified_split(labels, size, seed)
    assert sorted([*kept, *held_out]) == list(range(len(labels)))
    assert len(held_out) == expected
    for label, count in enumerate(counts):
        assert abs((labels[held_out] == label).sum() - expected * count / len(labels)) < 1


def test_a_split_depends_on_the_seed_alone() -> None:
    labels = np.tile(np.arange(10, dtype=np.int32), 60)
    first, again, other = (stratified_split(labels, 100, seed)[1] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_class_of_a_single_row_is_named() -> None:
    labels = np.array([0] * 50 + [1], dtype=np.int32)
    with pytest.raises(DataContractError, match=r"classes \[1\] have one"):
        stratified_split(labels, 10, 0)


def test_a_small_class_has_a_row_in_both_splits() -> None:
    labels = np.repeat(np.arange(10, dtype=np.int32), [490, 470, 20, 5, 4, 3, 3, 2, 2, 2])
    kept, held_out = stratified_split(labels, 50, 0)
    assert len(held_out) == 50
    assert set(labels[held_out]) == set(labels[kept]) == set(range(10))


def test_the_arrays_are_the_rows_of_the_data(
    sample_prepared: PreparedData, sample_data: dict[Split, ValidatedSplit]
) -> None:
    arrays = {path.stem: np.load(path) for path in sample_prepared.record.path.glob("*_*.npy")}
    for split, rows in (("train", 900), ("validation", 100), ("test", 200)):
        images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
        assert (images.shape, images.dtype) == ((rows, 784), np.float32)
        assert (labels.shape, labels.dtype) == ((rows,), np.int32)
        assert images.min() == 0
        assert images.max() == 1
        assert set(np.bincount(labels)) == {rows // 10}
    # Train and validation together are the train file, each row once.
    source, source_labels = read_images(sample_data["train"].data.path, FASHION_MNIST)
    together = np.concatenate([arrays["train_images"], arrays["validation_images"]])
    labels = np.concatenate([arrays["train_labels"], arrays["validation_labels"]])
    expected = sorted(zip(source_labels.tolist(), scale_pixels(source, FASHION_MNIST).tolist(), strict=True))
    assert sorted(zip(labels.tolist(), together.tolist(), strict=True)) == expected
    # The test file keeps its order.
    np.testing.assert_array_equal(
        np.rint(arrays["test_images"] * 255).astype(np.uint8),
        read_images(sample_data["test"].data.path, FASHION_MNIST)[0],
    )


def test_memory_does_not_grow_with_the_rows_that_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.data.parquet.BLOCK_ROWS", 100)
    monkeypatch.setattr("tasks.data.splits._SCALED_AT_ONCE", 30)
    narrow = replace(FASHION_MNIST, height=10, width=10)
    peaks = []
    for rows in (400, 1_600):
        pixels = np.random.default_rng(0).integers(0, 256, (rows, 101), np.uint8)
        path = tmp_path / f"{rows}.parquet"
        columns = {name: pixels[:, at] for at, name in enumerate(narrow.columns)}
        pq.write_table(pa.table(columns), path)
        splits = {"odd": np.arange(1, rows, 2), "even": np.arange(0, rows, 2)}
        peaks.append(peak_bytes(partial(write_arrays, path, splits, tmp_path, narrow), 1.5 * sum(peaks)))
        for split, taken in splits.items():
            images = np.load(tmp_path / f"{split}_images.npy")
            np.testing.assert_array_equal(images, scale_pixels(pixels[taken, 1:], narrow))
            assert np.load(tmp_path / f"{split}_labels.npy").tolist() == pixels[taken, 0].tolist()
    assert peaks[1] < 1.5 * peaks[0]


def test_a_changed_seed_prepares_anew_and_an_unchanged_one_does_not(
    sample_prepared: PreparedData, sample_data: dict[Split, ValidatedSplit], sample_artifacts: Path
) -> None:
    arguments = (sample_data["train"], sample_data["test"], "fashion-mnist", 100)
    assert prepare.fn(*arguments, 7, sample_artifacts).record.reused
    assert not prepare.fn(*arguments, 8, sample_artifacts).record.reused


def test_a_changed_test_split_prepares_anew(
    sample_prepared: PreparedData, sample_data: dict[Split, ValidatedSplit], sample_artifacts: Path, tmp_path: Path
) -> None:
    test = sample_data["test"]
    path = tmp_path / "test.parquet"
    pq.write_table(pq.read_table(test.data.path).slice(1), path)
    fewer = test.model_copy(update={"data": test.data.model_copy(update={"path": path, "sha256": sha256_file(path)})})
    changed = prepare.fn(sample_data["train"], fewer, "fashion-mnist", 100, 7, sample_artifacts)
    assert not changed.record.reused
    assert changed.test_rows == 199


def test_other_rows_that_stand_in_train_prepare_anew_for_what_evaluate_says_hangs_on_them(
    sample_prepared: PreparedData, sample_data: dict[Split, ValidatedSplit], sample_artifacts: Path, tmp_path: Path
) -> None:
    test = sample_data["test"]
    shutil.copytree(test.record.path, tmp_path, dirs_exist_ok=True)
    np.save(tmp_path / TEST_IN_TRAIN_NAME, np.full(200, 2, np.uint8))
    all_known = test.model_copy(update={"record": test.record.model_copy(update={"path": tmp_path})})
    changed = prepare.fn(sample_data["train"], all_known, "fashion-mnist", 100, 7, sample_artifacts)
    assert not changed.record.reused
    assert np.load(changed.record.path / TEST_IN_TRAIN_NAME).tolist() == [2] * 200


def test_a_parquet_that_was_changed_after_its_verdict_is_not_prepared(
    sample_data: dict[Split, ValidatedSplit], tmp_path: Path
) -> None:
    path = tmp_path / "test.parquet"
    path.write_bytes(sample_data["test"].data.path.read_bytes() + b"x")
    test = sample_data["test"]
    changed = test.model_copy(update={"data": test.data.model_copy(update={"path": path})})
    with pytest.raises(StoredArtifactError, match="changed after it was ingested"):
        prepare.fn(sample_data["train"], changed, "fashion-mnist", 100, 7, tmp_path)
