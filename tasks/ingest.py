"""CSV to Parquet: streamed, in bounded memory, and exact about what is wrong with a file.

What is accepted: ASCII, with or without a UTF-8 byte order mark, plain or gzip (told by its content, not its name); the
contract's columns in any order; lines that end in LF or CRLF, the last one in either or in neither; cells of decimal
digits, with leading zeros, within double quotes or surrounded by spaces if need be; blank lines at the very end. Lines
end in LF, and are counted by it. A row is one line, or several where quotes hold the line ends between them, as in
Python's csv module.

A row is bad when it has signs, fractions, exponents, text, an empty cell, a value out of the contract's bounds, a lone
carriage return, a line end within quotes, or too few or too many cells; it is named with its first line and a column,
and set aside as a whole. What makes nonsense of all rows is refused as a whole: another format or encoding, a header
that lacks, repeats or adds a column, a damaged gzip, a line or a quote without end, a file that changes while it is
read.

`open_csv` is the reader, for every stage that takes such a file; `ingest_csv` writes what it gives as Parquet.

Blocks that hold nothing but digits, commas and line ends are read as arrays; all others, and those where something does
not add up, line by line. pyarrow's own CSV reader takes 0x1F for a number, names no line, and is slower than this one.
"""

import gzip
import hashlib
import logging
import re
import shutil
import stat
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from io import BufferedReader
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from prefect import task

from schemas.config import BadRows, allowed_bad_rows
from schemas.contract import DatasetContract, contract_of
from schemas.errors import CellProblem, DataContractError, UnreadableData
from schemas.references import CsvFile, CsvSplit, ParquetSplit
from tasks.blocks import BLOCK_ROWS
from tasks.quarantine import BadRow, Quarantine, open_quarantine, quarantine_path
from tasks.stage import Stage, replaced, run_stage, sha256_file

logger = logging.getLogger(__name__)

STAGE = Stage("ingest", core=("tasks.ingest",))

Rows = npt.NDArray[np.uint8]  # (N, columns)

_BLOCK_BYTES = 1 << 20  # the arrays made from one block stay within a processor's cache
# Files without line ends, or with a quote left open, must not fill the memory. A row of 785 numbers takes 4 KB.
_LINE_BYTES = 1 << 20
# Blank lines are bad rows unless the file ends with them: so many are held back until that is known.
_BLANK_LINES = 10_000
_PROBLEMS_SHOWN = 10
_VALUE_CHARACTERS = 40
_QUARANTINE_NAME = "quarantine.parquet"

_BOM = b"\xef\xbb\xbf"
_GZIP = b"\x1f\x8b"
# Saved, packed or downloaded in the wrong form: what people do most often, and a header's text would not tell them.
_UTF_16 = "UTF-16 text: save it as CSV in UTF-8"
_UNPACK = "a compressed file of another kind than gzip: unpack it, or pack it by gzip"
_FOREIGN = {
    b"PK\x03\x04": "a zip archive or a spreadsheet: unpack it, or save it as CSV",
    b"PK\x05\x06": "a zip archive with nothing in it: supply the CSV",
    b"\xd0\xcf\x11\xe0": "a spreadsheet: save it as CSV",
    b"PAR1": "Parquet already: ingest reads CSV",
    b"\xff\xfe\0\0": "UTF-32 text: save it as CSV in UTF-8",
    b"\xff\xfe": _UTF_16,
    b"\xfe\xff": _UTF_16,
    _GZIP: "gzip within gzip: unpack it once",
    b"BZh": _UNPACK,
    b"\xfd7zXZ": _UNPACK,
    b"\x28\xb5\x2f\xfd": _UNPACK,
    b"7z\xbc\xaf": _UNPACK,
    b"<": "a web page or XML, such as the login page of a site that it was downloaded from: download the file itself",
}
_LONGEST_SIGN = 64
_CONTROL = bytes({*range(32), 127} - set(b"\t\r"))

# The only bytes of a block that is read as an array, and of a line that int() is trusted with: of cells made of these,
# int() takes exactly the numbers that the grammar allows (elsewhere it takes 1_0, +5 and other alphabets).
_DIGITS_AND_ENDS = b"0123456789,\n"
_DIGITS_QUOTES_SPACES = b'0123456789," '
_ZERO = ord("0")
_NUMBER = re.compile(" *[0-9]+ *")
# A cell and the comma after it. What stands behind closed quotes belongs to the cell, as csv has it; such a cell is
# taken as it stands, and refused as a number. So is one with a lone carriage return, to which all that follows up to
# the next comma belongs; quotes behind it may hold commas, as they do for csv, to which it ends a row.
_QUOTED = '"[^"]*+(?:""[^"]*+)*+'
_PART = rf'(?: *+{_QUOTED}"[^,\r]*+|[^,\r]*+)'
_CELL = re.compile(rf' *"([^"]*+(?:""[^"]*+)*+)" *,|({_PART}(?:\r{_PART})*+),')
# A cell and what ends it, to csv a lone carriage return, too. The group is there where its quotes are left open.
_CELL_OR_OPEN = re.compile(rf' *+{_QUOTED}(?:"[^,\r]*+|(\Z))[,\r]?|[^,\r]*+[,\r]?'.encode())
_CARRIAGE_RETURN = "a lone carriage return, which ends no line: save the file with LF or CRLF"


