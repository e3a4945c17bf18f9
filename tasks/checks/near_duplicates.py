"""Images that occur more than once: to the byte within a split, and all but to the byte across train and test.

An image is known by its sketch, which is made while the split is read once. Near duplicates are found by a lower bound
(Faloutsos, Ranganathan and Manolopoulos 1994): the distance of two images' lowest frequencies is never more than that
of the images, so that only images that are near by them are read and compared. Only the nearest train images are:
looking at all within reach found the same in the real data, in four times the time.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from schemas.contract import DatasetContract
from schemas.references import DuplicateReport
from tasks.data.parquet import Bytes, blocks, select_rows

_CELLS = 7  # a side, of at most as many cells as pixels
_FREQUENCIES = 3  # a side
_NEAREST = 4
_IN_A_TREE = 65_536  # 8 MB, since a tree holds float64
_ASKED_AT_ONCE = 16_384
_COMPARED_AT_ONCE = 4096
_PIXELS_COMPARED = 98
# What lies between stays in the processor's cache; and for more rows BLAS would wake threads that go on to spin for a
# while, on the core that decodes the next rows.
_SUMMED_UP_AT_ONCE = 1024
_FNV_PRIME = np.uint32(16_777_619)
_FNV_PRIME_64 = np.uint64(1_099_511_628_211)
_FNV_START = np.uint32(2_166_136_261)


@dataclass(frozen=True)
class Sketches:
    """Of each image a number, uint64 (N,), and its lowest frequencies, int16 (N, frequencies); see `sketch`.

    Two images with the same number are taken for the same: it is made of a hash of 32 bits and of sums of pixels over
    cells. blank: bool (N,), whether all pixels of an image are equal. 27 bytes an image, since they are kept of all.
    """

    numbers: npt.NDArray[np.uint64]
    frequencies: npt.NDArray[np.int16]
    blank: npt.NDArray[np.bool_]

    def save(self, path: Path) -> None:
        np.savez(path, **vars(self))

    @classmethod
    def load(cls, path: Path) -> "Sketches":
        with np.load(path) as stored:
            return cls(**stored)

    @classmethod
    def allocate(cls, rows: int, contract: DatasetContract) -> "Sketches":
        """To be filled with `fill`."""
        frequencies = len(_frequencies(contract))
        return cls(np.empty(rows, np.uint64), np.empty((rows, frequencies), np.int16), np.empty(rows, np.bool_))

    def fill(self, start: int, part: "Sketches") -> None:
        """Take over the sketches of some rows, of which ``start`` is the first."""
        for name, values in vars(part).items():
            getattr(self, name)[start : start + len(values)] = values


def sketch(pixels: Bytes, contract: DatasetContract) -> Sketches:
    """Sketches of images that lie in columns: uint8 (pixels, N).

    Their frequencies are those of the images' sums over cells (discrete cosine transform), scaled so that the distance
    of two is never more than that of the images, in units of `_unit`; but for rounding to whole units.
    """
    # One pixel of all images at a time: they lie beside each other, and each of these steps is one of the processor.
    cells, count = _cells(contract)
    sums = np.zeros((count, pixels.shape[1]), np.uint16)
    hashes = np.full(pixels.shape[1], _FNV_START, np.uint32)  # FNV-1a, of 32 bits
    for cell, values in zip(cells, pixels, strict=True):
        sums[cell] += values
        hashes ^= values
        hashes *= _FNV_PRIME
    numbers = hashes.astype(np.uint64)
    for of_cell in sums:
        numbers ^= of_cell
        numbers *= _FNV_PRIME_64
    size = np.bincount(cells).astype(np.uint32)[:, None]
    frequencies = _frequencies(contract) / (np.sqrt(size.T) * _unit(contract)).astype(np.float32)
    blank = np.empty(pixels.shape[1], np.bool_)
    kept = np.empty((pixels.shape[1], len(frequencies)), np.int16)
    for start in range(0, pixels.shape[1], _SUMMED_UP_AT_ONCE):
        rows = slice(start, start + _SUMMED_UP_AT_ONCE)
        some = sums[:, rows]
        blank[rows] = (some * size[0] == some[:1] * size).all(axis=0)
        kept[rows] = np.rint(frequencies @ some.astype(np.float32)).T
    # Equal pixels give cells of one mean; the few images that have such are looked at whole.
    even = np.flatnonzero(blank)
    blank[even] = (pixels[:, even] == pixels[:1, even]).all(axis=0)
    return Sketches(numbers, kept, blank)


def _unit(contract: DatasetContract) -> float:
    """Of frequencies as they are kept, in pixel values: what bytes can be, past the contract's range too, just fits."""
    return np.iinfo(np.uint8).max * math.sqrt(contract.pixels) / np.iinfo(np.int16).max


def _cells(contract: DatasetContract) -> tuple[npt.NDArray[np.int64], int]:
    """The cell of each pixel, and how many there are."""
    down, across = (min(_CELLS, side) for side in (contract.height, contract.width))
    row = np.arange(contract.height) * down // contract.height
    column = np.arange(contract.width) * across // contract.width
    return (row[:, None] * across + column).ravel(), down * across


def _frequencies(contract: DatasetContract) -> npt.NDArray[np.float32]:
    """The transform as a matrix, of all but the lowest frequencies nothing is computed; (frequencies, cells)."""
    from scipy.fft import dct

    sides = (min(_CELLS, side) for side in (contract.height, contract.width))
    down, across = (dct(np.eye(cells), axis=0, norm="ortho")[:_FREQUENCIES] for cells in sides)
    return np.kron(down, across).astype(np.float32)


