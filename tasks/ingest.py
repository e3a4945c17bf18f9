"""CSV to Parquet: streamed, in bounded memory, and exact about what is wrong with a file.

What is accepted: ASCII, with or without a UTF-8 byte order mark, plain or gzip (told by its content, not its name);
lines that end in LF or CRLF, the last one in either or in neither; cells of decimal digits, with leading zeros, within
double quotes or surrounded by spaces if need be; blank lines at the very end. A row is one physical line: no cell of
such a file spans two, so that a quote left open costs one cell and not the rest of the file.

Everything else is refused with its line and column: signs, fractions, exponents, text, empty cells, a row that is too
short or too long, a lone carriage return, a header that is not the contract's, a value out of the contract's bounds.

`open_csv` is the reader, for every stage that takes such a file; `ingest_csv` writes what it gives as Parquet.

Blocks that hold nothing but digits, commas and line ends are read as arrays; all others, and those where something does
not add up, line by line. pyarrow's own CSV reader takes 0x1F for a number, names no line, and is slower than this one.
"""

import gzip
import hashlib
import logging
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from io import BufferedReader
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from prefect import task

from schemas.contract import DatasetContract, Split, contract_of
from schemas.errors import CellProblem, DataContractError
from schemas.references import CsvFile, ParquetSplit
from tasks.stage import replaced, run_stage, sha256_file

logger = logging.getLogger(__name__)

Origin = Literal["supplied", "fetched"]
Rows = npt.NDArray[np.uint8]  # (N, columns)

_BLOCK_BYTES = 1 << 20  # the arrays made from one block stay within a processor's cache
# A file without line ends must not fill the memory. A line of 785 numbers takes at most 4 KB.
_LINE_BYTES = 1 << 20
_ROW_GROUP_ROWS = 16_384
_PROBLEMS_SHOWN = 10
_VALUE_CHARACTERS = 40

_BOM = b"\xef\xbb\xbf"
_GZIP = b"\x1f\x8b"
# Saved or downloaded in the wrong form: what people do most often, and a header's text would not tell them.
_FOREIGN = {
    b"PK\x03\x04": "a zip archive or a spreadsheet: unpack it, or save it as CSV",
    b"PAR1": "Parquet already: ingest reads CSV",
    b"\xff\xfe": "UTF-16 text: save it as CSV in UTF-8",
    b"\xfe\xff": "UTF-16 text: save it as CSV in UTF-8",
}

# The only bytes of a block that is read as an array, and of a line that int() is trusted with: of cells made of these,
# int() takes exactly the numbers that the grammar allows (elsewhere it takes 1_0, +5 and other alphabets).
_DIGITS_AND_ENDS = b"0123456789,\n"
_DIGITS_QUOTES_SPACES = b'0123456789," '
_ZERO = ord("0")
_NUMBER = re.compile(" *[0-9]+ *")
# A cell and the comma after it. What is not quoted as it should be is taken as it stands, and refused as a number.
_CELL = re.compile(' *"([^"]*)" *,|([^,]*),')


@dataclass(frozen=True)
class IngestFacts:
    """``rows`` written, and the digest of the source's bytes as they were read (compressed, if it was)."""

    rows: int
    sha256: str


@task(name="ingest", task_run_name="ingest {csv.split}")
def ingest(csv: CsvFile, dataset: str, artifacts_dir: Path) -> ParquetSplit:
    """One CSV to ``<split>.parquet`` in a stage folder under ``artifacts_dir/data``; see `ingest_csv` for its form.

    Raises `DataContractError` when the file breaks the contract of ``dataset`` or has changed since it was hashed.
    """
    contract = contract_of(dataset)
    name = f"{csv.split}.parquet"

    def produce(folder: Path) -> Mapping[str, Any]:
        facts = ingest_csv(csv.path, folder / name, contract, csv.split, origin=csv.origin, expected_sha256=csv.sha256)
        logger.info("%s: %d rows to Parquet", csv.path.name, facts.rows)
        return {"rows": facts.rows, "sha256": sha256_file(folder / name)}

    inputs = {"csv": csv.sha256, "split": csv.split, "dataset": dataset, "origin": csv.origin}
    record, facts = run_stage(artifacts_dir / "data", __name__, inputs, produce)
    return ParquetSplit(
        record=record,
        split=csv.split,
        path=record.path / name,
        sha256=facts["sha256"],
        rows=facts["rows"],
        origin=csv.origin,
        source=csv,
    )


