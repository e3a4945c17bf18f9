"""Stratified validation rows, the arrays that training reads, and normalized pixels."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.contract import FASHION_MNIST, PixelScale
from schemas.errors import DataContractError
from tasks.data import parquet
from tasks.data.splits import scale_pixels, stratified_split, write_arrays
from tests.memory import peak_bytes


@pytest.mark.parametrize(("low", "high"), [(0, 255), (10, 210), (1, 255), (0, 16)])
def test_scales_pixels_to_0_to_1(low: int, high: int) -> None:
    images = np.arange(low, high + 1, dtype=np.uint8)[:, None]
    scaled = scale_pixels(images, PixelScale(low, high))
    assert scaled.dtype == np.float32
    np.testing.assert_array_equal(scaled, ((images - float(low)) / (high - low)).astype(np.float32))
    assert (scaled[0, 0], scaled[-1, 0]) == (0, 1)


@given(
    counts=st.lists(st.integers(8, 60), min_size=2, max_size=5),
    size=st.integers(10, 400),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_split_has_every_row_once_and_equal_shares(counts: list[int], size: int, seed: int) -> None:
    labels = np.repeat(np.arange(len(counts)), counts).astype(np.int32)
    expected = min(size, len(labels) // 5)
    if expected * min(counts) < len(labels):
        return  # a class whose share is less than one row has its own test below
    train, validation = stratified_split(labels, size, seed)
    assert sorted([*train, *validation]) == list(range(len(labels)))
    assert len(validation) == expected
    for label, count in enumerate(counts):
        assert abs((labels[validation] == label).sum() - expected * count / len(labels)) < 1


def test_a_split_depends_on_the_seed() -> None:
    labels = np.tile(np.arange(10, dtype=np.int32), 60)
    first, again, other = (stratified_split(labels, 100, seed)[1] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_rejects_a_class_with_a_single_row() -> None:
    labels = np.array([0] * 50 + [1], dtype=np.int32)
    with pytest.raises(DataContractError, match=r"a single row of each of the classes \[1\]"):
        stratified_split(labels, 10, 0)


def test_a_small_class_has_a_row_in_both_splits() -> None:
    labels = np.repeat(np.arange(10, dtype=np.int32), [490, 470, 20, 5, 4, 3, 3, 2, 2, 2])
    train, validation = stratified_split(labels, 50, 0)
    assert len(validation) == 50
    assert set(labels[validation]) == set(labels[train]) == set(range(10))


def test_writes_arrays_in_constant_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "BLOCK_ROWS", 100)
    narrow = replace(FASHION_MNIST, height=10, width=10)
    peaks = []
    # A thread reads ahead, so one block more or less may be in memory.
    for rows in (2_000, 16_000):
        pixels = np.random.default_rng(0).integers(0, 256, (rows, 101), np.uint8)
        path = tmp_path / f"{rows}.parquet"
        pq.write_table(pa.table({name: pixels[:, at] for at, name in enumerate(narrow.columns)}), path)
        numbers = {"odd": np.arange(1, rows, 2), "even": np.arange(0, rows, 2)}
        peaks.append(peak_bytes(partial(write_arrays, [path], numbers, tmp_path, narrow), 2 * sum(peaks)))
        for split, selected in numbers.items():
            images = np.load(tmp_path / f"{split}_images.npy")
            np.testing.assert_array_equal(images, pixels[selected, 1:])
            assert np.load(tmp_path / f"{split}_labels.npy").tolist() == pixels[selected, 0].tolist()
    assert peaks[1] < 2 * peaks[0]
