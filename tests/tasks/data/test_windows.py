"""Orders of an epoch in windows, and reading them ahead."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.config import TrainingConfig
from schemas.contract import FASHION_MNIST, PixelScale
from tasks.data.splits import Images, PreparedSplit
from tasks.data.windows import effective_settings, epoch_order, read_windows, window_count
from tests.memory import peak_bytes

PIXELS = FASHION_MNIST.pixels


@pytest.fixture
def mapped(tmp_path: Path) -> PreparedSplit:
    """6,300 images of 50 pixels that contain their row, in three mapped files. Every tenth row is held out."""
    images = np.arange(7_000, dtype="<u2")[:, None].view(np.uint8).repeat(25, axis=1)
    parts = []
    for part, rows in enumerate((slice(0, 10), slice(10, 4_000), slice(4_000, None))):
        np.save(tmp_path / f"{part}.npy", images[rows])
        parts.append(np.load(tmp_path / f"{part}.npy", mmap_mode="r"))
    rows = np.flatnonzero(np.arange(7_000) % 10).astype(np.int32)
    return PreparedSplit(Images(parts, rows), rows % 7, PixelScale(0, 255))


def test_one_window_is_the_permutation_of_all_rows() -> None:
    (order,) = epoch_order(1_000, seed=7, epoch=3)
    assert order.dtype == np.int32
    np.testing.assert_array_equal(order, np.random.default_rng([7, 3]).permutation(1_000))


@given(rows=st.integers(1, 20_000), windows=st.integers(2, 30), epoch=st.integers(0, 3))
def test_windows_have_every_row_once_in_whole_blocks(rows: int, windows: int, epoch: int) -> None:
    order = epoch_order(rows, 7, epoch, windows)
    assert [len(window) for window in order] == [len(window) for window in np.array_split(np.arange(rows), windows)]
    np.testing.assert_array_equal(np.sort(np.concatenate(order)), np.arange(rows))
    for window in order:
        # The first and the last block may continue in the next window, and the last block of all may be short.
        assert len(np.unique(window // 256)) <= len(window) // 256 + 3


def test_blocks_and_rows_change_places_with_seed_and_epoch() -> None:
    orders = [np.concatenate(epoch_order(10_000, seed, epoch, 5)) for seed in (1, 2) for epoch in (0, 1)]
    assert len({order.tobytes() for order in orders}) == 4
    assert np.array_equal(orders[0], np.concatenate(epoch_order(10_000, 1, 0, 5)))
    first = [np.sort(order[:2_000]) for order in orders]
    assert len({rows.tobytes() for rows in first}) == 4  # other blocks, not only another order in them
    assert (np.diff(orders[0]) == 1).mean() < 0.01


@pytest.mark.parametrize(
    ("rows", "budget", "expected"),
    [
        pytest.param(1_000, 1_000 * PIXELS, 1, id="all rows"),
        pytest.param(1_001, 1_000 * PIXELS, 3, id="two windows of 500 rows at a time"),
        pytest.param(1_000, 0, 4, id="at least 256 rows"),
    ],
)
def test_two_windows_fit_into_the_budget(rows: int, budget: int, expected: int) -> None:
    assert window_count(rows, PIXELS, budget) == expected


def test_a_budget_changes_the_result_through_its_windows_only() -> None:
    def settings(budget: str, rows: int = 55_000) -> object:
        return effective_settings(TrainingConfig(memory_budget=budget), rows, PIXELS)

    assert settings("44MB") == settings("2GB") == settings("6%") == settings("99%")
    assert settings("20MB") == settings("20.001MB") != settings("44MB")
    assert settings("44MB") != settings("44MB", rows=60_000)


@pytest.mark.parametrize("windows", [1, 4])
def test_windows_have_the_images_and_labels_of_their_rows(windows: int, mapped: PreparedSplit) -> None:
    order = epoch_order(6_300, 7, 0, windows)
    for expected, (window, rows) in zip(order, read_windows(mapped, order), strict=True):
        np.testing.assert_array_equal(window.images[rows], mapped.images[expected])
        np.testing.assert_array_equal(window.labels[rows], mapped.labels[expected])
    assert len(np.unique(mapped.images[:], axis=0)) == 6_300


def test_at_most_two_windows_are_in_memory(mapped: PreparedSplit) -> None:
    def read(windows: int) -> None:
        for window, rows in read_windows(mapped, epoch_order(6_300, 7, 0, windows)):
            assert len(window.images) == len(rows)

    all_images = 6_300 * 50
    peak = peak_bytes(partial(read, 21), enough=0.5 * all_images)
    assert peak < 0.6 * all_images