def parquet_schema(contract: DatasetContract) -> pa.Schema:
    """The contract's columns in order, each uint8 and never null."""
    return pa.schema([pa.field(column, pa.uint8(), nullable=False) for column in contract.columns])


def ingest_csv(
    source: Path,
    target: Path,
    contract: DatasetContract,
    split: Split,
    *,
    origin: Origin = "supplied",
    expected_sha256: str | None = None,
) -> IngestFacts:
    """Write ``target`` as Parquet: one uint8 column for each of the contract's, row groups of at most 16,384 rows.

    A supplied file needs ``contract.minimum_rows[split]`` rows or more, a fetched one exactly as many as were
    published. ``expected_sha256`` is that of the file as it lies there.

    Raises `DataContractError`, and leaves no ``target``, when the file cannot be read, breaks the contract, or hashes
    to something else. Each bad cell is a problem, and so is each row of the wrong length, once: at the first column
    that it lacks, or at the number of the first value that is too many. A blank line is one at the first column.

    A wrong header, a line of more than 1 MiB and a damaged gzip end the reading, and are all that is reported.
    What is wrong with the file as a whole (empty, cut off, changed, too few rows) has no ``problems``.
    """
    with (
        replaced(target) as temporary,
        open_csv(source, contract, origin=origin, expected_sha256=expected_sha256) as csv,
    ):
        _write_parquet(csv, temporary, contract)
        _check_rows(source, csv.rows, contract, split, origin)
    return IngestFacts(csv.rows, csv.sha256)


def _write_parquet(csv: "CsvRows", path: Path, contract: DatasetContract) -> None:
    with pq.ParquetWriter(
        path,
        parquet_schema(contract),
        # Parquet keeps uint8 in 4 bytes; split into streams, three of them are zeros that LZ4 skips. On the real train
        # split that is half the time of zstd without streams to write, and to read, and fewer bytes.
        compression="lz4",
        use_dictionary=False,
        column_encoding=dict.fromkeys(contract.columns, "BYTE_STREAM_SPLIT"),
    ) as writer:
        groups = _RowGroups(writer)
        for rows in csv:
            groups.add(rows)
        groups.flush()


@contextmanager
def open_csv(
    source: Path,
    contract: DatasetContract,
    *,
    label_optional: bool = False,
    origin: Origin = "supplied",
    expected_sha256: str | None = None,
) -> Iterator["CsvRows"]:
    """The rows of a CSV in the form that this module describes, to be iterated over once; its header is read already.

    With ``label_optional`` the header may also be the contract's without the label column.

    Raises `DataContractError`: at once for what cannot be read or has a wrong header, from the iteration for what is
    wrong with the rows, and for a file that hashes to something else instead of either, or when the block ends.
    """
    with _open(source) as file:
        raw = _HashedFile(file, source)
        fault: DataContractError | None = None
        try:
            yield CsvRows(raw, contract, label_optional=label_optional, origin=origin)
        except DataContractError as error:
            fault = error
        raw.read_to_the_end()
        # First, because what is wrong inside a file that is still being written is wrong for that reason.
        if expected_sha256 not in (None, raw.sha256):
            raise DataContractError(
                f"{source} changed since it was first looked at: expected sha256 {expected_sha256}, "
                f"received {raw.sha256}. Run again when nothing writes to it."
            ) from fault
        if fault is not None:
            raise fault


