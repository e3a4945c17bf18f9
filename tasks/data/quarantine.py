"""Quarantine: rejected rows, byte for byte, with the reason. No rejected row is lost.

One Parquet file per split and digest of its CSVs. `export_rejected` writes the rows back as CSV shards to correct.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import chain, groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from schemas.contract import SPLITS, DatasetContract, Split
from schemas.errors import DataContractError, DataUnavailable, StoredArtifactError, WrongUsage
from schemas.layout import Artifacts, is_litter
from schemas.references import CsvFile, CsvSplit
from tasks.runtime.files import PRIVATE_FILE, atomic_write, sha256_file, sweep_temporaries

_COLUMNS = {
    "source_file": pa.string(),
    "line": pa.int64(),  # 1 is the header
    "raw_text": pa.binary(),  # with its line end; not necessarily text
    "column": pa.string(),  # column, value and reason describe the first bad cell
    "value": pa.string(),
    "reason": pa.string(),
    "bad_cells": pa.int64(),
    "content_hash": pa.string(),  # sha256 of raw_text
}
SCHEMA = pa.schema([pa.field(name, kind, nullable=False) for name, kind in _COLUMNS.items()])
# Metadata key. Its value is JSON: the header line of each source file, because files may order their columns
# differently.
HEADERS = "fashion_ann.headers"

_CORRECTED = "-corrected"
_UNNAMED = ""  # the source file in the quarantine of a shard, which does not depend on the name of its CSV
_BUFFER_BYTES, _BUFFER_ROWS = 4 << 20, 8192  # a row group is written when either is reached


class BadRow(NamedTuple):
    """A rejected row. ``column``, ``value`` and ``reason`` describe the first of its ``bad_cells``."""

    line: int
    raw: bytes
    column: str
    value: str
    reason: str
    bad_cells: int


def quarantine_path(artifacts_dir: Path, csv: CsvSplit) -> Path:
    """Return where the rejected rows of ``csv`` are stored."""
    return Artifacts(artifacts_dir).quarantine / f"{csv.split}-{csv.sha256}.parquet"


class Quarantine:
    """Writer of rejected rows in file order, in constant memory; created by `open_quarantine`."""

    def __init__(self, path: Path, stack: ExitStack, *, discard: bool) -> None:
        self.rows = 0
        self._discard = discard
        self._path = path
        self._stack = stack
        self._writer: pq.ParquetWriter | None = None
        self._buffer: list[tuple[Any, ...]] = []
        self._buffer_bytes = 0
        self._headers: dict[str, str] = {}

    def source(self, header: bytes) -> Callable[[BadRow], None]:
        """Return the function that adds rejected rows of a file with that header line.

        Their file has no name yet, see `join_quarantines`.
        """

        def add(row: BadRow) -> None:
            if self._discard:
                return
            self._headers[_UNNAMED] = header.decode()
            self.rows += 1
            self._buffer.append((_UNNAMED, *row, hashlib.sha256(row.raw).hexdigest()))
            self._buffer_bytes += len(row.raw) + len(row.value)
            if self._buffer_bytes >= _BUFFER_BYTES or len(self._buffer) >= _BUFFER_ROWS:
                self._flush()

        return add

    def take(self, path: Path, name: str) -> None:
        """Add the rows of the quarantine file ``path``, whose source has no name yet, as rows of the CSV ``name``."""
        with pq.ParquetFile(path) as file:
            self._headers[name] = _headers(file)[_UNNAMED]
            for group in range(file.num_row_groups):
                rows = file.read_row_group(group)
                names = pa.array([name] * rows.num_rows, pa.string())
                self._open().write_table(rows.set_column(0, SCHEMA.field("source_file"), names))
                self.rows += rows.num_rows

    def finish(self) -> None:
        """Write the buffered rows and the header lines."""
        if self._buffer:
            self._flush()
        if self._writer is not None:
            self._writer.add_key_value_metadata({HEADERS: json.dumps(self._headers)})

    def _open(self) -> pq.ParquetWriter:
        if self._writer is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            sweep_temporaries(self._path)
            temporary = self._stack.enter_context(atomic_write(self._path, mode=PRIVATE_FILE))
            # No dictionary: raw text never repeats, and zstd packs the other columns well enough.
            writer = pq.ParquetWriter(temporary, SCHEMA, compression="zstd", use_dictionary=False)
            self._writer = self._stack.enter_context(writer)
        return self._writer

    def _flush(self) -> None:
        columns = zip(zip(*self._buffer, strict=True), SCHEMA.types, strict=True)
        arrays = [pa.array(column, kind) for column, kind in columns]
        self._open().write_table(pa.Table.from_arrays(arrays, schema=SCHEMA))
        self._buffer, self._buffer_bytes = [], 0


@contextmanager
def open_quarantine(path: Path, *, discard: bool = False) -> Iterator[Quarantine]:
    """Yield a writer of rejected rows. ``path`` is created when the block succeeds and there were any.

    With ``discard`` rejected rows are neither counted nor written.
    """
    with ExitStack() as stack:
        quarantine = Quarantine(path, stack, discard=discard)
        yield quarantine
        quarantine.finish()


def join_quarantines(shards: Sequence[tuple[str, Path]], target: Path) -> None:
    """Join quarantine files into one, in constant memory. shards: the name of each CSV, and its quarantine file."""
    with open_quarantine(target) as quarantine:
        for name, path in shards:
            quarantine.take(path, name)


def _headers(file: pq.ParquetFile) -> dict[str, str]:
    headers: dict[str, str] = json.loads(file.metadata.metadata[HEADERS.encode()])
    return headers


@dataclass(frozen=True)
class QuarantineFile:
    """A quarantine file. ``headers``: the header line of each source file.

    ``first``: source_file, line, column, value and reason of the first rejected row.
    """

    path: Path
    split: Split
    rows: int
    headers: Mapping[str, str]
    first: Mapping[str, Any]


def list_quarantine(artifacts_dir: Path) -> tuple[list[QuarantineFile], list[str]]:
    """Return every quarantine file of the artifacts folder, ordered by name, and a message for each unreadable one."""
    files, faults = [], []
    paths = sorted(Artifacts(artifacts_dir).quarantine.glob("*.parquet"))
    for path in (path for path in paths if not is_litter(path.name)):
        try:
            files.append(read_quarantine(path))
        except (WrongUsage, StoredArtifactError) as error:
            faults.append(str(error))
    return files, faults


def read_quarantine(path: Path) -> QuarantineFile:
    """Return what ``path`` contains.

    Raises `WrongUsage` unless it is a file named SPLIT-DIGEST.parquet, and `StoredArtifactError` when it is damaged.
    """
    split = next((split for split in SPLITS if path.name.startswith(f"{split}-")), None)
    if split is None or not path.is_file():
        raise WrongUsage(f"{path}: expected a quarantine file named SPLIT-DIGEST.parquet.")
    try:
        with pq.ParquetFile(path) as file:
            headers = _headers(file)
            cell = ["source_file", "line", "column", "value", "reason"]
            first = next(file.iter_batches(batch_size=1, columns=cell)).to_pylist()[0]
            return QuarantineFile(path, split, file.metadata.num_rows, headers, first)
    except (OSError, ValueError, KeyError, TypeError, StopIteration) as error:
        raise StoredArtifactError(
            f"{path} is not a readable quarantine file ({error}). Delete it; the next `fashion-ann train` on the same "
            "CSVs writes it again."
        ) from error


def find_quarantine(artifacts_dir: Path, split: Split, csvs: Sequence[Path]) -> Path | None:
    """Return the quarantine file of ``csvs``, the CSVs of a split, or None if no row of them was rejected.

    After an export, and before the next run, that is the file of the CSVs without the exported shards.
    """
    if not any(Artifacts(artifacts_dir).quarantine.glob(f"{split}-*.parquet")):
        return None
    return next((path for path in _paths_of(artifacts_dir, split, csvs) if path.exists()), None)


def require_source(artifacts_dir: Path, quarantine: QuarantineFile, csvs: Sequence[Path]) -> None:
    """Raise `DataContractError` unless the rows of ``quarantine`` are those of ``csvs``, the CSVs of its split now."""
    expected = {path.name for path in _paths_of(artifacts_dir, quarantine.split, csvs)}
    if csvs and quarantine.path.name not in expected:
        raise DataContractError(
            f"{quarantine.path} holds rows of other CSVs than those in {csvs[0].parent}: their digest gives the name "
            f"{' or '.join(sorted(expected))}. Nothing was exported, because rows could be foreign or occur twice. "
            "Export without FILE, after `fashion-ann train` has read the CSVs, or restore the CSVs of that run."
        )


def _paths_of(artifacts_dir: Path, split: Split, csvs: Sequence[Path]) -> Iterator[Path]:
    """Yield where the rejected rows of ``csvs`` are stored, then those of ``csvs`` without exported shards."""
    files = tuple(CsvFile(path=path, sha256=sha256_file(path)) for path in csvs)
    originals = tuple(file for file in files if not _stem(file.path.name).endswith(_CORRECTED))
    for some in (files, originals):
        if some:
            yield quarantine_path(artifacts_dir, CsvSplit(split=split, files=some, origin="supplied"))


@dataclass(frozen=True)
class CorrectionShard:
    """The shard in which ``rows`` rejected rows of a source file are corrected; ``written`` by this call or before."""

    source_file: str
    path: Path
    rows: int
    written: bool


@dataclass(frozen=True)
class Export:
    """The result of `export_rejected` for a ``quarantine`` file.

    ``renamed`` is the new path of the split's only CSV, None if it kept its name. ``shards`` is empty if the rejected
    rows are blank lines, which need no correction.
    """

    split: Split
    quarantine: Path
    renamed: Path | None
    shards: tuple[CorrectionShard, ...]


def export_rejected(quarantine: QuarantineFile, contract: DatasetContract, csvs: Sequence[Path]) -> Export:
    """Write the rejected rows back as CSV shards to correct, next to ``csvs``, the CSVs of their split.

    Each source file gets one shard, ``SOURCE-corrected.csv``, with its header and its rows; blank lines are left out.
    An existing shard is left unchanged, and rows that such a shard still has wrong are corrected there: a second call
    neither loses a row nor adds one twice. A split's only CSV becomes the shard ``-all``, because a split is either one
    file or shards.

    Raises `DataUnavailable` when a source file is not among ``csvs``; nothing is written then.
    """
    whole = _stem(contract.csv_name(quarantine.split))

    def source_stem(name: str) -> str:
        return whole if (stem := _stem(name)) == f"{whole}-all" else stem

    for source in quarantine.headers:
        if source_stem(source) not in {source_stem(path.name) for path in csvs}:
            raise DataUnavailable(
                f"{quarantine.path} holds rows of {source}, which is not in the data folder. Name its folder with "
                "--data-dir and its dataset with --dataset, or run `fashion-ann train` on the CSVs in the folder first."
            )
    rows = Counter(source for source, _ in _rejected_rows(quarantine.path))
    if not rows:
        return Export(quarantine.split, quarantine.path, None, ())
    folder, renamed = csvs[0].parent, None
    # Renamed first: a kill in between leaves a folder that trains as before, and the next call writes the shard.
    if _stem(csvs[0].name) == whole:
        renamed = csvs[0].rename(folder / csvs[0].name.replace(whole, f"{whole}-all", 1))
    shards = []
    for source, group in groupby(_rejected_rows(quarantine.path), key=itemgetter(0)):
        path = folder / f"{source_stem(source).removesuffix(_CORRECTED)}{_CORRECTED}.csv"
        packed = path.with_name(f"{path.name}.gz")
        written = not path.exists() and not packed.exists()
        if written:
            sweep_temporaries(path)
            header = quarantine.headers[source].encode()
            lines = chain([header] if header else [], (row for _, row in group))
            with atomic_write(path, mode=PRIVATE_FILE) as temporary, temporary.open("wb") as file:
                file.writelines(line + b"\n" for line in lines)
        shards.append(CorrectionShard(source, packed if packed.exists() else path, rows[source], written))
    return Export(quarantine.split, quarantine.path, renamed, tuple(shards))


def _stem(name: str) -> str:
    return name.removesuffix(".gz").removesuffix(".csv")


def _rejected_rows(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield source file and bytes of each rejected row in file order, without its line end and without blank lines.

    Raises `StoredArtifactError` if the file cannot be read or a row differs from its content hash.
    """
    try:
        with pq.ParquetFile(path) as file:
            for group in range(file.num_row_groups):  # 4 MiB each, where a batch could join many
                columns = file.read_row_group(group, ["source_file", "raw_text", "content_hash"]).columns
                for source, raw, digest in zip(*(column.to_pylist() for column in columns), strict=True):
                    if hashlib.sha256(raw).hexdigest() != digest:
                        raise StoredArtifactError(f"{path}: a row differs from its hash. Restore it from a copy.")
                    row = raw.rstrip(b"\r\n")
                    if row.strip():
                        yield source, row
    except (OSError, ValueError) as error:
        raise StoredArtifactError(f"{path} is damaged ({error}). Restore it from a copy.") from error
