"""Images that occur more than once: to the byte within a split, and all but to the byte across train and test.

An image is known by its sketch, which is made while the split is read once. Near duplicates are found by a lower bound
(Faloutsos, Ranganathan and Manolopoulos 1994): two sketches' distance is never more than that of the images, so that
only images with sketches near each other are read and compared. Only the train images with the nearest sketches are:
looking at all within reach found the same in the real data, in four times the time.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from schemas.contract import DatasetContract
from schemas.references import DuplicateReport
from tasks.blocks import Bytes, blocks, taken_of

SKETCHES_NAME = "sketches.npz"
TEST_IN_TRAIN_NAME = "test_in_train.npy"

_CELLS = 7  # a side, of at most as many cells as pixels
_FREQUENCIES = 3  # a side
_NEAREST = 4
_ROWS_AT_ONCE = 65_536
_PIXELS_COMPARED = 98
_FNV_PRIME = np.uint32(16_777_619)
_FNV_PRIME_64 = np.uint64(1_099_511_628_211)
_FNV_START = np.uint32(2_166_136_261)

_Number = TypeVar("_Number", np.uint16, np.int64)


@dataclass(frozen=True)
class Sketches:
    """Of each image a small one, its sums of pixels over a grid of cells, uint16 (N, cells); and its hash, uint32 (N,).

    Two images with the same sums and hash are taken for the same: of two that are not, one pair in 2**32 has the same
    hash alone.
    """

    sums: npt.NDArray[np.uint16]
    hashes: npt.NDArray[np.uint32]

    def save(self, path: Path) -> None:
        np.savez(path, sums=self.sums, hashes=self.hashes)

    @classmethod
    def load(cls, path: Path) -> "Sketches":
        with np.load(path) as stored:
            return cls(stored["sums"], stored["hashes"])

    def keys(self) -> npt.NDArray[np.uint64]:
        """One number an image, uint64 (N,), the same for the same image."""
        keys = self.hashes.astype(np.uint64)
        for sums in self.sums.T:
            keys ^= sums
            keys *= _FNV_PRIME_64
        return keys

    def without_contrast(self, contract: DatasetContract) -> npt.NDArray[np.bool_]:
        """bool (N,): whether all cells of an image have the same mean, as they have where all its pixels are equal."""
        cells, count = _cells(contract)
        size = np.bincount(cells, minlength=count).astype(np.uint32)
        return np.asarray((self.sums * size[0] == self.sums[:, :1] * size).all(axis=1))

    @classmethod
    def joined(cls, parts: "list[Sketches]") -> "Sketches":
        return cls(np.concatenate([part.sums for part in parts]), np.concatenate([part.hashes for part in parts]))


def sketch(pixels: Bytes, contract: DatasetContract) -> Sketches:
    """Sketches of images that lie in columns: uint8 (pixels, N)."""
    # One pixel of all images at a time: they lie beside each other, and each of these steps is one of the processor.
    cells, count = _cells(contract)
    sums = np.zeros((count, pixels.shape[1]), np.uint16)
    hashes = np.full(pixels.shape[1], _FNV_START, np.uint32)  # FNV-1a, of 32 bits
    for cell, values in zip(cells, pixels, strict=True):
        sums[cell] += values
        hashes ^= values
        hashes *= _FNV_PRIME
    return Sketches(sums.T.copy(), hashes)


def _cells(contract: DatasetContract) -> tuple[npt.NDArray[np.int64], int]:
    """The cell of each pixel, and how many there are."""
    down, across = (min(_CELLS, side) for side in (contract.height, contract.width))
    row = np.arange(contract.height) * down // contract.height
    column = np.arange(contract.width) * across // contract.width
    return (row[:, None] * across + column).ravel(), down * across


def repeated(sketches: Sketches) -> int:
    """How many rows have the image of an earlier row."""
    keys = np.sort(sketches.keys())  # of integers a few times faster than numpy.unique
    return int((keys[1:] == keys[:-1]).sum())


def find_in_train(
    train: Sketches, train_path: Path, test: Sketches, test_path: Path, contract: DatasetContract
) -> npt.NDArray[np.uint8]:
    """Of each test image, uint8 (N,): 2 if it stands in train to the byte, 1 if nearly so, 0 if not.

    Near is a root mean square difference of at most ``contract.near_duplicate`` of the pixel range, of about 100
    pixels and of the sums of all pixels over cells, from one of the train images whose sketches are nearest.
    """
    from scipy.spatial import cKDTree

    known, keys = np.sort(train.keys()), test.keys()
    found = np.where(known[np.searchsorted(known, keys).clip(max=len(known) - 1)] == keys, 2, 0).astype(np.uint8)
    looked_at = _looked_at(contract)
    allowed = contract.near_duplicate * (contract.pixel_max - contract.pixel_min)
    ours = np.flatnonzero(found == 0)
    if not len(ours):
        return found
    reach = allowed * np.sqrt(contract.pixels) * 1.001  # some room for rounding
    tree = cKDTree(
        np.concatenate([_coefficients(_scaled_cells(part, contract), contract) for part in _parts(train.sums)])
    )
    near_pairs = []
    for some in _parts(ours):
        cells = _scaled_cells(test.sums[some], contract)
        distances, nearest = tree.query(
            _coefficients(cells, contract), k=[*range(1, 1 + _NEAREST)], distance_upper_bound=reach, workers=-1
        )
        which, place = np.nonzero(np.isfinite(distances))
        rows = nearest[which, place]
        close = ((cells[which] - _scaled_cells(train.sums[rows], contract)) ** 2).sum(axis=1) <= reach**2
        near_pairs.append((some[which[close]], rows[close]))
    ours, theirs = (np.concatenate(side) for side in zip(*near_pairs, strict=True))
    if len(ours):
        ours_read, ours_at = np.unique(ours, return_inverse=True)
        theirs_read, theirs_at = np.unique(theirs, return_inverse=True)
        test_images = _images_at(test_path, ours_read, looked_at).astype(np.float32)
        train_images = _images_at(train_path, theirs_read, looked_at).astype(np.float32)
        for start in range(0, len(ours), 4096):
            part = slice(start, start + 4096)
            difference = test_images[ours_at[part]] - train_images[theirs_at[part]]
            near = (difference**2).mean(axis=1) <= allowed**2
            found[ours[part][near]] = 1
    return found


def _looked_at(contract: DatasetContract) -> list[str]:
    """Names of the pixels that near duplicates are compared by: all of a small image, of a large one every n-th of each
    row, from another column in the next row."""
    step = max(1, contract.pixels // _PIXELS_COMPARED)
    row, column = np.divmod(np.arange(contract.pixels), contract.width)
    return [contract.columns[1 + at] for at in np.flatnonzero((row + column) % step == 0)]


def _parts(rows: npt.NDArray[_Number]) -> list[npt.NDArray[_Number]]:
    """Some rows at a time: what is computed of them takes several times their memory."""
    return [rows[start : start + _ROWS_AT_ONCE] for start in range(0, len(rows), _ROWS_AT_ONCE)]


def _scaled_cells(sums: npt.NDArray[np.uint16], contract: DatasetContract) -> npt.NDArray[np.float32]:
    """Those of sketches, scaled so that the distance of two is never more than that of the images; (N, cells)."""
    cells, count = _cells(contract)
    scale = 1 / np.sqrt(np.bincount(cells, minlength=count))
    return sums.astype(np.float32) * scale.astype(np.float32)


def _coefficients(scaled_cells: npt.NDArray[np.float32], contract: DatasetContract) -> npt.NDArray[np.float32]:
    """Their lowest frequencies (discrete cosine transform), which keeps that true; (N, 9)."""
    from scipy.fft import dct

    # As a matrix: of all the others nothing is computed.
    sides = (min(_CELLS, side) for side in (contract.height, contract.width))
    down, across = (dct(np.eye(cells), axis=0, norm="ortho")[:_FREQUENCIES] for cells in sides)
    coefficients: npt.NDArray[np.float32] = scaled_cells @ np.kron(down, across).T.astype(np.float32)
    return coefficients


def _images_at(path: Path, rows: npt.NDArray[np.int64], pixels: list[str]) -> Bytes:
    """These pixels of the images in ``rows``, ascending, of a Parquet of the contract's form; uint8 (rows, pixels)."""
    return np.concatenate([taken_of(block, start, rows).T for start, block in blocks(path, pixels)])


def report(train: Sketches, test: Sketches, found: npt.NDArray[np.uint8]) -> DuplicateReport:
    """Counts, from the sketches of both splits and what `find_in_train` found."""
    return DuplicateReport(
        within_train=repeated(train),
        within_test=repeated(test),
        test_rows_in_train=int((found == 2).sum()),
        test_rows_near_train=int((found == 1).sum()),
    )
