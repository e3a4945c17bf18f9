"""Read splits from Parquet, one column per pixel, as blocks of bytes."""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, TypeVar, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

# Rows of a row group, and most rows that are read at once. The writer keeps 0.6 MB per group until the end, 40 MB for a
# million rows. Larger groups would need more memory than that at once.
BLOCK_ROWS = 16_384

Bytes = npt.NDArray[np.uint8]
T = TypeVar("T")


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


def page_bytes(file: pq.ParquetFile, content: BinaryIO, group: int, column: int) -> int:
    """Return the sum of the sizes that the pages of a column chunk declare, uncompressed.

    Arrow allocates these sizes, and compares them with those in the footer of ``file`` only afterwards. ``content`` are
    the bytes of the same file. Raises ValueError for pages that do not fill the chunk.
    """
    chunk = file.metadata.row_group(group).column(column)
    start, size = chunk.data_page_offset, chunk.total_compressed_size
    if chunk.has_dictionary_page:
        start = min(start, chunk.dictionary_page_offset)
    if start < 0 or size < 0:
        raise ValueError(f"column {column} is outside of the file")
    content.seek(start)
    pages, place, total = content.read(size), 0, 0
    while place < len(pages):
        header = _Header(pages, place)
        uncompressed, compressed = header.numbers.get(2, -1), header.numbers.get(3, -1)
        if uncompressed < 0 or compressed < 0:
            raise ValueError(f"column {column} has a page without a size")
        place, total = header.end + compressed, total + uncompressed
    if place != size:
        raise ValueError(f"column {column} has {place} bytes of pages, its footer declares {size}")
    return total


class _Header:
    """The header of a page in Thrift's compact protocol, which pyarrow does not return.

    numbers: its integers by field. end: the place after it. Raises ValueError for anything else.
    """

    def __init__(self, pages: bytes, place: int) -> None:
        self._pages, self.end = pages, place
        self.numbers: dict[int, int] = {}
        self._struct(self.numbers)

    def _byte(self) -> int:
        if self.end >= len(self._pages):
            raise ValueError("the header of a page is incomplete")
        self.end += 1
        return self._pages[self.end - 1]

    def _varint(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value
            if shift > 63:
                raise ValueError("the header of a page has a number of more than 64 bits")

    def _struct(self, numbers: dict[int, int], depth: int = 0) -> None:
        if depth > 4:
            raise ValueError("the header of a page has too many levels")
        field = 0
        while head := self._byte():
            delta, kind = head >> 4, head & 15
            field = field + delta if delta else self._signed()
            match kind:
                case 1 | 2:  # a boolean, whose value is its kind
                    pass
                case 3:
                    self._byte()
                case 4 | 5 | 6:
                    numbers[field] = self._signed()
                case 8:
                    length = self._varint()
                    self.end += length
                case 12:
                    self._struct({}, depth + 1)
                case _:
                    raise ValueError(f"the header of a page has a field of type {kind}")

    def _signed(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)


def blocks(paths: Iterable[Path], columns: Sequence[str]) -> Iterator[tuple[int, Bytes]]:
    """Yield the rows of Parquet files in blocks: the number of the first row over all files, and uint8 (columns, rows).

    In memory the values of a row are adjacent: `select_rows` then copies whole rows, in a tenth of the time.
    """

    def read() -> Iterator[Bytes]:
        for path in paths:
            for batch in batches(open_parquet(path), columns):
                if (block := column_bytes(batch, row_major=True)) is None:
                    raise TypeError(f"{path}: expected uint8 columns without nulls.")
                yield block

    start = 0
    for block in read_ahead(read()):
        yield start, block
        start += block.shape[1]


def read_ahead(items: Iterator[T]) -> Iterator[T]:
    """Yield the same items; a thread computes the next one meanwhile."""
    end = object()
    with ThreadPoolExecutor(1) as reader:
        future = reader.submit(next, items, end)
        while (item := future.result()) is not end:
            future = reader.submit(next, items, end)
            yield cast(T, item)


def read_rows(paths: Iterable[Path], columns: Sequence[str]) -> tuple[Bytes, Bytes]:
    """Return the images, uint8 (N, pixels), and the classes, uint8 (N,), of all Parquet files of ingest."""
    rows = np.concatenate([block for _, block in blocks(paths, columns)], axis=1)  # (1 + pixels, N)
    return np.ascontiguousarray(rows[1:].T), rows[0]


def select_rows(block: Bytes, start: int, rows: npt.NDArray[np.int64]) -> Bytes:
    """Return those of ``rows`` (ascending) that are in a block (columns, N) with first row ``start``: (columns, n)."""
    first, after = np.searchsorted(rows, [start, start + block.shape[1]])
    return block[:, rows[first:after] - start]


def column_bytes(batch: pa.RecordBatch, *, row_major: bool = False) -> Bytes | None:
    """Return the values of a batch, uint8 (columns, rows), or None if a column has another type or nulls.

    In memory the values of a column are adjacent, or with ``row_major`` those of a row.
    """
    if not batch.num_rows or any(column.type != pa.uint8() or column.null_count for column in batch.columns):
        return None
    block: Bytes = batch.to_tensor(row_major=row_major).to_numpy().T
    return block
