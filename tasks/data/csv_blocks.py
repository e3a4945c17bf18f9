"""Parse blocks of whole CSV lines into rows, and report the bad ones by line and column."""

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import numpy as np
import numpy.typing as npt

from schemas.contract import DatasetContract
from schemas.errors import CellProblem, DataContractError
from tasks.data.csv_cells import (
    MAX_SHOWN,
    Line,
    cell_note,
    column_at,
    parse_cell,
    parse_label,
    parse_line,
    scale_cause,
    shorten,
)
from tasks.data.quarantine import BadRow

Rows = npt.NDArray[np.uint8]  # (N, columns)

# A file without line ends, or with a quote left open, must not fill the memory. A row of 785 numbers takes 4 KB.
MAX_LINE_BYTES = 1 << 20
# Blank lines are bad rows, except at the end of the file. Up to this many are held back until that is known.
_MAX_BLANK_LINES = 10_000
PROBLEMS_SHOWN = 10

# The bytes of a block that is parsed as an array, and of a line that int() may parse. For cells of these bytes int()
# accepts exactly the numbers of the format; in general it also accepts 1_0, +5 and digits of other alphabets.
_DIGITS_AND_ENDS = b"0123456789,\n"
_DIGITS_QUOTES_SPACES = b'0123456789," '
_ZERO = ord("0")

SAVE_WITHOUT_INDEX = "save it with to_csv(.., index=False)"


@dataclass
class Tally:
    """Counts and problems of the rows of a CSV that were read so far.

    rows: number of good rows.
    count: number of bad cells; a row of the wrong length counts as one.
    problems: the first ten of these.
    classes: bool (256,), True for each class of a good row.
    bad_labels: up to two different cells that are no label.
    causes: number of bad rows by what they have, with the cure, in words; None if that is unknown.
    """

    rows: int = 0
    count: int = 0
    problems: list[CellProblem] = field(default_factory=list)
    classes: npt.NDArray[np.bool_] = field(default_factory=lambda: np.zeros(256, bool))
    bad_labels: set[str] = field(default_factory=set)
    causes: Counter[str | None] = field(default_factory=Counter)