@dataclass(frozen=True)
class IngestFacts:
    """Rows that were taken, and rows that were set aside: all that the CSVs have.

    ``count`` cells and lines are wrong in the latter, of which ``problems`` are the first ten. ``labels_shifted`` is 1
    or -1 where all labels look as if that had been added to them. ``reordered`` has a sentence for each file whose
    columns were put in order.
    """

    rows: int
    quarantined: int
    count: int
    problems: tuple[CellProblem, ...]
    labels_shifted: int = 0
    reordered: tuple[str, ...] = ()


@task(name="ingest", task_run_name="ingest {csv.split}")
def ingest(csv: CsvSplit, dataset: str, artifacts_dir: Path, bad_rows: BadRows = 0) -> ParquetSplit:
    """The CSVs of a split to ``<split>.parquet`` in a stage folder under ``artifacts_dir/data``.

    So many rows as ``bad_rows`` allows may be bad: they lie in `tasks.quarantine.quarantine_path` then, and there too
    when they are more.

    Raises `DataContractError` as `ingest_csv` does, also where an earlier run with a larger budget took the CSVs.
    """
    contract = contract_of(dataset)
    name = f"{csv.split}.parquet"
    quarantine = quarantine_path(artifacts_dir, csv)

    def build(folder: Path) -> Mapping[str, Any]:
        facts = ingest_csv(csv, folder / name, quarantine, contract, bad_rows)
        if facts.quarantined:
            # The stage's own, checked with it: the other one may be lost.
            shutil.copyfile(quarantine, folder / _QUARANTINE_NAME)
        logger.info("%s: %d rows to Parquet", csv.name, facts.rows)
        return {**asdict(facts), "sha256": sha256_file(folder / name)}

    # Not the budget: it decides whether there is an output, not what is in it. The names stand in what is told of it.
    names = [file.path.name for file in csv.files]
    inputs = {"csv": csv.sha256, "files": names, "split": csv.split, "dataset": dataset, "origin": csv.origin}
    record, stored = run_stage(artifacts_dir / "data", STAGE, inputs, build)
    sha256 = stored.pop("sha256")
    problems = tuple(CellProblem(**problem) for problem in stored["problems"])
    facts = IngestFacts(**{**stored, "problems": problems, "reordered": tuple(stored["reordered"])})
    for sentence in facts.reordered:
        logger.warning("%s", sentence)
    if facts.quarantined:
        own = record.path / _QUARANTINE_NAME
        # Lost, damaged, or of the same rows under other file names.
        if not quarantine.exists() or sha256_file(quarantine) != sha256_file(own):
            quarantine.parent.mkdir(parents=True, exist_ok=True)
            with replaced(quarantine) as temporary:
                shutil.copyfile(own, temporary)
        _demand_budget(csv, facts, bad_rows, quarantine)
        logger.warning(
            "%s: %s, --bad-rows allows %s; set aside in %s. The first: %s",
            csv.name,
            _share(facts),
            bad_rows,
            quarantine,
            facts.problems[0],
        )
    return ParquetSplit(
        record=record,
        split=csv.split,
        path=record.path / name,
        sha256=sha256,
        rows=facts.rows,
        quarantined=facts.quarantined,
        origin=csv.origin,
        source=csv,
    )


def parquet_schema(contract: DatasetContract) -> pa.Schema:
    """The contract's columns in order, each uint8 and never null."""
    return pa.schema([pa.field(column, pa.uint8(), nullable=False) for column in contract.columns])


def ingest_csv(
    csv: CsvSplit, target: Path, quarantine: Path, contract: DatasetContract, bad_rows: BadRows = 0
) -> IngestFacts:
    """Write ``target`` as Parquet: one uint8 column for each of the contract's, at most `BLOCK_ROWS` rows a row group.

    The files are read one after the other. Each bad row goes to ``quarantine`` (`tasks.quarantine.SCHEMA`), which is
    not written where there is none; every other row goes to ``target``. A supplied split needs
    ``contract.minimum_rows`` of these or more, a fetched one exactly as many as were published.

    Raises `DataContractError`, and leaves no ``target``: when more rows are bad than ``bad_rows`` allows, with each bad
    cell as a problem, and each row of the wrong length, once: at the first column that it lacks, or at the number of
    the first value that is too many; a blank line is one at the first column. When there are too few rows. When a file
    cannot be read, hashes to something else than ``csv`` says, or is refused as a whole, as by its header, by a line of
    more than 1 MiB or by a damaged gzip: there is no ``quarantine`` then.
    """
    before = [_stamp(file.path) for file in csv.files]
    with replaced(target) as temporary:
        with open_quarantine(quarantine) as bad, _parquet_writer(temporary, contract) as writer:
            groups = _RowGroups(writer)
            readers = [_read_into(groups, file, contract, bad) for file in csv.files]
            groups.flush()
            # A shard may change while the next one is read.
            for file, stamp in zip(csv.files, before, strict=True):
                _demand_unchanged(file.path, stamp, file.sha256)
        problems = [problem for reader in readers for problem in reader.problems]
        facts = IngestFacts(
            rows=sum(reader.rows for reader in readers),
            quarantined=bad.rows,
            count=sum(reader.count for reader in readers),
            problems=tuple(problems[:_PROBLEMS_SHOWN]),
            labels_shifted=_labels_shifted(readers, contract),
            reordered=tuple(reader.reordered for reader in readers if reader.reordered is not None),
        )
        _demand_budget(csv, facts, bad_rows, quarantine)
        _check_rows(csv, facts, contract, quarantine)
    return facts


