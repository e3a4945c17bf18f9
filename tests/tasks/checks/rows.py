"""Images and labels in memory, and ways to damage them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from schemas.contract import FASHION_MNIST, DatasetContract
from tasks.data.parquet import blocks

Bytes = npt.NDArray[np.uint8]
Rows = tuple[Bytes, Bytes]  # images (N, pixels), labels (N,)
Change = Callable[[Rows], Rows]


def read_rows(*files: Path) -> Rows:
    rows = np.concatenate([block for _, block in blocks(files, FASHION_MNIST.columns)], axis=1)  # (785, N)
    return np.ascontiguousarray(rows[1:].T), rows[0]


def write_rows(rows: Rows, path: Path, contract: DatasetContract = FASHION_MNIST) -> Path:
    columns = np.ascontiguousarray(np.column_stack([rows[1], rows[0]]).T)
    table = pa.table(dict(zip(contract.columns, columns, strict=True)))
    pq.write_table(table, path, use_dictionary=False, compression="none")
    return path


def on_images(change: Callable[[Bytes], npt.ArrayLike]) -> Change:
    """Change the images (N, 784)."""
    return lambda rows: (np.asarray(change(rows[0])).astype(np.uint8), rows[1])


def on_squares(change: Callable[[Bytes], Bytes]) -> Change:
    """Change the images (N, 28, 28)."""
    return on_images(lambda images: change(images.reshape(-1, 28, 28)).reshape(-1, 784))


def on_labels(change: Callable[[Bytes], npt.ArrayLike]) -> Change:
    return lambda rows: (rows[0], np.asarray(change(rows[1])).astype(np.uint8))


def in_rows(first: int, last: int, change: Change) -> Change:
    """Change rows ``first`` to ``last`` alone, as in a faulty shard."""

    def changed(rows: Rows) -> Rows:
        images, labels = rows[0].copy(), rows[1].copy()
        images[first:last], labels[first:last] = change((images[first:last], labels[first:last]))
        return images, labels

    return changed


transposed = on_squares(lambda image: image.transpose(0, 2, 1))
mirrored = on_squares(lambda image: image[:, :, ::-1])
inverted = on_images(lambda images: 255 - images)
blank = on_images(lambda images: images * 0)
shifted = on_labels(lambda labels: (labels + 1) % 10)
