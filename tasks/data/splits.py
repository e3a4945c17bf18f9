"""Split off the validation rows, scale pixels, and write the arrays that training reads."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import numpy.typing as npt

from schemas.contract import DatasetContract
from schemas.errors import DataContractError
from schemas.layout import images_name, labels_name
from tasks.data.parquet import blocks, open_parquet, row_count, select_rows

SCALE_ROWS = 1024  # images scaled or unscaled at once; float32 takes four times the memory of uint8


def write_splits(
    train: Path, test: Path, folder: Path, contract: DatasetContract, validation_size: int, seed: int
) -> dict[str, int]:
    """Write the arrays of train, validation and test from two Parquets, and return the number of rows of each."""
    labels = np.concatenate([block[0] for _, block in blocks(train, [contract.label_column])]).astype(np.int32)
    train_rows, validation_rows = stratified_split(labels, validation_size, seed)
    test_rows = np.arange(row_count(open_parquet(test)))
    write_arrays(train, {"train": train_rows, "validation": validation_rows}, folder, contract)
    write_arrays(test, {"test": test_rows}, folder, contract)
    return {"train_rows": len(train_rows), "validation_rows": len(validation_rows), "test_rows": len(test_rows)}


def write_arrays(
    path: Path, splits: Mapping[str, npt.NDArray[np.int64]], folder: Path, contract: DatasetContract
) -> None:
    """Write ``<split>_images.npy`` and ``<split>_labels.npy`` of each split of one Parquet, in constant memory.

    ``splits`` has the ascending row numbers of each split.
    """
    with ExitStack() as stack:
        files = {}
        for split, rows in splits.items():
            images, labels = np.empty((0, contract.pixels), np.float32), np.empty(0, np.int32)
            for name, like in ((images_name(split), images), (labels_name(split), labels)):
                files[name] = stack.enter_context((folder / name).open("wb"))
                header = np.lib.format.header_data_from_array_1_0(like)
                np.lib.format.write_array_header_1_0(files[name], {**header, "shape": (len(rows), *like.shape[1:])})
        for start, block in blocks(path, contract.columns):
            for split, rows in splits.items():
                selected = select_rows(block, start, rows)
                pixels = np.ascontiguousarray(selected[1:].T)
                for first in range(0, len(pixels), SCALE_ROWS):
                    scaled = scale_pixels(pixels[first : first + SCALE_ROWS], contract)
                    files[images_name(split)].write(scaled.data)
                files[labels_name(split)].write(selected[0].astype(np.int32).data)


def check_arrays(folder: Path, contract: DatasetContract, rows: Mapping[str, int]) -> None:
    """Check the shapes, types and labels of the arrays of splits with these numbers of rows.

    Raises ValueError for others than `write_arrays` writes. Memory is not needed for the images.
    """
    for split, count in rows.items():
        images, labels = (np.load(folder / name(split), mmap_mode="r") for name in (images_name, labels_name))
        received = images.shape, images.dtype, labels.shape, labels.dtype
        if received != ((count, contract.pixels), np.float32, (count,), np.int32):
            raise ValueError(f"expected {count} images of {split}, received {received}")
        if not ((labels >= 0) & (labels < contract.classes)).all():
            raise ValueError(f"expected labels of {split} from 0 to {contract.classes - 1}")


def scale_pixels(images: npt.NDArray[np.uint8], contract: DatasetContract) -> npt.NDArray[np.float32]:
    """Scale uint8 (N, pixels) in pixel_min..pixel_max to float32 (N, pixels) in [0, 1]. Background becomes 0."""
    scaled = images.astype(np.float32)
    scaled -= np.float32(contract.pixel_min)
    scaled /= np.float32(contract.pixel_max - contract.pixel_min)
    return scaled


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


def unscale_pixels(images: npt.NDArray[np.float32], contract: DatasetContract) -> npt.NDArray[np.uint8]:
    """Invert `scale_pixels`: float32 (N, pixels) in [0, 1] to uint8 in pixel_min..pixel_max."""
    span = np.float32(contract.pixel_max - contract.pixel_min)
    return np.asarray(np.rint(images * span) + contract.pixel_min, dtype=np.uint8)


def unscaled_images(images: npt.NDArray[np.float32], contract: DatasetContract) -> Iterator[npt.NDArray[np.uint8]]:
    """Yield each image of `unscale_pixels`, uint8 (pixels,), in constant memory."""
    for start in range(0, len(images), SCALE_ROWS):
        yield from unscale_pixels(images[start : start + SCALE_ROWS], contract)