def _parquet_writer(path: Path, contract: DatasetContract) -> pq.ParquetWriter:
    return pq.ParquetWriter(
        path,
        parquet_schema(contract),
        # Parquet keeps uint8 in 4 bytes; split into streams, three of them are zeros that LZ4 skips. On the real train
        # split that is half the time of zstd without streams to write, and to read, and fewer bytes.
        compression="lz4",
        use_dictionary=False,
        column_encoding=dict.fromkeys(contract.columns, "BYTE_STREAM_SPLIT"),
    )


def _read_into(groups: "_RowGroups", file: CsvFile, contract: DatasetContract, quarantine: Quarantine) -> "CsvRows":
    with open_csv(file.path, contract, expected_sha256=file.sha256, quarantine=quarantine) as csv:
        for rows in csv:
            groups.add(rows)
    return csv


@contextmanager
def open_csv(
    source: Path,
    contract: DatasetContract,
    *,
    label_optional: bool = False,
    expected_sha256: str | None = None,
    quarantine: Quarantine | None = None,
) -> Iterator["CsvRows"]:
    """The rows of a CSV in the form that this module describes, to be iterated over once; its header is read already.

    With ``label_optional`` the header may lack the label column.

    Raises `DataContractError`: at once for what cannot be read or has a wrong header, from the iteration for what is
    wrong with the rest, bad rows among it where no ``quarantine`` takes them; and for a file that hashes to something
    else, or changed meanwhile, instead of either, or when the block ends.
    """
    before = _stamp(source)
    with _open(source) as file:
        raw = _HashedFile(file, source)
        fault: DataContractError | None = None
        try:
            yield CsvRows(raw, contract, label_optional=label_optional, quarantine=quarantine)
        except DataContractError as error:
            fault = error
        raw.read_to_the_end()
        # First, because what is wrong inside a file that is still being written is wrong for that reason.
        if expected_sha256 not in (None, raw.sha256):
            raise DataContractError(
                f"{source} changed since it was first looked at: expected sha256 {expected_sha256}, "
                f"received {raw.sha256}. Run again when nothing writes to it."
            ) from fault
        _demand_unchanged(source, before, expected_sha256, fault)
        if fault is not None:
            raise fault


