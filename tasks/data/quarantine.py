"""Bad rows, set aside to the byte with what is wrong with them, so that nothing which was rejected is lost.

One Parquet file a split, named by the digest of its CSVs; docs/data.md says how corrected rows come back.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from schemas.layout import Artifacts
from schemas.references import CsvSplit
from tasks.runtime.files import atomic_write, sweep_temporaries

# Of every file the bytes of its rows one after the other, line ends with them, are the lines that were not taken.
SCHEMA = pa.schema(
    [
        pa.field(name, kind, nullable=False)
        for name, kind in (
            ("source_file", pa.string()),
            ("line", pa.int64()),  # 1 is the header's
            ("raw_text", pa.binary()),  # it need not be text at all
            ("column", pa.string()),  # of the first cell that is wrong, as are the next two
            ("value", pa.string()),
            ("reason", pa.string()),
            ("bad_cells", pa.int64()),
            ("content_hash", pa.string()),  # sha256 of raw_text
        )
    ]
)
# JSON: the header line of each source file, because its columns may have an order of their own.
HEADERS = "fashion_ann.headers"

_BUFFER_BYTES = 4 << 20
_BUFFER_ROWS = 8192


class BadRow(NamedTuple):
    """A row that was not taken. ``column``, ``value`` and ``reason`` are of the first of its ``bad_cells``."""

    line: int
    raw: bytes
    column: str
    value: str
    reason: str
    bad_cells: int


def quarantine_path(artifacts_dir: Path, csv: CsvSplit) -> Path:
    return Artifacts(artifacts_dir).quarantine / f"{csv.split}-{csv.sha256}.parquet"


class Quarantine:
    """Takes bad rows in file order, in memory that does not grow with them; `open_quarantine` makes it."""

    def __init__(self, open_writer: Callable[[], pq.ParquetWriter]) -> None:
        self._open_writer = open_writer
        self._writer: pq.ParquetWriter | None = None
        self._waiting: list[tuple[Any, ...]] = []
        self._waiting_bytes = 0
        self._headers: dict[str, str] = {}
        self.rows = 0

    def source(self, path: Path, header: bytes) -> Callable[[BadRow], None]:
        """What takes the bad rows of one file with that header line."""

        def add(row: BadRow) -> None:
            self._headers[path.name] = header.decode()
            self.rows += 1
            self._waiting.append((path.name, *row, hashlib.sha256(row.raw).hexdigest()))
            self._waiting_bytes += len(row.raw) + len(row.value)
            if self._waiting_bytes >= _BUFFER_BYTES or len(self._waiting) >= _BUFFER_ROWS:
                self._flush()

        return add

    def finish(self) -> None:
        if self._waiting:
            self._flush()
        if self._writer is not None:
            self._writer.add_key_value_metadata({HEADERS: json.dumps(self._headers)})

    def _flush(self) -> None:
        if self._writer is None:
            self._writer = self._open_writer()
        columns = zip(zip(*self._waiting, strict=True), SCHEMA.types, strict=True)
        arrays = [pa.array(column, kind) for column, kind in columns]
        self._writer.write_table(pa.Table.from_arrays(arrays, schema=SCHEMA))
        self._waiting, self._waiting_bytes = [], 0


@contextmanager
def open_quarantine(path: Path) -> Iterator[Quarantine]:
    """Bad rows that go to ``path``: written whole when the block ends well and there were any, else not at all."""
    with ExitStack() as stack:

        def open_writer() -> pq.ParquetWriter:
            path.parent.mkdir(parents=True, exist_ok=True)
            sweep_temporaries(path)
            temporary = stack.enter_context(atomic_write(path))
            # No dictionary: raw text never repeats, and the rest is packed well enough.
            return stack.enter_context(pq.ParquetWriter(temporary, SCHEMA, compression="zstd", use_dictionary=False))

        quarantine = Quarantine(open_writer)
        yield quarantine
        quarantine.finish()
