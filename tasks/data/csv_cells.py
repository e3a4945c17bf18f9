"""Split a line of a CSV into cells, and parse a cell."""

import csv
import re
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

MAX_SHOWN = 40  # characters of a value in a message

BOM = b"\xef\xbb\xbf"
LONE_RETURN = "a lone carriage return, which ends no line: save the file with LF or CRLF"
_NUMBER = re.compile(" *0*([0-9]{1,3}) *")
_LABEL = re.compile(" *(-?)0*([0-9]{1,18}) *")
_ROUND = "round them, and save them as integers"
_FLOAT, _NOT_OF_A_FLOAT = re.compile("[.eE]"), re.compile("[^-+.eE0-9 ]")
# Text up to a comma, a lone carriage return or the end. Groups: the text, what its quotes contain, the closing quote
# (empty if the quote is left open), text after that, and what ends it.
_PART = re.compile(r'((?: *+"([^"]*+(?:""[^"]*+)*+)("|\Z))?([^,\r]*+))([,\r]?)')


class Line(NamedTuple):
    """The cells of a line.

    open_quote: whether a quote is still open at the end; the last cell is then the text from this quote on.
    lone_return: index of the first cell that has a carriage return outside quotes.
    """

    cells: list[str]
    open_quote: bool = False
    lone_return: int | None = None


def parse_line(line: bytes) -> Line:
    """Return the cells of a line, which comes without its line end and may contain others within quotes.

    A cell within quotes is returned without them. A cell with text after its quotes, or with a lone carriage return, is
    returned unchanged, so that it is no number.
    """
    text = line.decode("utf-8", "backslashreplace")
    # csv.reader ends a row at a carriage return, and reads a quote after a space as text.
    if "\r" not in text and ' "' not in text:
        if '"' not in text:
            return Line(text.split(","))
        # It also rejects text after quotes, open quotes, and cells of more than 131,072 characters.
        with suppress(csv.Error):
            return Line(next(csv.reader([text], strict=True)))
    cells: list[str] = []
    parts: list[str] = []  # of a cell with lone carriage returns
    lone_return = None
    for part, quoted, closing, after, end in _PART.findall(text):
        if end == "\r":
            lone_return = len(cells) if lone_return is None else lone_return
            parts += part, end
            continue
        is_quoted = closing and not parts and not after.strip(" ")
        cells.append(quoted.replace('""', '"') if is_quoted else "".join([*parts, part]))
        parts.clear()
        if not end:
            break
    opened = part.lstrip(" ")
    open_quote = opened.startswith('"') and not closing
    return Line([*cells[:-1], opened] if open_quote else cells, open_quote, lone_return)


def column_at(columns: Sequence[str], index: int) -> str:
    """Return the name of the column at ``index``, or the number, from 1, of the first cell beyond the last column."""
    return columns[index] if index < len(columns) else str(len(columns) + 1)


def cell_note(text: str, what: str = "cell") -> str:
    """Return a remark on characters of a cell or line that are invisible in an editor, or an empty string."""
    if "\0" in text:
        return f" (the {what} holds a NUL byte)"
    if "\n" in text:
        return f" (the {what} holds a line end: its quotes close in a later line)"
    return f" (the {what} holds {LONE_RETURN})" if "\r" in text else ""


def parse_cell(cell: str) -> int | None:
    """Return the number in a cell, or None if it is no number from 0 to 999."""
    match = _NUMBER.fullmatch(cell)
    return int(match[1]) if match else None


def parse_label(cell: str) -> int | None:
    """Return the number in a cell, which may be negative or have up to 18 digits, or None if it is none."""
    match = _LABEL.fullmatch(cell)
    return int(match[1] + match[2]) if match else None


def scale_cause(cells: Sequence[str], low: int, high: int) -> str | None:
    """Return in words the scale of pixels that are no integers ``low`` .. ``high``, and how to make such integers.

    Return None if all are integers, one is no number, or the scale is unknown.
    """
    text = "".join(cells)
    if _NOT_OF_A_FLOAT.search(text) or not _FLOAT.search(text):
        return None
    try:
        values = [float(cell) for cell in cells]
    except ValueError:
        return None
    for start, end in ((0, 1), (-1, 1)):
        if start <= min(values) and max(values) <= end < high:
            moved = "" if start == 0 else f"add {-start} to them, "
            added = "" if low == 0 else f"add {low}, "
            factor = (high - low) / (end - start)
            return f"pixels from {start} to {end}: {moved}multiply them by {factor:g}, {added}{_ROUND}"
    return f"pixels with decimals: {_ROUND}" if low <= min(values) and max(values) <= high else None


def shorten(value: str) -> str:
    """Return a value for a message: at most `MAX_SHOWN` characters, on one line."""
    text = value if re.fullmatch(r"[-+.0-9]+", value, re.ASCII) else repr(value[: MAX_SHOWN + 1])
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 2]}.."
