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
import stat
import zlib
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import contextmanager, suppress
from io import BufferedReader
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from schemas.contract import DatasetContract
from schemas.errors import CellProblem, DataContractError, UnreadableData
from tasks.data.csv_cells import (
    BOM,
    LONE_RETURN,
    MAX_SHOWN,
    Line,
    cell_note,
    column_at,
    parse_cell,
    parse_line,
    shorten,
)
from tasks.data.csv_header import GZIP_MAGIC, SIGNATURE_BYTES, check_header, refuse_foreign
from tasks.data.quarantine import BadRow, Quarantine
from tasks.runtime.files import sha256_file

Rows = npt.NDArray[np.uint8]  # (N, columns)

_BLOCK_BYTES = 1 << 20  # the arrays made from one block stay within a processor's cache
# Files without line ends, or with a quote left open, must not fill the memory. A row of 785 numbers takes 4 KB.
_LINE_BYTES = 1 << 20
# Blank lines are bad rows unless the file ends with them: so many are held back until that is known.
_BLANK_LINES = 10_000
PROBLEMS_SHOWN = 10

# The only bytes of a block that is read as an array, and of a line that int() is trusted with: of cells made of these,
# int() takes exactly the numbers that the grammar allows (elsewhere it takes 1_0, +5 and other alphabets).
_DIGITS_AND_ENDS = b"0123456789,\n"
_DIGITS_QUOTES_SPACES = b'0123456789," '
_ZERO = ord("0")


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
    before = file_stamp(source)
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
        require_unchanged(source, before, expected_sha256, fault)
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
        header, ended, self._first = next(self._blocks, b"").removeprefix(BOM).partition(b"\n")
        header = header.removesuffix(b"\r") if ended else header
        self._in_file = check_header(raw.path, header, contract, label_optional=label_optional)
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
                        *list_problems(self.problems, self.count),
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
        if raw.peek(len(GZIP_MAGIC)).startswith(GZIP_MAGIC):
            stream = gzip.GzipFile(fileobj=stream, mode="rb")
        refuse_foreign(raw.path, _unpacked(stream.peek, SIGNATURE_BYTES, raw.path), self._in_file[0])
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
            else f" (it holds {LONE_RETURN})"
            if b"\r" in text
            else ""
        )
        problem = CellProblem(
            line,
            column_at(self._in_file, len(parse_line(text).cells) - 1),
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


def file_stamp(path: Path) -> tuple[int, int, int, int] | None:
    """What changes with a file's content, also where another file takes its name; None where none can be found."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def require_unchanged(
    path: Path,
    before: tuple[int, int, int, int] | None,
    expected_sha256: str | None,
    fault: DataContractError | None = None,
) -> None:
    """Raises `DataContractError` where the file is another than ``before`` it was read.

    One that was written anew with the same content is the same to whoever knows its digest.
    """
    if file_stamp(path) == before:
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
        parsed = parse_line(line)
        if parsed.open_quote:
            self._open, self._open_line = bytearray(raw), self._line
            return b""
        return self._row(self._line, line, raw, parsed)

    def _joined(self, line: bytes, raw: bytes) -> bytes:
        """As `_values`, of a line that begins within quotes: it belongs to the row in which they were opened."""
        self._open += raw
        if len(self._open) > _LINE_BYTES:
            raise self._never_closed(f"within {_LINE_BYTES} bytes")
        if parse_line(b'"' + line).open_quote:
            return b""
        row, self._open = bytes(self._open), bytearray()
        line = row[: len(row) - len(raw) + len(line)]
        return self._row(self._open_line, line, row, parse_line(line))

    def _never_closed(self, where: str) -> DataContractError:
        *before, opened = parse_line(bytes(self._open)).cells
        problem = CellProblem(
            self._open_line + self._open.count(b"\n") - opened.count("\n"),
            column_at(self._columns, len(before)),
            shorten(opened),
            f"expected the quote that opens here to be closed {where}",
            self._path.name,
        )
        return DataContractError(
            f"{problem}. Nothing was taken from {self._path}. Correct it, and run again.", [problem]
        )

    def _row(self, first_line: int, line: bytes, raw: bytes, parsed: Line) -> bytes:
        """The values, one byte each, if all of them are right, else nothing, and a report of each that is not.

        ``line`` is ``raw`` without its last end; it may be more than one, of which the first is number ``first_line``.
        """
        cells = parsed.cells
        if len(cells) != len(self._columns):
            self._set_aside(first_line, raw, [self._wrong_length(parsed, line, raw)])
            return b""
        if not line.translate(None, _DIGITS_QUOTES_SPACES):
            with suppress(ValueError):  # not a number, above 255, or of thousands of digits
                row = bytes(map(int, cells))
                if all(low <= row[at] <= high for at, low, high in self._narrow):
                    return row
        values = bytearray()
        wrong: list[_Fault] = []
        told = max(1, PROBLEMS_SHOWN - len(self.problems))
        bad_cells = 0
        for column, cell, (low, high) in zip(self._columns, cells, self._bounds, strict=True):
            number = parse_cell(cell) if len(cell) <= MAX_SHOWN else parse_cell.__wrapped__(cell)
            if number is not None and low <= number <= high:
                values.append(number)
                continue
            bad_cells += 1
            if column == self._label and len(self.bad_labels) < 2:
                self.bad_labels.add(cell.strip(" ")[:MAX_SHOWN])
            if len(wrong) < told:
                wrong.append(_Fault(column, cell, shorten(cell), f"expected an integer {low}..{high}{cell_note(cell)}"))
        if not wrong:
            return bytes(values)
        self._set_aside(first_line, raw, wrong, bad_cells)
        return b""

    def _wrong_length(self, parsed: Line, line: bytes, raw: bytes) -> _Fault:
        cells, expected = parsed.cells, len(self._columns)
        if (at := parsed.lone_return) is not None:
            # Why there are too many cells, or too few: two lines in one, or one in two.
            cell = cells[at]
            return _Fault(
                column_at(self._columns, at),
                cell,
                shorten(cell),
                f"expected {expected} values in a line{cell_note(cell)}",
            )
        column = column_at(self._columns, len(cells))
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
        for fault in wrong[: PROBLEMS_SHOWN - len(self.problems)]:
            self.problems.append(CellProblem(line, fault.column, fault.shown, fault.reason, self._path.name))
        self._reject(BadRow(line, raw, wrong[0].column, wrong[0].value, wrong[0].reason, bad_cells))


def list_problems(problems: Sequence[CellProblem], count: int) -> list[str]:
    more = [f".. and {count - len(problems)} more"] if count > len(problems) else []
    return [*map(str, problems), *more]