class CsvRows:
    """The rows of one CSV, in file order, in memory that does not grow with the file; `open_csv` makes it.

    Iterating gives blocks of them: uint8 (N, len(columns)), N at least 1, every value within the contract's bounds,
    in the contract's order whatever that of the file is. Bad rows go to the quarantine. Without one no block is given
    from the first bad row on: the rest is read for more of them, and `DataContractError` ends the iteration.
    """

    def __init__(
        self, raw: "_HashedFile", contract: DatasetContract, *, label_optional: bool, quarantine: Quarantine | None
    ) -> None:
        self._raw = raw
        self._in_file: tuple[str, ...] = contract.columns
        self._blocks = self._whole_lines()
        header, ended, self._first = next(self._blocks, b"").removeprefix(_BOM).partition(b"\n")
        header = header.removesuffix(b"\r") if ended else header
        self._in_file = _check_header(raw.path, header, contract, label_optional=label_optional)
        self._label_column = contract.label_column
        self._columns = tuple(column for column in contract.columns if column in self._in_file)
        self._order = [self._in_file.index(column) for column in self._columns]
        self._quarantined = quarantine is not None
        self._reader = _BlockReader(
            contract,
            self._in_file,
            raw.path,
            (lambda row: None) if quarantine is None else quarantine.source(raw.path, header),
        )

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of what is given, in order: the contract's, or these without the label."""
        return self._columns

    @property
    def reordered(self) -> str | None:
        """A sentence for people where the columns stand in another order than the contract's; they are put right."""
        if self._columns == self._in_file:
            return None
        at = next(at for at, name in enumerate(self._in_file) if name != self._columns[at])
        name = self._in_file[at]
        return (
            f"{self._raw.path.name}: its columns stand in another order ({name} is number {at + 1}, expected "
            f"{self._columns.index(name) + 1}): put right"
        )

    @property
    def labelled(self) -> bool:
        """Whether the first column is the label."""
        return self._columns[0] == self._label_column

    @property
    def rows(self) -> int:
        """How many good ones were read so far."""
        return self._reader.rows

    @property
    def count(self) -> int:
        """How many cells and lines were wrong so far."""
        return self._reader.count

    @property
    def problems(self) -> Sequence[CellProblem]:
        """The first ten of these."""
        return self._reader.problems

    @property
    def labels(self) -> npt.NDArray[np.bool_]:
        """Which of 0..255 are labels of good rows, so far."""
        return self._reader.labels

    @property
    def bad_labels(self) -> Set[str]:
        """What stood where labels were expected: two different cells at most, all where there is one."""
        return self._reader.bad_labels

    def __iter__(self) -> Iterator[Rows]:
        in_order = self._columns == self._in_file
        for block in chain([self._first] if self._first else [], self._blocks):
            rows = self._reader.read(block)
            if len(rows) and (self._quarantined or not self.count):
                yield rows if in_order else rows[:, self._order]
        self._reader.end()
        if self.count and not self._quarantined:
            raise DataContractError(
                "\n".join(
                    [
                        *_told(self.problems, self.count),
                        f"Nothing was taken from {self._raw.path}. Correct it, and run again.",
                    ]
                ),
                self.problems,
                self.count,
            )
        if not self.rows and not self.count:
            path = self._raw.path
            problem = CellProblem(2, self._in_file[0], "nothing", "expected a row", path.name)
            raise DataContractError(
                f"{problem}. {path} has a header and no rows: expected one row at least. Add rows, and run again.",
                [problem],
            )

    def _whole_lines(self) -> Iterator[bytes]:
        """The content in whole lines, unpacked. Only the last block may lack the end of its line."""
        raw = self._raw
        stream: Any = raw
        if raw.peek(len(_GZIP)).startswith(_GZIP):
            stream = gzip.GzipFile(fileobj=stream, mode="rb")
        _refuse_foreign(raw.path, _unpacked(stream.peek, _LONGEST_SIGN, raw.path), self._in_file[0])
        rest = b""
        line = 1
        while chunk := _unpacked(stream.read, _BLOCK_BYTES, raw.path):
            cut = chunk.rfind(b"\n") + 1
            block, rest = (rest + chunk[:cut], chunk[cut:]) if cut else (b"", rest + chunk)
            # Of a block's lines only the first can be longer than what is read at once.
            if block.find(b"\n") > _LINE_BYTES:
                raise self._too_long(line, block)
            if len(rest) > _LINE_BYTES:
                raise self._too_long(line + block.count(b"\n"), rest)
            if block:
                line += block.count(b"\n")
                yield block
        if rest:
            yield rest

    def _too_long(self, line: int, text: bytes) -> DataContractError:
        """The column is that of the cell in which the limit is passed."""
        path, text = self._raw.path, text[: _LINE_BYTES + 1]
        hint = (
            " (it holds NUL bytes: the file is binary, or has a hole)"
            if b"\0" in text
            else f" (it holds {_CARRIAGE_RETURN})"
            if b"\r" in text
            else ""
        )
        problem = CellProblem(
            line,
            _column_at(self._in_file, len(_cells(text[: _open_quote(text)])) - 1),
            f"more than {_LINE_BYTES} bytes",
            f"expected the end of the line{hint}",
            path.name,
        )
        return DataContractError(f"{problem}. Nothing was taken from {path}. Correct it, and run again.", [problem])


class _HashedFile:
    """The bytes of a file as they lie on disk, hashed as they pass."""

    def __init__(self, file: BufferedReader, path: Path) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self.path = path

    def peek(self, size: int) -> bytes:
        """What comes next, more or less than ``size`` bytes of it, without passing it."""
        try:
            return self._file.peek(size)
        except OSError as error:
            raise UnreadableData(self.path, error) from error

    def read(self, size: int = -1) -> bytes:
        try:
            data = self._file.read(size)
        except OSError as error:
            raise UnreadableData(self.path, error) from error
        self._digest.update(data)
        return data

    @property
    def sha256(self) -> str:
        """Of what was read so far."""
        return self._digest.hexdigest()

    def read_to_the_end(self) -> None:
        while self.read(_BLOCK_BYTES):
            pass


def _open(source: Path) -> BufferedReader:
    try:
        # Before it is opened: a pipe would wait for a writer, for ever.
        if (received := _no_file(source.stat().st_mode)) is not None:
            raise DataContractError(
                f"{source} is not a file. Expected a CSV, received {received}. Write it to a file, and run again."
            )
        return source.open("rb")
    except OSError as error:
        raise UnreadableData(source, error) from error


def _no_file(mode: int) -> str | None:
    """What it is that has no end or no beginning; a folder is refused by whoever opens it."""
    if stat.S_ISFIFO(mode):
        return "a pipe"
    if stat.S_ISSOCK(mode):
        return "a socket"
    return "a device" if stat.S_ISCHR(mode) or stat.S_ISBLK(mode) else None