class CsvRows:
    """The rows of one CSV, in file order, in memory that does not grow with the file; `open_csv` makes it.

    Iterating gives blocks of them: uint8 (N, len(columns)), N at least 1, every value within the contract's bounds.
    From the first problem on no block is given: the rest is read for more problems, and `DataContractError` ends the
    iteration.
    """

    def __init__(self, raw: "_HashedFile", contract: DatasetContract, *, label_optional: bool, origin: Origin) -> None:
        self._raw = raw
        self._origin = origin
        self._columns = contract.columns
        self._blocks = self._whole_lines()
        start = next(self._blocks, b"")
        _refuse_foreign(raw.path, start)
        header, _, self._first = start.removeprefix(_BOM).partition(b"\n")
        self._columns = _check_header(raw.path, header, contract, label_optional=label_optional)
        self._label_column = contract.label_column
        self._reader = _BlockReader(contract, self._columns)

    @property
    def columns(self) -> tuple[str, ...]:
        """The header's names, in order: the contract's, or these without the label."""
        return self._columns

    @property
    def labelled(self) -> bool:
        """Whether the first column is the label."""
        return self._columns[0] == self._label_column

    @property
    def rows(self) -> int:
        """How many were read so far."""
        return self._reader.rows

    @property
    def sha256(self) -> str:
        """Of the file as it lies there, compressed or not, once the block of `open_csv` has ended."""
        return self._raw.sha256

    def __iter__(self) -> Iterator[Rows]:
        for block in chain([self._first] if self._first else [], self._blocks):
            rows = self._reader.read(block)
            if len(rows) and not self._reader.count:
                yield rows
        if self._reader.count:
            raise _refusal(self._raw.path, self._reader.problems, self._reader.count, self._origin)

    def _whole_lines(self) -> Iterator[bytes]:
        """The content in whole lines, unpacked, with LF for CRLF. Only the last block may lack the end of its line."""
        raw = self._raw
        stream: Any = raw
        if raw.begins_with(_GZIP):
            stream = gzip.GzipFile(fileobj=stream, mode="rb")
        rest = b""
        line = 1
        while chunk := _unpacked(stream, raw.path):
            cut = chunk.rfind(b"\n") + 1
            block, rest = (rest + chunk[:cut], chunk[cut:]) if cut else (b"", rest + chunk)
            # Of a block's lines only the first can be longer than what is read at once.
            if max(block.find(b"\n"), len(rest)) > _LINE_BYTES:
                if block.find(b"\n") <= _LINE_BYTES:
                    line += block.count(b"\n")
                raise DataContractError(
                    f"{raw.path.name} line {line} is longer than {_LINE_BYTES} bytes: line ends were expected, and "
                    f"there are none. Correct {raw.path}, and run again.",
                    [
                        CellProblem(
                            line, self._columns[0], f"more than {_LINE_BYTES} bytes", "expected the end of the line"
                        )
                    ],
                )
            if block:
                line += block.count(b"\n")
                yield block.replace(b"\r\n", b"\n")
        if rest:
            yield rest


class _HashedFile:
    """The bytes of a file as they lie on disk, hashed as they pass."""

    def __init__(self, file: BufferedReader, path: Path) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self.path = path

    def begins_with(self, magic: bytes) -> bool:
        try:
            return self._file.peek(len(magic)).startswith(magic)
        except OSError as error:
            raise _unreadable(self.path, error) from error

    def read(self, size: int = -1) -> bytes:
        try:
            data = self._file.read(size)
        except OSError as error:
            raise _unreadable(self.path, error) from error
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
        return source.open("rb")
    except OSError as error:
        raise _unreadable(source, error) from error


def _unreadable(source: Path, error: OSError) -> DataContractError:
    return DataContractError(
        f"{source} cannot be read ({error.strerror or error}): expected a CSV file. "
        "Put one there that this user may read, and run again."
    )


def _unpacked(stream: Any, path: Path) -> bytes:
    try:
        data: bytes = stream.read(_BLOCK_BYTES)
    except EOFError as error:
        raise DataContractError(
            f"{path} is a gzip file that ends too early: it was probably cut off. Supply it anew, and run again."
        ) from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise DataContractError(f"{path} is a damaged gzip file ({error}). Supply it anew, and run again.") from error
    return data


class _RowGroups:
    """Gathers rows into row groups of one size, turned to columns, however the blocks fell."""

    def __init__(self, writer: pq.ParquetWriter) -> None:
        self._writer = writer
        self._columns = np.empty((len(writer.schema), _ROW_GROUP_ROWS), np.uint8)
        self._filled = 0

    def add(self, rows: Rows) -> None:
        while len(rows):
            taken = rows[: _ROW_GROUP_ROWS - self._filled]
            self._columns[:, self._filled : self._filled + len(taken)] = taken.T
            self._filled += len(taken)
            rows = rows[len(taken) :]
            if self._filled == _ROW_GROUP_ROWS:
                self.flush()

    def flush(self) -> None:
        if self._filled:
            columns = [pa.array(column) for column in self._columns[:, : self._filled]]
            self._writer.write_table(pa.Table.from_arrays(columns, schema=self._writer.schema))
        self._filled = 0


