"""Stratified validation rows, the arrays that training reads, and normalized pixels."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.contract import FASHION_MNIST, DatasetContract, PixelScale
from schemas.errors import DataContractError
from tasks.data import parquet
from tasks.data.splits import open_split, scale_pixels, stratified_split, write_held_out, write_part
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


def _write(path: Path, pixels: npt.NDArray[np.uint8], columns: Sequence[str]) -> Path:
    pq.write_table(pa.table({name: pixels[:, at] for at, name in enumerate(columns)}), path)
    return path


def test_writes_arrays_in_constant_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "BLOCK_ROWS", 100)
    narrow = replace(FASHION_MNIST, height=10, width=10)
    peaks = []
    # A thread reads ahead, so one block more or less may be in memory.
    for part, rows in enumerate((2_000, 16_000)):
        pixels = np.random.default_rng(0).integers(0, 256, (rows, 101), np.uint8)
        path = _write(tmp_path / f"{rows}.parquet", pixels, narrow.columns)
        peaks.append(peak_bytes(partial(write_part, path, tmp_path, part, narrow), 2 * sum(peaks)))
        np.testing.assert_array_equal(np.load(tmp_path / f"images-{part:05}.npy"), pixels[:, 1:])
        assert np.load(tmp_path / f"labels-{part:05}.npy").tolist() == pixels[:, 0].tolist()
    assert peaks[1] < 2 * peaks[0]


def test_several_parts_are_read_as_one(tmp_path: Path, tiny_contract: DatasetContract) -> None:
    rows = np.random.default_rng(0).integers(0, 256, (40, 5), np.uint8)
    rows[:, 0] %= 3
    bounds = (0, 7, 8, 31, 40)
    files = [
        _write(tmp_path / f"{first}.parquet", rows[first:after], tiny_contract.columns)
        for first, after in pairwise(bounds)
    ]
    whole = _write(tmp_path / "whole.parquet", rows, tiny_contract.columns)
    opened = {}
    for name, train in (("parts", files), ("whole", [whole])):
        folder = tmp_path / name
        folder.mkdir()
        for split, parquets in (("train", train), ("test", files[1:2])):
            (folder / split).mkdir()
            for part, path in enumerate(parquets):
                write_part(path, folder / split, part, tiny_contract)
        counts = write_held_out(folder, tiny_contract, 6, seed=3)
        assert counts == {"train_rows": 34, "validation_rows": 6, "test_rows": 1}
        opened[name] = {split: open_split(folder, split) for split in ("train", "validation", "test")}
    order = np.random.default_rng(1).permutation(34)
    for split, numbers in (("train", [*order, 5, 5]), ("validation", slice(1, 4)), ("test", slice(None))):
        parts, one = (opened[name][split].select(numbers) for name in ("parts", "whole"))
        np.testing.assert_array_equal(parts.images[:], one.images[:])
        np.testing.assert_array_equal(parts.images[:], opened["parts"][split].images[numbers])
        np.testing.assert_array_equal(parts.labels, one.labels)
        assert len(parts.images) == len(parts.labels)
    assert not np.array_equal(opened["whole"]["train"].images[order], opened["whole"]["train"].images[:])