def count_duplicates(sketches: Sketches) -> int:
    """How many rows have the image of an earlier row."""
    numbers = np.sort(sketches.numbers)  # of integers a few times faster than numpy.unique
    return int((numbers[1:] == numbers[:-1]).sum())


def find_test_images_in_train(
    train: Sketches, train_path: Path, test: Sketches, test_path: Path, contract: DatasetContract
) -> npt.NDArray[np.uint8]:
    """Of each test image, uint8 (N,): 2 if it stands in train to the byte, 1 if nearly so, 0 if not.

    Near is a root mean square difference of at most ``contract.near_duplicate`` of the pixel range, of about 100
    pixels, from one of the train images whose frequencies are nearest.
    """
    same = _known(test.numbers, train.numbers)
    found = np.where(same, 2, 0).astype(np.uint8)
    if not len(others := np.flatnonzero(~same)):
        return found
    # Images that are alike one after the other: what the tree is asked for them lies in the processor's cache.
    others = others[np.argsort(test.frequencies[others, 0])]
    allowed = contract.near_duplicate * (contract.pixel_max - contract.pixel_min)
    # Each of the frequencies of both may have been rounded by half a unit; one more for float32 before that.
    reach = allowed * math.sqrt(contract.pixels) / _unit(contract) + _FREQUENCIES + 1
    distances, nearest = _nearest(train.frequencies, test.frequencies[others], reach)
    which, place = np.nonzero(np.isfinite(distances))
    if not len(which):
        return found
    pixels = _looked_at(contract)
    ours, ours_at = np.unique(others[which], return_inverse=True)
    theirs, theirs_at = np.unique(nearest[which, place], return_inverse=True)
    test_images, train_images = _images_at(test_path, ours, pixels), _images_at(train_path, theirs, pixels)
    for start in range(0, len(which), _COMPARED_AT_ONCE):
        some = slice(start, start + _COMPARED_AT_ONCE)
        difference = test_images[ours_at[some]].astype(np.float32) - train_images[theirs_at[some]]
        near = (difference**2).mean(axis=1) <= allowed**2
        found[ours[ours_at[some][near]]] = 1
    return found


def _known(numbers: npt.NDArray[np.uint64], among: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
    """Of each number, (N,), whether it is one of ``among``."""
    ordered = np.sort(among)
    return np.asarray(ordered[np.searchsorted(ordered, numbers).clip(max=len(ordered) - 1)] == numbers)


def _nearest(
    known: npt.NDArray[np.int16], asked: npt.NDArray[np.int16], reach: float
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Of each row of ``asked``, (N, frequencies), the nearest rows of ``known`` that are within ``reach``.

    Distances, infinite where there is none, and row numbers; (N, `_NEAREST`) each. Of many rows one tree after the
    other is asked, so that their memory does not grow.
    """
    from scipy.spatial import cKDTree

    distances = np.full((len(asked), _NEAREST), np.inf)
    places = np.zeros((len(asked), _NEAREST), np.int64)
    for start in range(0, len(known), _IN_A_TREE):
        # Cut in the middle of the space and not of the rows, it is built in two thirds of the time. With nodes no
        # larger than what they hold, scipy's default, it answers in two thirds; with leaves of 32 rows a little sooner.
        tree = cKDTree(known[start : start + _IN_A_TREE], balanced_tree=False, leafsize=32)
        for first in range(0, len(asked), _ASKED_AT_ONCE):
            some = slice(first, first + _ASKED_AT_ONCE)
            there, at = tree.query(asked[some], k=[*range(1, 1 + _NEAREST)], distance_upper_bound=reach, workers=-1)
            both, rows = np.hstack([distances[some], there]), np.hstack([places[some], at + start])
            best = np.argsort(both, axis=1, kind="stable")[:, :_NEAREST]
            distances[some] = np.take_along_axis(both, best, axis=1)
            places[some] = np.take_along_axis(rows, best, axis=1)
    return distances, places


def _looked_at(contract: DatasetContract) -> list[str]:
    """Names of the pixels that near duplicates are compared by: all of a small image, of a large one every n-th of each
    row, from another column in the next row."""
    step = max(1, contract.pixels // _PIXELS_COMPARED)
    row, column = np.divmod(np.arange(contract.pixels), contract.width)
    return [contract.columns[1 + at] for at in np.flatnonzero((row + column) % step == 0)]


def _images_at(path: Path, rows: npt.NDArray[np.int64], pixels: list[str]) -> Bytes:
    """These pixels of the images in ``rows``, ascending, of a Parquet of the contract's form; uint8 (rows, pixels)."""
    images = np.empty((len(rows), len(pixels)), np.uint8)
    filled = 0
    for start, block in blocks(path, pixels):
        some = select_rows(block, start, rows)
        images[filled : filled + some.shape[1]] = some.T
        filled += some.shape[1]
    return images


def duplicate_report(train: Sketches, test: Sketches, found: npt.NDArray[np.uint8]) -> DuplicateReport:
    """Counts, from the sketches of both splits and what `find_test_images_in_train` found."""
    return DuplicateReport(
        within_train=count_duplicates(train),
        within_test=count_duplicates(test),
        test_rows_in_train=int((found == 2).sum()),
        test_rows_near_train=int((found == 1).sum()),
    )