def _stamp(path: Path) -> tuple[int, int, int, int] | None:
    """What changes with a file's content, also where another file takes its name; None where none can be found."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _demand_unchanged(
    path: Path,
    before: tuple[int, int, int, int] | None,
    expected_sha256: str | None,
    fault: DataContractError | None = None,
) -> None:
    """Raises `DataContractError` where the file is another than ``before`` it was read.

    One that was written anew with the same content is the same to whoever knows its digest.
    """
    if _stamp(path) == before:
        return
    if expected_sha256 is not None:
        with suppress(OSError):
            if sha256_file(path) == expected_sha256:
                return
    raise DataContractError(
        f"{path} changed while it was read: expected one and the same file from its first byte to its last. "
        "Run again when nothing writes to it."
    ) from fault


def _unpacked(read: Callable[[int], bytes], size: int, path: Path) -> bytes:
    try:
        return read(size)
    except EOFError as error:
        raise DataContractError(
            f"{path} is a gzip file that ends too early: it was probably cut off. Supply it anew, and run again."
        ) from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise DataContractError(f"{path} is a damaged gzip file ({error}). Supply it anew, and run again.") from error


class _RowGroups:
    """Gathers rows into row groups of one size, turned to columns, however the blocks fell."""

    def __init__(self, writer: pq.ParquetWriter) -> None:
        self._writer = writer
        self._columns = np.empty((len(writer.schema), BLOCK_ROWS), np.uint8)
        self._filled = 0

    def add(self, rows: Rows) -> None:
        while len(rows):
            taken = rows[: BLOCK_ROWS - self._filled]
            self._columns[:, self._filled : self._filled + len(taken)] = taken.T
            self._filled += len(taken)
            rows = rows[len(taken) :]
            if self._filled == BLOCK_ROWS:
                self.flush()

    def flush(self) -> None:
        if self._filled:
            columns = [pa.array(column) for column in self._columns[:, : self._filled]]
            self._writer.write_table(pa.Table.from_arrays(columns, schema=self._writer.schema))
        self._filled = 0


class _Fault(NamedTuple):
    """What is wrong with a cell, or with a row as a whole; ``shown`` is ``value`` as messages have it."""

    column: str
    value: str
    shown: str
    reason: str


class _BlockReader:
    """Turns blocks of whole lines into rows; what is wrong with the others is counted, named and handed on."""

    def __init__(
        self, contract: DatasetContract, columns: tuple[str, ...], path: Path, reject: Callable[[BadRow], None]
    ) -> None:
        self._columns = columns
        self._label = contract.label_column
        self._bounds = [contract.bounds(column) for column in columns]
        # A value of one byte is within 0 .. 255; only narrower columns are looked at again.
        self._narrow = [(at, low, high) for at, (low, high) in enumerate(self._bounds) if (low, high) != (0, 255)]
        self._path = path
        self._reject = reject
        self._blank: list[tuple[int, bytes]] = []  # blank lines that may turn out to be the end of the file
        self._blank_run = self._blank_bytes = 0  # since the last line that is not blank
        self._line = 1  # the header's
        self._open = bytearray()  # lines so far of a row whose quotes are open, and the number of its first
        self._open_line = 0
        self.labels = np.zeros(256, bool)  # which of them good rows have
        self.bad_labels: set[str] = set()  # two of them at most
        self.rows = 0
        self.problems: list[CellProblem] = []  # the first ones
        self.count = 0

    def read(self, block: bytes) -> Rows:
        """The good rows of a block, uint8, (N, columns)."""
        rows = self._as_array(block.replace(b"\r\n", b"\n"))
        if rows is None:
            rows = self._by_line(block)
        else:
            self._line += len(rows)
        self.rows += len(rows)
        if self._label in self._columns:
            self.labels[rows[:, self._columns.index(self._label)]] = True
        return rows

    def end(self) -> None:
        """No block follows."""
        if self._open:
            raise self._never_closed("before the file ends")

    def _as_array(self, block: bytes) -> Rows | None:
        """All rows at once, or None where anything is unusual, be it right or wrong."""
        if self._blank or self._open or block.translate(None, _DIGITS_AND_ENDS):
            return None
        # Two zeros in front stand for the tens and hundreds that the first cell may not have.
        text = np.frombuffer(b"00" + block + (b"" if block.endswith(b"\n") else b"\n"), np.uint8)
        ends = np.flatnonzero(text < _ZERO)  # commas and line ends, one after each cell
        line_ends = text[ends[len(self._columns) - 1 :: len(self._columns)]] == ord("\n")
        if (
            ends.size % len(self._columns)
            or not line_ends.all()
            or line_ends.size != np.count_nonzero(text == ord("\n"))
        ):
            return None
        lengths = np.diff(ends, prepend=1) - 1
        if lengths.min() < 1 or lengths.max() > 3:
            return None
        ones, tens, hundreds = text[ends - 1], text[ends - 2], text[ends - 3]
        has_tens = tens >= _ZERO
        has_hundreds = has_tens & (hundreds >= _ZERO)
        values = (ones - _ZERO) + (tens - _ZERO) * has_tens * np.uint16(10)
        values += (hundreds - _ZERO) * has_hundreds * np.uint16(100)
        if values.max() > 255:
            return None
        rows = values.astype(np.uint8).reshape(-1, len(self._columns))
        for at, low, high in self._narrow:
            if rows[:, at].min() < low or rows[:, at].max() > high:
                return None
        return rows

    def _by_line(self, block: bytes) -> Rows:
        good = bytearray()
        lines = block.split(b"\n")
        last = lines.pop()
        for line in lines:
            good += self._values(line.removesuffix(b"\r"), line + b"\n")
        if last:
            good += self._values(last, last)
        return np.frombuffer(good, np.uint8).reshape(-1, len(self._columns))

    def _values(self, line: bytes, raw: bytes) -> bytes:
        """The values of the next line, one byte each; nothing where it has none or a bad one.

        ``raw`` is ``line`` with its end as it stands in the file.
        """
        self._line += 1
        if self._open:
            return self._joined(line, raw)
        if not line.strip(b" "):
            self._hold_back(raw)
            return b""
        self._reject_blank_lines()
        self._blank_run = self._blank_bytes = 0
        values = self._row(line)
        if values is not None:
            return values
        if b'"' in line and _open_quote(line) is not None:
            self._open, self._open_line = bytearray(raw), self._line
            return b""
        return self._look_closely(self._line, line, raw)

    def _joined(self, line: bytes, raw: bytes) -> bytes:
        """As `_values`, of a line that begins within quotes: it belongs to the row in which they were opened."""
        self._open += raw
        if len(self._open) > _LINE_BYTES:
            raise self._never_closed(f"within {_LINE_BYTES} bytes")
        if _open_quote(b'"' + line) is not None:
            return b""
        row, self._open = bytes(self._open), bytearray()
        return self._look_closely(self._open_line, row[: len(row) - len(raw) + len(line)], row)

    def _never_closed(self, where: str) -> DataContractError:
        text = bytes(self._open)
        at = _open_quote(text)
        if at is None:
            raise TypeError(f"{text!r} was expected to end within quotes.")
        problem = CellProblem(
            self._open_line + text.count(b"\n", 0, at),
            _column_at(self._columns, len(_cells(text[:at])) - 1),
            _shown(text[at : at + _VALUE_CHARACTERS + 1].decode("utf-8", "backslashreplace")),
            f"expected the quote that opens here to be closed {where}",
            self._path.name,
        )
        return DataContractError(
            f"{problem}. Nothing was taken from {self._path}. Correct it, and run again.", [problem]
        )

    def _row(self, line: bytes) -> bytes | None:
        """The values, one byte each, or None where anything is unusual."""
        if line.translate(None, _DIGITS_QUOTES_SPACES):
            return None
        cells = _cells(line) if b'"' in line else line.split(b",")
        if len(cells) != len(self._columns):
            return None
        try:
            values = bytes(map(int, cells))
        except ValueError:  # not a number, above 255, or of thousands of digits
            return None
        return values if all(low <= values[at] <= high for at, low, high in self._narrow) else None

    def _look_closely(self, first_line: int, line: bytes, raw: bytes) -> bytes:
        """The values if all of them are right after all, else nothing, and a report of each that is not.

        ``line`` is ``raw`` without its last end; it may be more than one, of which the first is number ``first_line``.
        """
        cells = _cells(line)
        if len(cells) != len(self._columns):
            self._set_aside(first_line, raw, [self._wrong_length(cells, line, raw)])
            return b""
        values = bytearray()
        wrong: list[_Fault] = []
        told = max(1, _PROBLEMS_SHOWN - len(self.problems))
        bad_cells = 0
        for column, cell, (low, high) in zip(self._columns, cells, self._bounds, strict=True):
            number = _number(cell) if len(cell) <= _VALUE_CHARACTERS else _number.__wrapped__(cell)
            if number is not None and low <= number <= high:
                values.append(number)
                continue
            bad_cells += 1
            if column == self._label and len(self.bad_labels) < 2:
                self.bad_labels.add(cell.strip(" ")[:_VALUE_CHARACTERS])
            if len(wrong) < told:
                wrong.append(_Fault(column, cell, _shown(cell), f"expected an integer {low}..{high}{_note(cell)}"))
        if not wrong:
            return bytes(values)
        self._set_aside(first_line, raw, wrong, bad_cells)
        return b""

    def _wrong_length(self, cells: Sequence[str], line: bytes, raw: bytes) -> _Fault:
        expected = len(self._columns)
        if (at := _lone_return(line)) is not None:
            # Why there are too many cells, or too few: two lines in one, or one in two.
            cell = cells[at]
            return _Fault(
                _column_at(self._columns, at), cell, _shown(cell), f"expected {expected} values in a line{_note(cell)}"
            )
        column = _column_at(self._columns, len(cells))
        note = ""
        if inside := line.count(b"\n"):
            note = f" (quotes hold {inside} line ends: is one left open?)"
        elif len(cells) < expected and not raw.endswith(b"\n"):
            note = " (the file was probably cut off)"
        found = f"{len(cells)} values"
        return _Fault(column, found, found, f"expected {expected} values{note}")

    def _hold_back(self, raw: bytes) -> None:
        self._blank.append((self._line, raw))
        self._blank_run += 1
        self._blank_bytes += len(raw)
        # What is more than that is no end of a file, and would fill the memory.
        if self._blank_run > _BLANK_LINES or self._blank_bytes > _LINE_BYTES:
            self._reject_blank_lines()

    def _reject_blank_lines(self) -> None:
        for line, raw in self._blank:
            reason = f"expected {len(self._columns)} values"
            self._set_aside(line, raw, [_Fault(self._columns[0], "a blank line", "a blank line", reason)])
        self._blank = []

    def _set_aside(self, line: int, raw: bytes, wrong: Sequence[_Fault], bad_cells: int = 1) -> None:
        """Hand a bad row on. ``wrong``: what there is to tell of its bad cells, in order, and of the first always."""
        self.count += bad_cells
        for fault in wrong[: _PROBLEMS_SHOWN - len(self.problems)]:
            self.problems.append(CellProblem(line, fault.column, fault.shown, fault.reason, self._path.name))
        self._reject(BadRow(line, raw, wrong[0].column, wrong[0].value, wrong[0].reason, bad_cells))


def _column_at(columns: Sequence[str], number: int) -> str:
    """Its name, ``number`` from 0; past the last one, from 1 the number of the first that is too many."""
    return columns[number] if number < len(columns) else str(len(columns) + 1)


def _cells(line: bytes) -> list[str]:
    """The cells of a line without its end; what stood within quotes comes without them."""
    text = line.decode("utf-8", "backslashreplace")
    if '"' not in text:
        return text.split(",")
    # All cells quoted, none with a comma or a quote inside: the one form worth a shorter way.
    cells = text[1:-1].split('","')
    whole = text.startswith('"') and text.endswith('"') and len(text) > 1
    if whole and text.count('"') == 2 * len(cells) == 2 * (text.count(",") + 1):
        return cells
    return [quoted.replace('""', '"') or plain for quoted, plain in _CELL.findall(text + ",")]


def _open_quote(text: bytes) -> int | None:
    """Where the quote stands that is still open at the end of ``text``, which begins where a cell does."""
    for cell in _CELL_OR_OPEN.finditer(text):
        if cell[1] is not None:
            return text.index(b'"', cell.start())
    return None


def _lone_return(line: bytes) -> int | None:
    """The number, from 0, of the first cell with a carriage return outside of quotes, in a line without its end."""
    for number, cell in enumerate(_CELL_OR_OPEN.finditer(line)):
        if cell[0].endswith(b"\r"):
            return number
    return None


def _note(cell: str) -> str:
    if "\0" in cell:
        return " (the cell holds a NUL byte)"
    if "\n" in cell:
        return " (the cell holds a line end: its quotes close in a later line)"
    return f" (the cell holds {_CARRIAGE_RETURN})" if "\r" in cell else ""


@lru_cache(maxsize=4096)  # a file that is wrong throughout repeats itself
def _number(cell: str) -> int | None:
    """What a cell stands for, or None. Four digits at most reach int(): enough, and it refuses thousands."""
    return int(cell.strip(" ").lstrip("0")[:4] or "0") if _NUMBER.fullmatch(cell) else None


def _shown(value: str) -> str:
    """A value as messages show it: short, and a line of its own never."""
    text = value if re.fullmatch(r"[-+.0-9]+", value, re.ASCII) else repr(value[: _VALUE_CHARACTERS + 1])
    return text if len(text) <= _VALUE_CHARACTERS else f"{text[: _VALUE_CHARACTERS - 2]}.."


def _refuse_foreign(path: Path, start: bytes, first_column: str) -> None:
    if not start:
        problem = CellProblem(1, first_column, "nothing", "expected a header", path.name)
        raise DataContractError(
            f"{problem}. {path} is empty: expected a header line and rows. Supply the file anew, and run again.",
            [problem],
        )
    # Without a byte order mark every other byte of UTF-16 tells it.
    nul = [byte == 0 for byte in start[:4]]
    if len(nul) == 4 and nul[0] != nul[1] and nul[:2] == nul[2:]:
        raise DataContractError(f"{path} is not a CSV but {_UTF_16}; then run again.")
    for sign, what in _FOREIGN.items():
        if start.removeprefix(_BOM).lstrip().startswith(sign):
            raise DataContractError(f"{path} is not a CSV but {what}; then run again.")


def _check_header(path: Path, line: bytes, contract: DatasetContract, *, label_optional: bool) -> tuple[str, ...]:
    """The columns that the header names, in its order, if they are the contract's."""
    opened = _open_quote(line)
    cells = _cells(line[:opened])
    if opened is not None:
        cells[-1] = line[opened:].decode("utf-8", "backslashreplace")
    received = tuple(cell.strip(" ") for cell in cells)
    expected = contract.columns
    if label_optional and contract.label_column not in received and received[0] in expected:
        expected = expected[1:]
    if received == expected:
        return received
    if sorted(received) == sorted(expected):
        return received
    problem = _header_problem(path, line, expected, received)
    raise DataContractError(
        f"{problem}.\n"
        f"The header must name {len(expected)} columns, in any order: {', '.join(expected[:3])} .. {expected[-1]}. "
        + (f"The column {contract.label_column} may be left out. " if label_optional else "")
        + f"Correct {path}, and run again.",
        [problem],
    )


