"""Store the predictions for each test row with a version. The report and `compare` read them without Keras.

Rows are matched by image digest, not by number: two versions may have been tested on the rows in another order.
"""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from schemas.contract import DatasetContract
from schemas.errors import StoredArtifactError
from tasks.data.parquet import page_bytes, row_count
from tasks.runtime.stored_file import open_stored, require_digest

_DIGEST_BYTES = 16
_LARGEST_FOOTER = 1_000_000
_OVERHEAD = 100_000  # of the pages of a column


@dataclass(frozen=True)
class StoredPredictions:
    """Predictions with one entry per test row.

    images: the `image_digest` of each row. labels: true classes, int32 (N,). probabilities: float32 (N, classes).
    """

    images: list[bytes]
    labels: npt.NDArray[np.int32]
    probabilities: npt.NDArray[np.float32]

    @property
    def predicted(self) -> npt.NDArray[np.int64]:
        """Return the class with the largest probability, (N,)."""
        return np.asarray(self.probabilities.argmax(axis=1))

    @property
    def confidence(self) -> npt.NDArray[np.float32]:
        """Return the largest probability, (N,)."""
        return np.asarray(self.probabilities.max(axis=1))

    @property
    def right(self) -> npt.NDArray[np.bool_]:
        """Return which rows are predicted correctly, bool (N,)."""
        return np.asarray(self.predicted == self.labels)


def image_digest(image: npt.NDArray[np.uint8]) -> bytes:
    """Return the 16-byte blake2b digest of one image, uint8 (pixels,)."""
    return hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=_DIGEST_BYTES).digest()


def write_predictions(path: Path, predictions: StoredPredictions, contract: DatasetContract) -> None:
    """Write a Parquet file with one row per test row.

    Columns: ``row`` int64 from 0; ``image``, its digest; ``true_label`` and the predicted ``label`` int32, as in the
    CSV; the probabilities ``p0``, ``p1``, ... float32, named by label as in the output of `predict`.
    """
    label_of = np.array(contract.class_labels, np.int32)
    columns: list[Any] = [
        np.arange(len(predictions.labels)),
        predictions.images,
        label_of[predictions.labels],
        label_of[predictions.predicted],
        *map(np.ascontiguousarray, predictions.probabilities.T),
    ]
    # A dictionary saves nothing: digests and probabilities do not repeat.
    pq.write_table(pa.table(columns, schema=_schema(contract)), path, compression="zstd", use_dictionary=False)


def _schema(contract: DatasetContract) -> pa.Schema:
    """Return the columns of `write_predictions`."""
    columns = {"row": pa.int64(), "image": pa.binary(_DIGEST_BYTES), "true_label": pa.int32(), "label": pa.int32()}
    return pa.schema({**columns, **{f"p{label}": pa.float32() for label in contract.class_labels}})


def read_predictions(path: Path, contract: DatasetContract, sha256: str | None = None) -> StoredPredictions:
    """Read the file that `write_predictions` wrote, which has the digest ``sha256`` if one is given.

    Raises `StoredArtifactError` for other columns, sizes or values. Columns and sizes are those of the footer and of
    the pages: a file that declares more than it contains is rejected before it is read.
    """
    with open_stored(path, sha256) as opened:
        if sha256 is not None:
            require_digest(path, opened, sha256)
        try:
            size = opened.seek(0, os.SEEK_END)
            opened.seek(0)
            file = pq.ParquetFile(
                opened, pre_buffer=False, thrift_string_size_limit=_LARGEST_FOOTER, thrift_container_size_limit=10_000
            )
            _require_sizes(file, opened, _schema(contract), size)
            table = file.read()
            known, labels = np.array(contract.class_labels), _columns(table, ["true_label"]).ravel()
            classes = np.minimum(np.searchsorted(known, labels), len(known) - 1).astype(np.int32)
            predictions = StoredPredictions(
                images=table["image"].to_pylist(),
                labels=classes,
                probabilities=_columns(table, [f"p{label}" for label in contract.class_labels]),
            )
            probabilities = predictions.probabilities
            if any(column.null_count for column in table.columns) or not np.isfinite(probabilities).all():
                raise ValueError("expected finite numbers")
            if not (known[classes] == labels).all():
                raise ValueError(f"expected labels of {contract.label_ranges}")
        except (ValueError, KeyError, TypeError, OSError, pa.ArrowException) as error:
            message = " ".join(str(error).split())[:300]
            raise StoredArtifactError(f"{path}: expected the predictions of a version ({message}).") from error
    return predictions


def _columns(table: pa.Table, names: list[str]) -> npt.NDArray[Any]:
    """Return columns of one type as (N, columns). Unlike `to_numpy` of a column this does not import pandas: 0.15 s."""
    array: npt.NDArray[Any] = table.select(names).combine_chunks().to_batches()[0].to_tensor().to_numpy()
    return array


def _require_sizes(file: pq.ParquetFile, content: BinaryIO, schema: pa.Schema, size: int) -> None:
    """Raise ValueError for other columns than those of ``schema``, and for more data than fits a file of ``size``."""
    received = file.schema_arrow
    if not received.equals(schema, check_metadata=False):
        raise ValueError(f"expected the columns {schema.names}, received {received.names[: 2 * len(schema)]}"[:280])
    rows = file.metadata.num_rows
    # Each row has a digest of 16 bytes, which no compression shortens much.
    if not 0 < rows <= size or rows != row_count(file):
        raise ValueError(f"it declares {rows} rows in {size} bytes")
    for group in range(file.num_row_groups):
        group_rows = file.metadata.row_group(group).num_rows
        for column in range(len(schema)):
            chunk, largest = file.metadata.row_group(group).column(column), 20 * group_rows + _OVERHEAD
            declared = max(chunk.total_compressed_size, chunk.total_uncompressed_size)
            if chunk.num_values == group_rows and declared <= largest:
                declared = page_bytes(file, content, group, column)
            if chunk.num_values != group_rows or declared > largest:
                raise ValueError(f"column {column} declares {declared} bytes for {group_rows} rows")


def shared_rows(one: StoredPredictions, other: StoredPredictions) -> npt.NDArray[np.int64]:
    """Return the rows of ``one`` and of ``other``, (2, n), that have the same image and label.

    The order is that of ``other``. An image that occurs twice in both gives two pairs.
    """
    keys, other_keys = (list(zip(each.images, each.labels.tolist(), strict=True)) for each in (one, other))
    unmatched: dict[tuple[bytes, int], list[int]] = {}
    for row in reversed(range(len(keys))):
        unmatched.setdefault(keys[row], []).append(row)
    pairs = [(unmatched[key].pop(), row) for row, key in enumerate(other_keys) if unmatched.get(key)]
    return np.array(pairs, dtype=np.int64).reshape(-1, 2).T
