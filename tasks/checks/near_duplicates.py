"""Find images that occur more than once: exact copies within a split, exact and near copies of train images in test.

A sketch, computed while the split is read once, represents each image. The search for near duplicates uses a lower
bound (Faloutsos, Ranganathan and Manolopoulos 1994): the distance of two images' lowest frequencies is at most that of
the images, so only images with similar frequencies are read and compared. Each test image is compared with its nearest
train images only; all images within reach gave the same result on the real data, in four times the time.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from schemas.contract import DatasetContract
from schemas.references import DuplicateReport
from tasks.data.parquet import Bytes, blocks, select_rows

NEAREST = 4  # train images that a test image is compared with
# Batch sizes, which bound the memory.
TREE_ROWS = 65_536  # 8 MB, since a tree stores float64
QUERY_ROWS = 16_384
PAIRS_AT_ONCE = 4096
# Intermediate results stay in the processor's cache. With more images BLAS wakes threads, which then spin on the core
# that decodes the next rows.
SKETCHED_AT_ONCE = 1024
_CELLS = 7  # per side, at most one per pixel
_FREQUENCIES = 3  # per side
_COMPARED_PIXELS = 98


@dataclass(frozen=True)
class Sketches:
    """One `sketch` per image, 27 bytes each.

    numbers: uint64 (N,), a 32-bit hash combined with sums over cells; images with equal numbers count as copies.
    frequencies: int16 (N, frequencies), the lowest ones. blank: bool (N,), true if all pixels are equal.
    """

    numbers: npt.NDArray[np.uint64]
    frequencies: npt.NDArray[np.int16]
    blank: npt.NDArray[np.bool_]

    def save(self, path: Path) -> None:
        np.savez(path, **vars(self))

    @classmethod
    def load(cls, path: Path, rows: int, contract: DatasetContract) -> "Sketches":
        """Read what `save` wrote. Raises ValueError for other shapes or types."""
        with np.load(path) as stored:
            loaded = cls(**stored)
        expected = cls.allocate(rows, contract)
        if any(
            (values.shape, values.dtype) != (getattr(expected, name).shape, getattr(expected, name).dtype)
            for name, values in vars(loaded).items()
        ):
            raise ValueError(f"expected sketches of {rows} images in {path.name}")
        return loaded

    @classmethod
    def allocate(cls, rows: int, contract: DatasetContract) -> "Sketches":
        """Return uninitialized sketches for `fill`."""
        frequencies = math.prod(min(_CELLS, _FREQUENCIES, side) for side in (contract.height, contract.width))
        return cls(np.empty(rows, np.uint64), np.empty((rows, frequencies), np.int16), np.empty(rows, np.bool_))

    @classmethod
    def joined(cls, parts: Sequence["Sketches"]) -> "Sketches":
        """Return the sketches of the images of all ``parts``, in order."""
        columns = ([vars(part)[name] for part in parts] for name in cls.__dataclass_fields__)
        return cls(*map(np.concatenate, columns))

    def fill(self, start: int, part: "Sketches") -> None:
        """Copy ``part`` to the rows from ``start`` on."""
        for name, values in vars(part).items():
            getattr(self, name)[start : start + len(values)] = values


def sketch(pixels: Bytes, contract: DatasetContract) -> Sketches:
    """Return the sketches of images in columns: uint8 (pixels, N).

    The frequencies are those of the sums over cells (discrete cosine transform) in units of `_unit`. They are scaled so
    that the distance of two images' frequencies is at most that of the images, apart from rounding.
    """
    # One pixel of all images at a time: these values are contiguous, so each step is vectorized.
    cells, count = _cells(contract)
    sums = np.zeros((count, pixels.shape[1]), np.uint16)
    hashes = np.full(pixels.shape[1], 2_166_136_261, np.uint32)  # FNV-1a with 32 bits
    for cell, values in zip(cells, pixels, strict=True):
        sums[cell] += values
        hashes ^= values
        hashes *= np.uint32(16_777_619)
    numbers = hashes.astype(np.uint64)
    for cell_sums in sums:
        numbers ^= cell_sums
        numbers *= np.uint64(1_099_511_628_211)
    size = np.bincount(cells).astype(np.uint32)[:, None]
    matrix = _frequencies(contract) / (np.sqrt(size.T) * _unit(contract)).astype(np.float32)
    blank = np.empty(pixels.shape[1], np.bool_)
    frequencies = np.empty((pixels.shape[1], len(matrix)), np.int16)
    for start in range(0, pixels.shape[1], SKETCHED_AT_ONCE):
        rows = slice(start, start + SKETCHED_AT_ONCE)
        some = sums[:, rows]
        blank[rows] = (some * size[0] == some[:1] * size).all(axis=0)
        frequencies[rows] = np.rint(matrix @ some.astype(np.float32)).T
    # Cells with equal means are necessary for a blank image, not sufficient: the few candidates are compared in full.
    even = np.flatnonzero(blank)
    blank[even] = (pixels[:, even] == pixels[:1, even]).all(axis=0)
    return Sketches(numbers, frequencies, blank)


def _unit(contract: DatasetContract) -> float:
    """Return the unit of stored frequencies in pixel values: int16 covers all bytes, even beyond the contract."""
    return np.iinfo(np.uint8).max * math.sqrt(contract.pixels) / np.iinfo(np.int16).max


def _cells(contract: DatasetContract) -> tuple[npt.NDArray[np.int64], int]:
    """Return the cell of each pixel, and the number of cells."""
    down, across = (min(_CELLS, side) for side in (contract.height, contract.width))
    row = np.arange(contract.height) * down // contract.height
    column = np.arange(contract.width) * across // contract.width
    return (row[:, None] * across + column).ravel(), down * across


def _frequencies(contract: DatasetContract) -> npt.NDArray[np.float32]:
    """Return the transform to the lowest frequencies as a matrix; (frequencies, cells)."""
    from scipy.fft import dct

    sides = (min(_CELLS, side) for side in (contract.height, contract.width))
    down, across = (dct(np.eye(cells), axis=0, norm="ortho")[:_FREQUENCIES] for cells in sides)
    return np.kron(down, across).astype(np.float32)


def count_duplicates(sketches: Sketches) -> int:
    """Return the number of rows whose image occurs in an earlier row."""
    numbers = np.sort(sketches.numbers)  # a few times faster than numpy.unique
    return int((numbers[1:] == numbers[:-1]).sum())


def repeated_rows(sketches: Sketches) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the rows whose image occurs in an earlier row, and for each of them the row before it with that image."""
    order = np.argsort(sketches.numbers, kind="stable")
    numbers = sketches.numbers[order]
    equal = np.flatnonzero(numbers[1:] == numbers[:-1])
    return order[equal + 1], order[equal]