def _header_problem(path: Path, line: bytes, expected: Sequence[str], received: Sequence[str]) -> CellProblem:
    """What is wrong with the names, where it is first, and why that may be."""
    places: dict[str, list[int]] = {}
    for number, name in enumerate(received, start=1):
        places.setdefault(name, []).append(number)
    missing = [name for name in expected if name not in places]
    extra = [name for name in places if name not in set(expected)]
    twice = [name for name in expected if len(places.get(name, [])) > 1]
    faults = [
        f"{word} {_shown(names[0])}" + (f" and {len(names) - 1} more" if len(names) > 1 else "")
        for word, names in (("more than once:", twice), ("missing:", missing), ("unexpected:", extra))
        if names
    ]
    if (likely := _likely_cause(line, received, set(expected))) is not None:
        faults = [likely]
    if twice:
        column, value = twice[0], "columns " + " and ".join(map(str, places[twice[0]]))
        reason = "expected this name once in the header"
    elif missing:
        column, at = missing[0], expected.index(missing[0])
        value = _shown(received[at]) if at < len(received) and received[at] in extra else "nothing"
        reason = "expected this name in the header"
    else:
        column, value = str(places[extra[0]][0]), _shown(extra[0])
        reason = "expected no such name in the header"
    return CellProblem(1, column, value, f"{reason} ({'; '.join(faults)})", path.name)