class BlockParser:
    """Parser of the blocks of one CSV, in file order. Bad rows are passed to ``on_bad_row``."""

    def __init__(
        self, contract: DatasetContract, columns: tuple[str, ...], path: Path, on_bad_row: Callable[[BadRow], None]
    ) -> None:
        """``columns`` are those of the file, in its order."""
        self._class_of: dict[int | None, int] = {label: at for at, label in enumerate(contract.class_labels)}
        self._label_ranges = contract.label_ranges
        # The same for the labels that fit into a byte, for arrays.
        self._classes, self._is_label = np.zeros(256, np.uint8), np.zeros(256, bool)
        for at, label in enumerate(contract.class_labels):
            if 0 <= label < 256:
                self._classes[label], self._is_label[label] = at, True
        self.tally = Tally()
        self._columns = columns
        self._label_at = columns.index(contract.label_column) if contract.label_column in columns else None
        self._bounds = [contract.bounds(column) for column in columns]
        self._pixel_range = contract.pixel_min, contract.pixel_max
        # Every byte is within 0..255; only columns with narrower bounds need a check.
        self._narrow = [
            (at, low, high)
            for at, (low, high) in enumerate(self._bounds)
            if (low, high) != (0, 255) and at != self._label_at
        ]
        self._path = path
        self._on_bad_row = on_bad_row
        self._blank: list[tuple[int, bytes]] = []  # blank lines that may turn out to be the end of the file
        self._blank_run = self._blank_bytes = 0  # since the last line that is not blank
        self._line = int(contract.has_header)  # number of the last line that was read; 1 is the header
        self._first_row = self._line + 1
        self._open = bytearray()  # lines so far of a row whose quotes are open
        self._open_line = 0  # number of the first of these

    def parse(self, block: bytes) -> Rows:
        """Return the good rows of a block, uint8 (N, columns), with classes in place of labels."""
        rows = self._parse_array(block.replace(b"\r\n", b"\n"))
        if rows is None:
            good = b"".join(map(self._parse_line, BytesIO(block)))
            rows = np.frombuffer(good, np.uint8).reshape(-1, len(self._columns))
        else:
            self._line += len(rows)
        self.tally.rows += len(rows)
        if self._label_at is not None:
            self.tally.classes[rows[:, self._label_at]] = True
        return rows

    def finish(self) -> None:
        """Raise `DataContractError` if a quote is open at the end of the file."""
        if self._open:
            raise self._open_quote_error("before the file ends")

    def _parse_array(self, block: bytes) -> Rows | None:
        """Return all rows of a block of plain numbers, or None if anything in it is unusual, right or wrong."""
        if self._blank or self._open or block.translate(None, _DIGITS_AND_ENDS):
            return None
        # Two leading zeros take the place of the tens and hundreds that the first cell may lack.
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
        if self._label_at is not None:
            labels = rows[:, self._label_at]
            if not self._is_label[labels].all():
                return None
            rows[:, self._label_at] = self._classes[labels]
        return rows

    def _parse_line(self, raw: bytes) -> bytes:
        """Return the values, one byte each, of the row that ends with this line; nothing for a bad or an open row."""
        self._line += 1
        line = raw[:-1].removesuffix(b"\r") if raw.endswith(b"\n") else raw
        if self._open:
            return self._continue_row(line, raw)
        if not line.strip(b" "):
            self._hold_back(raw)
            return b""
        self._reject_blank_lines()
        self._blank_run = self._blank_bytes = 0
        parsed = parse_line(line)
        if parsed.open_quote:
            self._open, self._open_line = bytearray(raw), self._line
            return b""
        return self._parse_row(self._line, line, raw, parsed)

    def _continue_row(self, line: bytes, raw: bytes) -> bytes:
        """Do the same as `_parse_line` for a line that begins within quotes."""
        self._open += raw
        if len(self._open) > MAX_LINE_BYTES:
            raise self._open_quote_error(f"within {MAX_LINE_BYTES} bytes")
        if parse_line(b'"' + line).open_quote:
            return b""
        row, self._open = bytes(self._open), bytearray()
        line = row[: len(row) - len(raw) + len(line)]
        return self._parse_row(self._open_line, line, row, parse_line(line))

    def _open_quote_error(self, where: str) -> DataContractError:
        *before, opened = parse_line(bytes(self._open)).cells
        line = self._open_line + self._open.count(b"\n") - opened.count("\n")
        reason = f"expected the quote that opens here to be closed {where}"
        return unusable(self._path, [self._problem(line, len(before), shorten(opened), reason)])

    def _problem(self, line: int, at: int, shown: str, reason: str) -> CellProblem:
        return CellProblem(line, column_at(self._columns, at), shown, reason, self._path.name)

    def _parse_row(self, first_line: int, line: bytes, raw: bytes, parsed: Line) -> bytes:
        """Return the values of a good row, one byte each. Reject a bad row, and return nothing.

        ``raw`` is ``line`` with its line end. Quoted line ends make it several lines, of which the first is number
        ``first_line``.
        """
        cells = parsed.cells
        if len(cells) != len(self._columns):
            self._reject_length(first_line, line, raw, parsed)
            return b""
        if not line.translate(None, _DIGITS_QUOTES_SPACES):
            with suppress(ValueError, KeyError):  # not a number, above 255, of thousands of digits, or no label
                values = bytearray(map(int, cells))
                if self._label_at is not None:
                    values[self._label_at] = self._class_of[values[self._label_at]]
                if all(low <= values[at] <= high for at, low, high in self._narrow):
                    return bytes(values)
        numbers = bytearray()
        bad: list[int] = []
        for at, (cell, (low, high)) in enumerate(zip(cells, self._bounds, strict=True)):
            number = self._class_of.get(parse_label(cell)) if at == self._label_at else parse_cell(cell)
            if number is not None and low <= number <= high:
                numbers.append(number)
            else:
                bad.append(at)
        if not bad:
            return bytes(numbers)
        if self._label_at in bad and len(self.tally.bad_labels) < 2:
            self.tally.bad_labels.add(cells[self._label_at].strip(" ")[:MAX_SHOWN])
        problems = []
        for at in bad[: max(1, PROBLEMS_SHOWN - len(self.tally.problems))]:
            allowed = self._label_ranges if at == self._label_at else "{}..{}".format(*self._bounds[at])
            reason = f"expected an integer {allowed}{cell_note(cells[at])}"
            problems.append(self._problem(first_line, at, shorten(cells[at]), reason))
        pixels = [cell for at, cell in enumerate(cells) if at != self._label_at]
        self._reject(raw, cells[bad[0]], problems, len(bad), scale_cause(pixels, *self._pixel_range))
        return b""

    def _reject_length(self, first_line: int, line: bytes, raw: bytes, parsed: Line) -> None:
        at, note, cause = len(parsed.cells), "", None
        value = shown = f"{at} values"
        if parsed.lone_return is not None:
            # It explains the number of cells: two lines in one, or one line in two.
            at, value = parsed.lone_return, parsed.cells[parsed.lone_return]
            shown, note = shorten(value), cell_note(value)
        elif inside := line.count(b"\n"):
            note = f" (quotes hold {inside} line ends: is one left open?)"
        elif at < len(self._columns) and not raw.endswith(b"\n"):
            note = " (the file was probably cut off)"
        elif at == len(self._columns) + 1 and parse_label(parsed.cells[0]) == first_line - self._first_row:
            cause = f"their number as first of {at} cells, like the index of a pandas DataFrame: {SAVE_WITHOUT_INDEX}"
        reason = f"expected {len(self._columns)} values in a row{note}"
        self._reject(raw, value, [self._problem(first_line, at, shown, reason)], cause=cause)

    def _hold_back(self, raw: bytes) -> None:
        self._blank.append((self._line, raw))
        self._blank_run += 1
        self._blank_bytes += len(raw)
        # More than this is not the end of a file, and would fill the memory.
        if self._blank_run > _MAX_BLANK_LINES or self._blank_bytes > MAX_LINE_BYTES:
            self._reject_blank_lines()

    def _reject_blank_lines(self) -> None:
        shown, reason = "a blank line", f"expected {len(self._columns)} values in a row"
        for line, raw in self._blank:
            self._reject(raw, shown, [self._problem(line, 0, shown, reason)])
        self._blank = []

    def _reject(
        self, raw: bytes, value: str, problems: Sequence[CellProblem], bad_cells: int = 1, cause: str | None = None
    ) -> None:
        """Count and pass on a bad row. ``problems`` has at least the first of its ``bad_cells``, which is ``value``."""
        first = problems[0]
        self.tally.causes[cause] += 1
        self.tally.count += bad_cells
        self.tally.problems += problems[: PROBLEMS_SHOWN - len(self.tally.problems)]
        self._on_bad_row(BadRow(first.line, raw, first.column, value, first.reason, bad_cells))


def most_common_cause(causes: Counter[str | None]) -> str | None:
    """Return a sentence with cause and cure if they are the same for most bad rows. causes: see `Tally`."""
    cause, rows = max(causes.items(), key=lambda entry: entry[1], default=(None, 0))
    if cause is None or rows <= causes.total() / 2:
        return None
    return f"{rows} of {causes.total()} bad rows have {cause}."


def list_problems(problems: Sequence[CellProblem], count: int, cause: str | None = None) -> list[str]:
    """Return one line per problem, and one with the number of the others. With a ``cause``, list only the first."""
    shown = problems if cause is None else problems[:1]
    more = [f".. and {count - len(shown)} more"] if count > len(shown) else []
    return [*map(str, shown), *more, *([] if cause is None else [cause])]


def unusable(
    path: Path, problems: Sequence[CellProblem], count: int = 1, cause: str | None = None
) -> DataContractError:
    """Return the error for a CSV with ``count`` problems, of which ``problems`` are the first."""
    lines = [*list_problems(problems, count, cause), f"{path} was not used. Correct it, and run again."]
    return DataContractError("\n".join(lines), problems, count)