class _BlockReader:
    """Turns blocks of whole lines into rows, and counts what is wrong with them; ``problems`` are the first."""

    def __init__(self, contract: DatasetContract, columns: tuple[str, ...]) -> None:
        self._columns = columns
        self._bounds = [contract.bounds(column) for column in columns]
        # A value of one byte is within 0 .. 255; only narrower columns are looked at again.
        self._narrow = [(at, low, high) for at, (low, high) in enumerate(self._bounds) if (low, high) != (0, 255)]
        self._blank: list[int] = []  # lines, of which the first ones are kept
        self._blank_count = 0
        self._line = 1  # the header's
        self.rows = 0
        self.problems: list[CellProblem] = []
        self.count = 0

    def read(self, block: bytes) -> Rows:
        """The rows of a block, uint8, (N, columns); incomplete once there are problems."""
        rows = self._as_array(block)
        if rows is None:
            rows = self._by_line(block)
        else:
            self._line += len(rows)
        self.rows += len(rows)
        return rows

    def _as_array(self, block: bytes) -> Rows | None:
        """All rows at once, or None where anything is unusual, be it right or wrong."""
        if self._blank_count or block.translate(None, _DIGITS_AND_ENDS):
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
        lines = block.removesuffix(b"\n").split(b"\n")
        for position, line in enumerate(lines):
            self._line += 1
            if not line.strip(b" "):
                self._blank_count += 1
                if len(self._blank) < _PROBLEMS_SHOWN:
                    self._blank.append(self._line)
                continue
            self._report_blank_lines()
            values = self._row(line)
            if values is None:
                cut_off = position == len(lines) - 1 and not block.endswith(b"\n")
                values = self._row_looked_at_closely(line, cut_off=cut_off)
            if not self.count:
                good += values
        return np.frombuffer(good, np.uint8).reshape(-1, len(self._columns))

    def _row(self, line: bytes) -> bytes | None:
        """The values, one byte each, or None where anything is unusual."""
        if line.translate(None, _DIGITS_QUOTES_SPACES):
            return None
        cells = _cells(line.decode()) if b'"' in line else line.split(b",")
        if len(cells) != len(self._columns):
            return None
        try:
            values = bytes(map(int, cells))
        except ValueError:  # not a number, above 255, or of thousands of digits
            return None
        return values if all(low <= values[at] <= high for at, low, high in self._narrow) else None

    def _row_looked_at_closely(self, line: bytes, *, cut_off: bool) -> bytes:
        """The values that are right, and a report of each that is not."""
        cells = _cells(line.decode("utf-8", "backslashreplace"))
        expected = len(self._columns)
        if len(cells) != expected:
            column = self._columns[len(cells)] if len(cells) < expected else str(expected + 1)
            note = " (the file was probably cut off)" if cut_off and len(cells) < expected else ""
            self._report(column, f"{len(cells)} values", f"expected {expected} values{note}")
            return b""
        values = bytearray()
        for column, cell, (low, high) in zip(self._columns, cells, self._bounds, strict=True):
            number = _number(cell) if len(cell) <= _VALUE_CHARACTERS else _number.__wrapped__(cell)
            if number is not None and low <= number <= high:
                values.append(number)
            elif len(self.problems) < _PROBLEMS_SHOWN:
                self._report(column, _shown(cell), f"expected an integer {low}..{high}")
            else:
                self.count += 1
        return bytes(values)

    def _report_blank_lines(self) -> None:
        for line in self._blank:
            self._report(self._columns[0], "a blank line", f"expected {len(self._columns)} values", line)
        self.count += self._blank_count - len(self._blank)
        self._blank, self._blank_count = [], 0

    def _report(self, column: str, value: str, reason: str, line: int | None = None) -> None:
        self.count += 1
        if len(self.problems) < _PROBLEMS_SHOWN:
            self.problems.append(CellProblem(line or self._line, column, value, reason))


def _cells(text: str) -> list[str]:
    """The cells of a line without its end; what stood within quotes comes without them."""
    if '"' not in text:
        return text.split(",")
    # All cells quoted, none with a comma or a quote inside: the one form worth a shorter way.
    cells = text[1:-1].split('","')
    whole = text.startswith('"') and text.endswith('"') and len(text) > 1
    if whole and text.count('"') == 2 * len(cells) == 2 * (text.count(",") + 1):
        return cells
    return [quoted or plain for quoted, plain in _CELL.findall(text + ",")]


