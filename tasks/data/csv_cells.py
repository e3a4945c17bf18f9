"""Split a CSV line into cells, and read a cell as a number."""

import re
from collections.abc import Sequence
from functools import lru_cache

VALUE_CHARACTERS = 40

BOM = b"\xef\xbb\xbf"
_NUMBER = re.compile(" *[0-9]+ *")
# A cell and the comma after it. What stands behind closed quotes belongs to the cell, as csv has it; such a cell is
# taken as it stands, and refused as a number. So is one with a lone carriage return, to which all that follows up to
# the next comma belongs; quotes behind it may hold commas, as they do for csv, to which it ends a row.
_QUOTED = '"[^"]*+(?:""[^"]*+)*+'
_PART = rf'(?: *+{_QUOTED}"[^,\r]*+|[^,\r]*+)'
_CELL = re.compile(rf' *"([^"]*+(?:""[^"]*+)*+)" *,|({_PART}(?:\r{_PART})*+),')
# A cell and what ends it, to csv a lone carriage return, too. The group is there where its quotes are left open.
_CELL_OR_OPEN = re.compile(rf' *+{_QUOTED}(?:"[^,\r]*+|(\Z))[,\r]?|[^,\r]*+[,\r]?'.encode())
CARRIAGE_RETURN = "a lone carriage return, which ends no line: save the file with LF or CRLF"


def column_at(columns: Sequence[str], number: int) -> str:
    """Its name, ``number`` from 0; past the last one, from 1 the number of the first that is too many."""
    return columns[number] if number < len(columns) else str(len(columns) + 1)


def split_cells(line: bytes) -> list[str]:
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


def open_quote(text: bytes) -> int | None:
    """Where the quote stands that is still open at the end of ``text``, which begins where a cell does."""
    for cell in _CELL_OR_OPEN.finditer(text):
        if cell[1] is not None:
            return text.index(b'"', cell.start())
    return None


def lone_return(line: bytes) -> int | None:
    """The number, from 0, of the first cell with a carriage return outside of quotes, in a line without its end."""
    for number, cell in enumerate(_CELL_OR_OPEN.finditer(line)):
        if cell[0].endswith(b"\r"):
            return number
    return None


def cell_note(cell: str) -> str:
    if "\0" in cell:
        return " (the cell holds a NUL byte)"
    if "\n" in cell:
        return " (the cell holds a line end: its quotes close in a later line)"
    return f" (the cell holds {CARRIAGE_RETURN})" if "\r" in cell else ""


@lru_cache(maxsize=4096)  # a file that is wrong throughout repeats itself
def parse_cell(cell: str) -> int | None:
    """What a cell stands for, or None. Four digits at most reach int(): enough, and it refuses thousands."""
    return int(cell.strip(" ").lstrip("0")[:4] or "0") if _NUMBER.fullmatch(cell) else None


def shorten(value: str) -> str:
    """A value as messages show it: short, and a line of its own never."""
    text = value if re.fullmatch(r"[-+.0-9]+", value, re.ASCII) else repr(value[: VALUE_CHARACTERS + 1])
    return text if len(text) <= VALUE_CHARACTERS else f"{text[: VALUE_CHARACTERS - 2]}.."
