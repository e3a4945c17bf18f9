"""Write the arrays that training reads, hold out the validation rows, and normalize pixels."""

import errno
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count, pairwise
from mmap import MADV_DONTNEED, mmap
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from schemas.contract import SPLITS, DatasetContract, PixelScale, Split
from schemas.errors import DataContractError
from schemas.layout import SCALE_NAME, VALIDATION_ROWS_NAME, images_name, labels_name
from tasks.data.parquet import BLOCK_ROWS, Bytes, blocks, open_parquet, row_count
from tasks.runtime.files import write_json

Rows = slice | npt.NDArray[np.integer[Any]] | list[int]


class Images:
    """Images of several arrays, such as memory-mapped files, read by a slice or by row numbers: uint8 (n, pixels).

    parts: uint8 (n, pixels) each. rows: the numbers of the images among all rows of the parts, int32 (N,).
    """

    def __init__(self, parts: Sequence[Bytes], rows: npt.NDArray[np.int32]) -> None:
        self._parts, self._rows = parts, rows
        self._starts = np.cumsum([0, *map(len, parts)])
        self.shape = (len(rows), parts[0].shape[1])

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, rows: Rows) -> Bytes:
        numbers = self._rows[rows]
        if len(self._parts) == 1:
            return np.asarray(self._parts[0]).take(numbers, axis=0)  # in half the time of an index
        images = np.empty((len(numbers), self.shape[1]), np.uint8)
        part_of = np.searchsorted(self._starts, numbers, side="right") - 1
        by_part = np.argsort(part_of, kind="stable")
        bounds = np.searchsorted(part_of[by_part], np.arange(len(self._parts) + 1))
        for part, start, first, after in zip(self._parts, self._starts, bounds, bounds[1:], strict=False):
            places = by_part[first:after]
            images[places] = np.asarray(part).take(numbers[places] - start, axis=0)
        return images

    def read(self, rows: npt.NDArray[np.int32]) -> Bytes:
        """Return the images of ascending ``rows``, as an index does, by reading adjacent rows instead of mapped pages.

        Linux reads a missing page of a mapped file with up to 4 MB around it: 21 times the bytes of a window.
        """
        numbers = self._rows[rows]
        images = np.empty((len(numbers), self.shape[1]), np.uint8)
        part_of = np.searchsorted(self._starts, numbers, side="right") - 1
        starts = np.flatnonzero((np.diff(numbers, prepend=-2) != 1) | (np.diff(part_of, prepend=-1) != 0))
        with ExitStack() as stack:
            files: dict[int, int] = {}
            for start, end in pairwise([*starts.tolist(), len(numbers)]):
                number = int(part_of[start])
                part, row = self._parts[number], int(numbers[start] - self._starts[number])
                if not isinstance(part, np.memmap):
                    images[start:end] = part[row : row + end - start]
                    continue
                if number not in files:
                    files[number] = stack.enter_context(Path(str(part.filename)).open("rb")).fileno()
                    os.posix_fadvise(files[number], 0, 0, os.POSIX_FADV_RANDOM)  # else 1.7 times the bytes are read
                missing = images[start:end].nbytes
                missing -= os.preadv(files[number], [images[start:end].data], part.offset + row * self.shape[1])
                if missing:
                    raise OSError(errno.EIO, f"{missing} bytes are missing", str(part.filename))
        return images

    def release(self) -> None:
        """Take mapped pages out of this process's memory. The system keeps them in its cache while there is room."""
        for part in self._parts:
            base: object = part.base
            if isinstance(base, mmap):
                base.madvise(MADV_DONTNEED)

    def blocks(self, rows: int = BLOCK_ROWS) -> Iterator[tuple[slice, Bytes]]:
        """Yield all images in their order, in arrays of at most ``rows``, and their places. Pages are released."""
        for start in range(0, len(self), rows):
            yield (block := slice(start, min(start + rows, len(self)))), self[block]
            self.release()

    def select(self, rows: Rows) -> "Images":
        """Return these rows as images of their own. Nothing is read."""
        return Images(self._parts, self._rows[rows])


