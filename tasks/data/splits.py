"""Split off the validation rows, write the arrays that training reads, and normalize their pixels."""

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from schemas.contract import DatasetContract, PixelScale
from schemas.errors import DataContractError
from schemas.layout import SCALE_NAME, images_name, labels_name
from tasks.data.parquet import blocks, open_parquet, row_count, select_rows
from tasks.runtime.files import write_json


@dataclass(frozen=True)
class PreparedSplit:
    """The images and labels of a split. Images stay bytes, because float32 takes four times the memory.

    images: uint8 (N, pixels). labels: int32 (N,). scale: the pixel values that become 0 and 1.
    """

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int32]
    scale: PixelScale

    def scaled(self, rows: slice) -> npt.NDArray[np.float32]:
        """Return the images of ``rows``, normalized and flat: float32 (n, pixels) in [0, 1]."""
        return scale_pixels(self.images[rows], self.scale)


def open_split(folder: Path, split: str) -> PreparedSplit:
    """Open a split of a folder that `write_splits` wrote. The images are mapped, not read."""
    return PreparedSplit(
        np.load(folder / images_name(split), mmap_mode="r"),
        np.load(folder / labels_name(split)),
        PixelScale(**json.loads((folder / SCALE_NAME).read_bytes())),
    )


def scale_pixels(images: npt.NDArray[np.uint8], scale: PixelScale) -> npt.NDArray[np.float32]:
    """Normalize pixels, uint8 (N, pixels), to float32 (N, pixels) in [0, 1]. Background becomes 0."""
    scaled = images.astype(np.float32)
    scaled -= np.float32(scale.minimum)
    scaled /= np.float32(scale.maximum - scale.minimum)
    return scaled


def write_splits(
    train: Sequence[Path],
    test: Sequence[Path] | None,
    folder: Path,
    contract: DatasetContract,
    validation_size: int,
    seed: int,
) -> dict[str, int]:
    """Write the arrays of train, validation and test from the Parquet files of both splits; return the rows of each.

    Without ``test`` no test arrays are written.
    """
    labels = np.concatenate([block[0] for _, block in blocks(train, [contract.label_column])]).astype(np.int32)
    train_rows, validation_rows = stratified_split(labels, validation_size, seed)
    write_arrays(train, {"train": train_rows, "validation": validation_rows}, folder, contract)
    test_rows = np.arange(0 if test is None else sum(row_count(open_parquet(path)) for path in test))
    if test is not None:
        write_arrays(test, {"test": test_rows}, folder, contract)
    write_json(folder / SCALE_NAME, contract.scale._asdict())
    return {"train_rows": len(train_rows), "validation_rows": len(validation_rows), "test_rows": len(test_rows)}


def write_arrays(
    files: Sequence[Path], splits: Mapping[str, npt.NDArray[np.int64]], folder: Path, contract: DatasetContract
) -> None:
    """Write ``<split>_images.npy`` and ``<split>_labels.npy`` of parts of one split, in constant memory.

    ``splits`` has the ascending row numbers of each split.
    """
    with ExitStack() as stack:
        opened = {}
        for split, rows in splits.items():
            images, labels = np.empty((0, contract.pixels), np.uint8), np.empty(0, np.int32)
            for name, like in ((images_name(split), images), (labels_name(split), labels)):
                opened[name] = stack.enter_context((folder / name).open("wb"))
                header = np.lib.format.header_data_from_array_1_0(like)
                np.lib.format.write_array_header_1_0(opened[name], {**header, "shape": (len(rows), *like.shape[1:])})
        for start, block in blocks(files, contract.columns):
            for split, rows in splits.items():
                selected = select_rows(block, start, rows)
                opened[images_name(split)].write(np.ascontiguousarray(selected[1:].T).data)
                opened[labels_name(split)].write(selected[0].astype(np.int32).data)


def check_arrays(folder: Path, contract: DatasetContract, rows: Mapping[str, int]) -> None:
    """Check the shapes, types, labels and scale of the arrays of splits with these numbers of rows.

    Raises ValueError for others than `write_arrays` writes. Memory is not needed for the images.
    """
    for name, count in rows.items():
        split = open_split(folder, name)
        received = split.images.shape, split.images.dtype, split.labels.shape, split.labels.dtype, split.scale
        if received != ((count, contract.pixels), np.dtype(np.uint8), (count,), np.dtype(np.int32), contract.scale):
            raise ValueError(f"expected {count} images of {name}, received {received}")
        if not ((split.labels >= 0) & (split.labels < contract.classes)).all():
            raise ValueError(f"expected labels of {name} from 0 to {contract.classes - 1}")


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
