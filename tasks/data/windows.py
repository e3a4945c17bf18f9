"""Divide an epoch into windows of rows, and read them ahead: training needs memory for two windows.

Blocks of rows are permuted, their rows are cut into windows, and each window is permuted. Xu et al., "In-Database
Machine Learning with CorgiPile: Stochastic Gradient Descent without Full Data Shuffle", SIGMOD 2022, show that this
converges like a permutation of all rows if a window has enough blocks. The shuffle buffers of tf.data and WebDataset
permute within windows only.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from schemas.config import TrainingConfig
from tasks.data.parquet import read_ahead
from tasks.data.splits import Images, PreparedSplit
from tasks.runtime.memory import budget_bytes

RowNumbers = npt.NDArray[np.int32]

# Adjacent rows, 0.2 MB of images. A window of a tenth of the published train split has 21 blocks.
_BLOCK_ROWS = 256


def window_count(rows: int, pixels: int, budget: int) -> int:
    """Return the number of windows of an epoch of ``rows`` images that fits into ``budget`` bytes.

    All images are one window if they fit. Otherwise two windows are in memory, the current and the next one.
    """
    if rows * pixels <= budget:
        return 1
    return -(-rows // max(_BLOCK_ROWS, budget // (2 * pixels)))


def effective_settings(config: TrainingConfig, rows: int, pixels: int) -> dict[str, Any]:
    """Return the settings that decide the result of a training on ``rows`` images, as JSON.

    The memory budget has an effect through the number of windows only. Machines with different budgets share an output
    if each holds all images.
    """
    windows = window_count(rows, pixels, budget_bytes(config.memory_budget))
    return {**config.model_dump(exclude={"memory_budget"}), "windows": windows}


def epoch_order(rows: int, seed: int, epoch: int, windows: int = 1) -> list[RowNumbers]:
    """Return the order of ``rows`` rows in an epoch, in windows whose sizes differ by at most one row.

    Seed and epoch are all that training needs to resume at that epoch. One window is a permutation of all rows.
    """
    generator = np.random.default_rng([seed, epoch])
    if windows == 1:
        return [generator.permutation(rows).astype(np.int32)]
    blocks = generator.permutation(-(-rows // _BLOCK_ROWS)).astype(np.int32)
    order = (blocks[:, None] * np.int32(_BLOCK_ROWS) + np.arange(_BLOCK_ROWS, dtype=np.int32)).ravel()
    return [generator.permutation(window) for window in np.array_split(order[order < rows], windows)]


def read_windows(split: PreparedSplit, order: Sequence[RowNumbers]) -> Iterator[tuple[PreparedSplit, RowNumbers]]:
    """Yield each window of an order as a split, and the order of its rows. A thread reads the next one meanwhile.

    A single window is the split itself, whose images stay mapped.
    """
    if len(order) == 1:
        yield split, order[0]
        return
    yield from read_ahead(_read_window(split, rows) for rows in order)


def _read_window(split: PreparedSplit, rows: RowNumbers) -> tuple[PreparedSplit, RowNumbers]:
    stored = np.sort(rows)  # in the order of the files, for the disk's sake
    images, labels = split.images.read(stored), split.labels[stored]
    in_window = PreparedSplit(Images([images], np.arange(len(rows), dtype=np.int32)), labels, split.scale)
    return in_window, np.searchsorted(stored, rows).astype(np.int32)