@dataclass(frozen=True)
class PreparedSplit:
    """The images and labels of a split. Images stay bytes, because float32 takes four times the memory.

    images: uint8 (N, pixels). labels: int32 (N,). scale: the pixel values that become 0 and 1.
    """

    images: Images
    labels: npt.NDArray[np.int32]
    scale: PixelScale

    def scaled(self, rows: slice) -> npt.NDArray[np.float32]:
        """Return the images of ``rows``, normalized and flat: float32 (n, pixels) in [0, 1]."""
        return scale_pixels(self.images[rows], self.scale)

    def select(self, rows: Rows) -> "PreparedSplit":
        """Return these rows as a split. No image is read."""
        return PreparedSplit(self.images.select(rows), self.labels[rows], self.scale)


def open_split(folder: Path, split: str) -> PreparedSplit:
    """Open train, validation or test of a folder that `write_held_out` completed. The images are mapped, not read."""
    whole = _open_parts(folder, "test" if split == "test" else "train")
    if split == "test":
        return whole
    held_out = np.load(folder / VALIDATION_ROWS_NAME)
    return whole.select(
        held_out if split == "validation" else np.delete(np.arange(len(whole.labels), dtype=np.int32), held_out)
    )


def _open_parts(folder: Path, split: str) -> PreparedSplit:
    """Open all rows of the train or test files, in their order."""
    parts = list(open_parts(folder, split))
    images, labels = [part[0] for part in parts], np.concatenate([part[1] for part in parts])
    rows = np.arange(len(labels), dtype=np.int32)
    return PreparedSplit(Images(images, rows), labels, _read_scale(folder))


def _read_scale(folder: Path) -> PixelScale:
    return PixelScale(**json.loads((folder / SCALE_NAME).read_bytes()))


def open_parts(folder: Path, split: str) -> Iterator[tuple[Bytes, npt.NDArray[np.int32]]]:
    """Yield the images, uint8 (n, pixels) and mapped, and the labels, int32 (n,), of each part of train or test."""
    for part in count():
        images, labels = (folder / split / name(part) for name in (images_name, labels_name))
        if not (images.is_file() and labels.is_file()):  # a pipe would block
            return
        yield np.load(images, mmap_mode="r"), np.load(labels)


def scale_pixels(images: npt.NDArray[np.uint8], scale: PixelScale) -> npt.NDArray[np.float32]:
    """Normalize pixels, uint8 (N, pixels), to float32 (N, pixels) in [0, 1]. Background becomes 0."""
    scaled = images.astype(np.float32)
    scaled -= np.float32(scale.minimum)
    scaled /= np.float32(scale.maximum - scale.minimum)
    return scaled


def write_held_out(folder: Path, contract: DatasetContract, validation_size: int, seed: int) -> dict[str, int]:
    """Choose the rows of train that are held out. Write them, and the scale, beside the parts of train and test.

    Returns the number of rows of train, validation and test. Test may have no part.
    """
    labels = np.concatenate([part_labels for _, part_labels in open_parts(folder, "train")])
    train_rows, validation_rows = stratified_split(labels, validation_size, seed)
    np.save(folder / VALIDATION_ROWS_NAME, validation_rows)
    write_json(folder / SCALE_NAME, contract.scale._asdict())
    test_rows = sum(len(part_labels) for _, part_labels in open_parts(folder, "test"))
    return {"train_rows": len(train_rows), "validation_rows": len(validation_rows), "test_rows": test_rows}


def write_part(parquet: Path, folder: Path, part: int, contract: DatasetContract) -> None:
    """Write the images and labels of a Parquet in the order of its rows, in constant memory.

    Parts are numbered from 0.
    """
    rows = row_count(open_parquet(parquet))
    with (folder / images_name(part)).open("wb") as images, (folder / labels_name(part)).open("wb") as labels:
        for file, like in ((images, np.empty((0, contract.pixels), np.uint8)), (labels, np.empty(0, np.int32))):
            header = np.lib.format.header_data_from_array_1_0(like)
            np.lib.format.write_array_header_1_0(file, {**header, "shape": (rows, *like.shape[1:])})
        for _, block in blocks([parquet], contract.columns):
            images.write(np.ascontiguousarray(block[1:].T).data)
            labels.write(block[0].astype(np.int32).data)