@lru_cache(maxsize=4096)  # a file that is wrong throughout repeats itself
def _number(cell: str) -> int | None:
    """What a cell stands for, or None. Four digits at most reach int(): enough, and it refuses thousands."""
    return int(cell.strip(" ").lstrip("0")[:4] or "0") if _NUMBER.fullmatch(cell) else None


def _shown(value: str) -> str:
    """A value as messages show it: short, and a line of its own never."""
    text = value if re.fullmatch(r"[-+.0-9]+", value, re.ASCII) else repr(value[: _VALUE_CHARACTERS + 1])
    return text if len(text) <= _VALUE_CHARACTERS else f"{text[: _VALUE_CHARACTERS - 2]}.."


def _refuse_foreign(path: Path, start: bytes) -> None:
    if not start:
        raise DataContractError(
            f"{path} is empty: expected a header line and rows. Supply the file anew, and run again."
        )
    for magic, what in _FOREIGN.items():
        if start.startswith(magic):
            raise DataContractError(f"{path} is not a CSV but {what}; then run again.")


def _check_header(path: Path, line: bytes, contract: DatasetContract, *, label_optional: bool) -> tuple[str, ...]:
    """The columns that the header names, if they are the contract's. The first name decides if a label is expected."""
    received = tuple(cell.strip(" ") for cell in _cells(line.decode("utf-8", "backslashreplace")))
    unlabelled = contract.columns[1:]
    expected = unlabelled if label_optional and received[0] == unlabelled[0] else contract.columns
    if received == expected:
        return expected
    position = next(at for at, (one, other) in enumerate(zip_longest(expected, received)) if one != other)
    problem = CellProblem(
        line=1,
        column=expected[position] if position < len(expected) else str(position + 1),
        value=_shown(received[position]) if position < len(received) else "nothing",
        reason=(
            ("expected this name in the header" if position < len(expected) else "expected the end of the header")
            + f" ({_header_fault(expected, received)})"
        ),
    )
    raise DataContractError(
        f"{path.name} {problem}.\n"
        f"The header must name {len(expected)} columns in this order: {', '.join(expected[:3])} .. {expected[-1]}. "
        + (f"The column {contract.label_column}, the first, may be left out. " if label_optional else "")
        + f"Correct {path}, and run again.",
        [problem],
    )


def _header_fault(expected: Sequence[str], received: Sequence[str]) -> str:
    if all(re.fullmatch("[0-9]+", name) for name in received):
        return "the header is missing: the first line holds numbers"
    twice = [name for name, times in Counter(received).items() if times > 1]
    if twice:
        return f"column {_shown(twice[0])} stands there more than once"
    missing = [name for name in expected if name not in set(received)]
    extra = [name for name in received if name not in set(expected)]
    if not missing and not extra:
        return "all columns are there, but in another order"
    return "; ".join(
        f"{word} {_shown(names[0])}" + (f" and {len(names) - 1} more" if len(names) > 1 else "")
        for word, names in (("missing:", missing), ("unexpected:", extra))
        if names
    )


def _check_rows(path: Path, rows: int, contract: DatasetContract, split: Split, origin: str) -> None:
    if origin == "fetched":
        published = contract.published[split].rows
        if rows != published:
            raise DataContractError(
                f"{path.name} has {rows} rows: expected the {published} of the {split} split as it was published. "
                f"Delete {path}, and run again to fetch it anew."
            )
    elif rows < contract.minimum_rows[split]:
        raise DataContractError(
            f"{path.name} has {rows} rows: expected at least {contract.minimum_rows[split]} for the {split} split. "
            f"Add rows to {path}, or supply another file, and run again."
        )


def _refusal(path: Path, problems: Sequence[CellProblem], count: int, origin: str) -> DataContractError:
    told = [f"{path.name} {problem}" for problem in problems]
    if count > len(problems):
        told.append(f".. and {count - len(problems)} more")
    cure = "Delete it, and run again to fetch it anew." if origin == "fetched" else "Correct it, and run again."
    return DataContractError("\n".join([*told, f"Nothing was taken from {path}. {cure}"]), problems, count)