def copied_rows(train: Sketches, test: Sketches, in_train: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """Return the train rows of which test images are copies. in_train: see `find_test_images_in_train`."""
    return np.flatnonzero(np.isin(train.numbers, test.numbers[in_train == 2]))


def read_in_train(path: Path, rows: int) -> npt.NDArray[np.uint8]:
    """Return what `find_test_images_in_train` returned for so many test images. Raises ValueError for another file."""
    marks: npt.NDArray[np.uint8] = np.load(path)
    if marks.shape != (rows,) or marks.dtype != np.uint8:
        raise ValueError(f"expected {rows} numbers of uint8 in {path.name}")
    return marks


def find_test_images_in_train(
    train: Sketches, train_files: Sequence[Path], test: Sketches, test_files: Sequence[Path], contract: DatasetContract
) -> npt.NDArray[np.uint8]:
    """Return for each test image, uint8 (N,): 2 for an exact copy of a train image, 1 for a near duplicate, else 0.

    A near duplicate differs from one of the train images with the nearest frequencies by a root mean square of at most
    ``contract.near_duplicate`` of the pixel range, over about 100 pixels.
    """
    result = np.isin(test.numbers, train.numbers) * np.uint8(2)
    others = np.flatnonzero(result == 0)
    # Similar images after one another visit the same nodes of the tree, which then are in the processor's cache.
    others = others[np.argsort(test.frequencies[others, 0])]
    allowed = contract.near_duplicate * (contract.pixel_max - contract.pixel_min)
    # Both frequencies may be rounded by half a unit; one more for float32.
    reach = allowed * math.sqrt(contract.pixels) / _unit(contract) + _FREQUENCIES + 1
    distances, nearest = nearest_rows(train.frequencies, test.frequencies[others], reach)
    which, place = np.nonzero(np.isfinite(distances))
    if not len(which):
        return result
    pixels = _compared_pixels(contract)
    test_rows, test_at = np.unique(others[which], return_inverse=True)
    train_rows, train_at = np.unique(nearest[which, place], return_inverse=True)
    test_images = _read_images(test_files, test_rows, pixels)
    train_images = _read_images(train_files, train_rows, pixels)
    for start in range(0, len(which), PAIRS_AT_ONCE):
        some = slice(start, start + PAIRS_AT_ONCE)
        difference = test_images[test_at[some]].astype(np.float32) - train_images[train_at[some]]
        near = (difference**2).mean(axis=1) <= allowed**2
        result[test_rows[test_at[some][near]]] = 1
    return result


def nearest_rows(
    rows: npt.NDArray[np.int16], queries: npt.NDArray[np.int16], reach: float
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Return distances and row numbers of the nearest ``rows`` within ``reach`` of each query; (N, `NEAREST`) each.

    rows, queries: int16 (N, frequencies). A distance is infinite if there is no such row. Trees of `TREE_ROWS` rows are
    searched one after the other, so memory does not grow with the rows. The rows of a tree have similar lowest
    frequencies, so a query searches few trees: one in ten for 7 million images.
    """
    from scipy.spatial import cKDTree

    distances = np.full((len(queries), NEAREST), np.inf)
    places = np.zeros((len(queries), NEAREST), np.int64)
    by_lowest, lowest = np.argsort(rows[:, 0], kind="stable"), queries[:, 0].astype(np.float64)
    for start in range(0, len(rows), TREE_ROWS):
        in_tree = by_lowest[start : start + TREE_ROWS]
        low, high = rows[in_tree[[0, -1]], 0]
        near = np.flatnonzero((lowest >= low - reach) & (lowest <= high + reach))
        # balanced_tree=False builds in two thirds of the time. compact_nodes, scipy's default, queries in two thirds of
        # the time; leaves of 32 rows are slightly faster.
        tree = cKDTree(rows[in_tree], balanced_tree=False, leafsize=32)
        for first in range(0, len(near), QUERY_ROWS):
            some = near[first : first + QUERY_ROWS]
            far, at = tree.query(queries[some], k=[*range(1, 1 + NEAREST)], distance_upper_bound=reach, workers=-1)
            found = in_tree[np.minimum(at, len(in_tree) - 1)]  # scipy returns len(in_tree) for a missing row
            both, numbers = np.hstack([distances[some], far]), np.hstack([places[some], found])
            best = np.argsort(both, axis=1, kind="stable")[:, :NEAREST]
            distances[some] = np.take_along_axis(both, best, axis=1)
            places[some] = np.take_along_axis(numbers, best, axis=1)
    return distances, places


def _compared_pixels(contract: DatasetContract) -> list[str]:
    """Return the columns that near duplicates are compared by: all of a small image, every n-th of a large one.

    The first column differs from row to row.
    """
    step = max(1, contract.pixels // _COMPARED_PIXELS)
    row, column = np.divmod(np.arange(contract.pixels), contract.width)
    return [contract.columns[1 + at] for at in np.flatnonzero((row + column) % step == 0)]


def _read_images(files: Sequence[Path], rows: npt.NDArray[np.int64], pixels: list[str]) -> Bytes:
    """Return the columns ``pixels`` of ascending ``rows`` of a split; uint8 (rows, pixels)."""
    parts = (select_rows(block, start, rows).T for start, block in blocks(files, pixels))
    return np.concatenate([np.ascontiguousarray(part) for part in parts])


def duplicate_report(train: Sketches, test: Sketches, in_train: npt.NDArray[np.uint8]) -> DuplicateReport:
    """Return the counts. in_train: the result of `find_test_images_in_train`."""
    return DuplicateReport(
        within_train=count_duplicates(train),
        within_test=count_duplicates(test),
        test_rows_in_train=int((in_train == 2).sum()),
        test_rows_near_train=int((in_train == 1).sum()),
    )