def check_splits(folder: Path, contract: DatasetContract, rows: Mapping[str, int]) -> None:
    """Check the shapes, types, labels and scale of the arrays of splits with these numbers of rows.

    Raises ValueError for content that `write_part` and `write_held_out` do not write. No image is read.
    """
    held_out = np.load(folder / VALIDATION_ROWS_NAME)
    if held_out.dtype != np.int64 or (np.diff(held_out, prepend=-1) < 1).any():
        raise ValueError(f"expected ascending int64 validation rows, received {held_out.dtype}")
    if (scale := _read_scale(folder)) != contract.scale:
        raise ValueError(f"expected the scale {contract.scale}, received {scale}")
    train, test = (_checked_rows(folder, split, contract) for split in SPLITS)
    if len(held_out) and held_out[-1] >= train:
        raise ValueError(f"expected validation rows below {train}, received {held_out[-1]}")
    received = {"train": train - len(held_out), "validation": len(held_out), "test": test}
    for name, number in rows.items():
        if received[name] != number:
            raise ValueError(f"expected {number} rows of {name}, received {received[name]}")


def _checked_rows(folder: Path, split: Split, contract: DatasetContract) -> int:
    """Return the number of rows of train or test, each part of which is checked."""
    rows = 0
    for images, labels in open_parts(folder, split):
        _check_arrays(images, labels, contract)
        if not ((labels >= 0) & (labels < contract.classes)).all():
            raise ValueError(f"expected labels of {split} from 0 to {contract.classes - 1}")
        rows += len(labels)
    return rows


def check_arrays(folder: Path, contract: DatasetContract, rows: int) -> None:
    """Raise ValueError if the first part in ``folder`` is not what `write_part` writes for ``rows`` rows."""
    images, labels = np.load(folder / images_name(0), mmap_mode="r"), np.load(folder / labels_name(0))
    _check_arrays(images, labels, contract)
    if len(labels) != rows:
        raise ValueError(f"expected {rows} rows, received {len(labels)}")


def _check_arrays(images: Bytes, labels: npt.NDArray[np.int32], contract: DatasetContract) -> None:
    received = images.dtype, images.shape, labels.dtype, labels.shape
    if received != (np.dtype(np.uint8), (len(labels), contract.pixels), np.dtype(np.int32), (len(labels),)):
        raise ValueError(f"expected as many images as labels, received {received}")


def stratified_split(
    labels: npt.NDArray[np.int32], validation_size: int, seed: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the ascending row numbers of train and of validation. Every row is in exactly one of them.

    Validation has ``validation_size`` rows, but at most a fifth of all, so that a small file still trains. Its classes
    have the same shares as in all rows (largest remainder), and at least one row each.

    Raises `DataContractError` if a class has a single row, which cannot be in both.
    """
    total = len(labels)
    size = min(validation_size, total // 5)
    classes, counts = np.unique(labels, return_counts=True)
    exact = counts * size / total
    quota = np.floor(exact).astype(np.int64)
    for place in np.argsort(-(exact - quota), kind="stable")[: size - int(quota.sum())]:
        quota[place] += 1
    if len(lacking := classes[counts < 2]):
        raise DataContractError(
            "Expected at least two train rows of every class, one of them for validation. "
            f"Received a single row of each of the classes {lacking.tolist()}. Supply more rows of them."
        )
    # One row for each class without any, taken from the class with the most.
    for place in np.flatnonzero(quota == 0):
        quota[quota.argmax()] -= 1
        quota[place] += 1
    generator = np.random.default_rng(seed)
    held_out = np.zeros(total, dtype=bool)
    for label, rows in zip(classes, quota, strict=True):
        held_out[generator.permutation(np.flatnonzero(labels == label))[:rows]] = True
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)