def _likely_cause(line: bytes, received: Sequence[str], expected: set[str]) -> str | None:
    if all(re.fullmatch("[0-9]+", name) for name in received):
        return "the header is missing: the first line holds numbers"
    if b"\r" in line:
        return f"it holds {_CARRIAGE_RETURN}"
    if _open_quote(line) is not None:
        return "a quote is left open at the end of the line"
    if expected.isdisjoint(received):
        if len(line.translate(None, _CONTROL)) < len(line):
            return "the file is binary: CSV is text"
        for separator, what in ((";", "semicolons"), ("\t", "tabs"), ("|", "bars"), (" ", "spaces")):
            if not expected.isdisjoint(name.strip(' "') for name in received[0].split(separator)):
                return f"{what} separate the names: save the file with commas"
    return None


def _check_rows(csv: CsvSplit, facts: IngestFacts, contract: DatasetContract, quarantine: Path) -> None:
    without = f" without the {facts.quarantined} bad ones, which are in {quarantine}" if facts.quarantined else ""
    if csv.origin == "fetched":
        published = contract.published[csv.split].rows
        if facts.rows != published:
            raise DataContractError(
                f"{csv.name} has {facts.rows} rows{without}: expected the {published} of the {csv.split} split as it "
                f"was published. Delete {_place(csv)}, and run again to fetch it anew.",
                problems=facts.problems,
                count=facts.count,
            )
    elif facts.rows < contract.minimum_rows[csv.split]:
        raise DataContractError(
            f"{csv.name} has {facts.rows} rows{without}: expected at least {contract.minimum_rows[csv.split]} for the "
            f"{csv.split} split. Add rows to {_place(csv)}, or supply another file, and run again.",
            problems=facts.problems,
            count=facts.count,
        )


