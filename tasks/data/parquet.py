"""Splits as Parquet, one column a pixel: written and read some rows at a time, each time as one array of bytes."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

# A row group, and the most rows that are read at once. The writer keeps 0.6 MB of each group until the end, 40 MB for a
# million rows; of larger groups more than that would be held at once.
BLOCK_ROWS = 16_384

Bytes = npt.NDArray[np.uint8]


def open_parquet(path: Path) -> pq.ParquetFile:
    """The Parquet at ``path``, of which pyarrow reads nothing but what it is asked for.

    When it reads ahead, columns that do not lie side by side are each handed to another thread, which takes three times
    as long as to read them one after the other.
    """
    return pq.ParquetFile(path, pre_buffer=False)


def batches(file: pq.ParquetFile, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    """The rows of a Parquet, at most `BLOCK_ROWS` at a time, however its writer grouped them.

    Row groups are read whole where they are as small as ours: column after column. `pyarrow.parquet.ParquetFile.
    iter_batches` reads all columns side by side, with buffers for each, which takes more than twice the memory.
    """
    names = None if columns is None else list(columns)
    for group in range(file.num_row_groups):
        if file.metadata.row_group(group).num_rows <= BLOCK_ROWS:
            yield from file.read_row_group(group, names).to_batches()
        else:
            yield from file.iter_batches(BLOCK_ROWS, row_groups=[group], columns=names)


def row_count(file: pq.ParquetFile) -> int:
    """Rows of the groups that `batches` reads, not the footer's own sum of them."""
    return sum(file.metadata.row_group(group).num_rows for group in range(file.num_row_groups))


def blocks(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, Bytes]]:
    """The rows of a Parquet, some at a time: the number of the first, and uint8 (columns, rows)."""
    start = 0
    for batch in batches(open_parquet(path), columns):
        block = column_bytes(batch)
        if block is None:
            raise TypeError(f"{path} was expected to hold uint8 without nulls.")
        yield start, block
        start += batch.num_rows


def select_rows(block: Bytes, start: int, rows: npt.NDArray[np.int64]) -> Bytes:
    """Of ``rows``, ascending, those in a block (columns, N) whose first is row ``start``; uint8 (columns, n)."""
    first, after = np.searchsorted(rows, [start, start + block.shape[1]])
    return block[:, rows[first:after] - start]


def column_bytes(batch: pa.RecordBatch) -> Bytes | None:
    """The values of a batch, uint8 (columns, rows), or None where a column has another type, or nulls."""
    if not batch.num_rows or any(kind != pa.uint8() for kind in batch.schema.types):
        return None
    if any(column.null_count for column in batch.columns):
        return None
    block: Bytes = batch.to_tensor(row_major=False).to_numpy().T
    return block
