"""Read splits from Parquet, one column per pixel, as blocks of bytes."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

# Rows of a row group, and most rows that are read at once. The writer keeps 0.6 MB per group until the end, 40 MB for a
# million rows. Larger groups would need more memory than that at once.
BLOCK_ROWS = 16_384

Bytes = npt.NDArray[np.uint8]


def open_parquet(path: Path) -> pq.ParquetFile:
    """Open a Parquet without read-ahead, which takes three times as long for columns that are not adjacent."""
    return pq.ParquetFile(path, pre_buffer=False)


def batches(file: pq.ParquetFile, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a Parquet in batches of at most `BLOCK_ROWS`, whatever its row groups are.

    A row group of at most that size is read whole, one column after the other. pyarrow's `iter_batches` reads all
    columns at once, with a buffer for each, in more than twice the memory.
    """
    for group in range(file.num_row_groups):
        if file.metadata.row_group(group).num_rows <= BLOCK_ROWS:
            yield from file.read_row_group(group, columns).to_batches()
        else:
            yield from file.iter_batches(BLOCK_ROWS, row_groups=[group], columns=columns)


def row_count(file: pq.ParquetFile) -> int:
    """Return the sum of the row groups, which `batches` reads, rather than the footer's total."""
    return sum(file.metadata.row_group(group).num_rows for group in range(file.num_row_groups))


def blocks(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, Bytes]]:
    """Yield the rows of a Parquet in blocks: the number of the first row, and uint8 (columns, rows)."""
    start = 0
    for batch in batches(open_parquet(path), columns):
        block = column_bytes(batch)
        if block is None:
            raise TypeError(f"{path}: expected uint8 columns without nulls.")
        yield start, block
        start += batch.num_rows


def select_rows(block: Bytes, start: int, rows: npt.NDArray[np.int64]) -> Bytes:
    """Return those of ``rows`` (ascending) that are in a block (columns, N) with first row ``start``: (columns, n)."""
    first, after = np.searchsorted(rows, [start, start + block.shape[1]])
    return block[:, rows[first:after] - start]


def column_bytes(batch: pa.RecordBatch) -> Bytes | None:
    """Return the values of a batch, uint8 (columns, rows), or None if a column has another type or nulls."""
    if not batch.num_rows or any(column.type != pa.uint8() or column.null_count for column in batch.columns):
        return None
    block: Bytes = batch.to_tensor(row_major=False).to_numpy().T
    return block