def _demand_budget(csv: CsvSplit, facts: IngestFacts, bad_rows: BadRows, quarantine: Path) -> None:
    if facts.quarantined <= allowed_bad_rows(bad_rows, facts.rows + facts.quarantined):
        return
    cure = (
        "Delete the CSV, and run again to fetch it anew"
        if csv.origin == "fetched"
        else "Correct the CSV, or allow more, and run again"
    )
    shifted = []
    if facts.labels_shifted:
        way, other = ("above", "lowest") if facts.labels_shifted > 0 else ("below", "highest")
        shifted = [f"The labels look shifted by one: some are one {way} their range, and its {other} never occurs."]
    raise DataContractError(
        "\n".join(
            [
                *_told(facts.problems, facts.count),
                *shifted,
                f"Nothing was taken from {_place(csv)}: {_share(facts)}, --bad-rows allows {bad_rows}. What is bad is "
                f"in {quarantine}. {cure}.",
            ]
        ),
        facts.problems,
        facts.count,
    )


def _labels_shifted(readers: Sequence["CsvRows"], contract: DatasetContract) -> int:
    """1 where each label but the lowest occurs and all others are one above the highest; -1 the other way; else 0."""
    low, high = contract.bounds(contract.label_column)
    bad = set[str]().union(*(reader.bad_labels for reader in readers))
    seen = np.logical_or.reduce([reader.labels for reader in readers])[low : high + 1]
    if bad == {str(high + 1)} and seen[1:].all() and not seen[0]:
        return 1
    return -1 if bad == {str(low - 1)} and seen[:-1].all() and not seen[-1] else 0


def _told(problems: Sequence[CellProblem], count: int) -> list[str]:
    more = [f".. and {count - len(problems)} more"] if count > len(problems) else []
    return [*map(str, problems), *more]


def _share(facts: IngestFacts) -> str:
    are = "is" if facts.quarantined == 1 else "are"
    return f"{facts.quarantined} of {facts.rows + facts.quarantined} rows {are} bad"


def _place(csv: CsvSplit) -> Path:
    return csv.files[0].path.with_name(csv.name)
