"""Split train from validation, scale pixels, and write and read the prepared arrays."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import numpy.typing as npt

from schemas.contract import DatasetContract
from schemas.errors import DataContractError
from schemas.layout import images_name, labels_name
from tasks.data.parquet import blocks, open_parquet, row_count, select_rows

_SCALED_AT_ONCE = 1024  # images; scaled they take four times the memory


def read_images(path: Path, contract: DatasetContract) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int32]]:
    """Images uint8 (N, pixels) and labels int32 (N,) of a Parquet that `tasks.validate` accepted."""
    rows = row_count(open_parquet(path))
    images = np.empty((rows, contract.pixels), dtype=np.uint8)
    labels = np.empty(rows, dtype=np.int32)
    # Some rows at a time: the columns and the matrix are never both whole in memory.
    for start, block in blocks(path, contract.columns):
        stop = start + block.shape[1]
        labels[start:stop], images[start:stop] = block[0], block[1:].T
    return images, labels


def read_labels(path: Path, contract: DatasetContract) -> npt.NDArray[np.int32]:
    """Labels alone, as `read_images` gives them."""
    return np.concatenate([block[0] for _, block in blocks(path, [contract.label_column])]).astype(np.int32)


def write_arrays(
    path: Path, splits: Mapping[str, npt.NDArray[np.int64]], folder: Path, contract: DatasetContract
) -> None:
    """Write ``<split>_images.npy`` and ``<split>_labels.npy`` of the rows of each split, ascending, of one Parquet.

    Memory does not grow with the rows: they are read and written some at a time.
    """
    with ExitStack() as stack:
        files = {}
        for split, rows in splits.items():
            kinds = {
                "images": (images_name(split), np.empty((0, contract.pixels), np.float32)),
                "labels": (labels_name(split), np.empty(0, np.int32)),
            }
            for kind, (name, like) in kinds.items():
                file = stack.enter_context((folder / name).open("wb"))
                header = np.lib.format.header_data_from_array_1_0(like)
                np.lib.format.write_array_header_1_0(file, {**header, "shape": (len(rows), *like.shape[1:])})
                files[split, kind] = file
        for start, block in blocks(path, contract.columns):
            for split, rows in splits.items():
                taken = select_rows(block, start, rows)
                images = np.ascontiguousarray(taken[1:].T)
                for first in range(0, len(images), _SCALED_AT_ONCE):
                    some = images[first : first + _SCALED_AT_ONCE]
                    files[split, "images"].write(scale_pixels(some, contract).data)
                files[split, "labels"].write(taken[0].astype(np.int32).data)


def scale_pixels(images: npt.NDArray[np.uint8], contract: DatasetContract) -> npt.NDArray[np.float32]:
    """uint8 (N, pixels) in pixel_min .. pixel_max to float32 (N, pixels) in [0, 1]; background becomes 0."""
    span = np.float32(contract.pixel_max - contract.pixel_min)
    scaled = images.astype(np.float32)
    scaled -= np.float32(contract.pixel_min)
    scaled /= span
    return scaled


def stratified_split(
    labels: npt.NDArray[np.int32], validation_size: int, seed: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Row numbers of train and of validation, each ascending; together all rows, none twice.

    Every class gives its share of the validation rows, rounded so that they add up (largest remainder), and one row at
    least. At most a fifth of the rows are held out, so that a small file still trains.

    Raises `DataContractError` when a class has a single row, which cannot be in both.
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
            f"Every class was expected to have two train rows at least, one of them for validation; classes "
            f"{lacking.tolist()} have one. Supply more rows of them."
        )
    # A row for each class that has none, from the one that gives most.
    for place in np.flatnonzero(quota == 0):
        quota[quota.argmax()] -= 1
        quota[place] += 1
    generator = np.random.default_rng(seed)
    held_out = np.sort(
        np.concatenate(
            [
                generator.permutation(np.flatnonzero(labels == label))[:rows]
                for label, rows in zip(classes, quota, strict=True)
            ]
        )
    )
    kept = np.ones(total, dtype=bool)
    kept[held_out] = False
    return np.flatnonzero(kept), held_out


# Images that are turned into bytes in one go; what lies between takes memory.
_CONVERTED_AT_ONCE = 512


def unscale_pixels(images: npt.NDArray[np.float32], contract: DatasetContract) -> npt.NDArray[np.uint8]:
    """float32 (N, pixels) in [0, 1], as `tasks.prepare` scaled them, to uint8 in pixel_min .. pixel_max again."""
    span = np.float32(contract.pixel_max - contract.pixel_min)
    return np.asarray(np.rint(images * span) + contract.pixel_min, dtype=np.uint8)


def unscaled_images(images: npt.NDArray[np.float32], contract: DatasetContract) -> Iterator[npt.NDArray[np.uint8]]:
    """`unscale_pixels`, an image uint8 (pixels,) at a time, in little memory however many there are."""
    for start in range(0, len(images), _CONVERTED_AT_ONCE):
        yield from unscale_pixels(images[start : start + _CONVERTED_AT_ONCE], contract)
