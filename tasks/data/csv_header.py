"""Check the header of a CSV, and name the likely cause when it is wrong."""

import re
from collections.abc import Sequence
from pathlib import Path

from schemas.contract import DatasetContract
from schemas.errors import CellProblem, DataContractError
from tasks.data.csv_cells import BOM, LONE_RETURN, Line, parse_line, shorten

GZIP_MAGIC = b"\x1f\x8b"
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
    GZIP_MAGIC: "gzip within gzip: unpack it once",
    b"BZh": _UNPACK,
    b"\xfd7zXZ": _UNPACK,
    b"\x28\xb5\x2f\xfd": _UNPACK,
    b"7z\xbc\xaf": _UNPACK,
    b"<": "a web page or XML, such as the login page of a site that it was downloaded from: download the file itself",
}
SIGNATURE_BYTES = 64
_CONTROL = bytes({*range(32), 127} - set(b"\t\r"))


def refuse_foreign(path: Path, start: bytes, first_column: str) -> None:
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
        if start.removeprefix(BOM).lstrip().startswith(sign):
            raise DataContractError(f"{path} is not a CSV but {what}; then run again.")


def check_header(path: Path, line: bytes, contract: DatasetContract, *, label_optional: bool) -> tuple[str, ...]:
    """The columns that the header names, in its order, if they are the contract's."""
    parsed = parse_line(line)
    received = tuple(cell.strip(" ") for cell in parsed.cells)
    expected = contract.columns
    if label_optional and contract.label_column not in received and received[0] in expected:
        expected = expected[1:]
    if received == expected:
        return received
    if sorted(received) == sorted(expected):
        return received
    problem = _header_problem(path, line, parsed, expected, received)
    raise DataContractError(
        f"{problem}.\n"
        f"The header must name {len(expected)} columns, in any order: {', '.join(expected[:3])} .. {expected[-1]}. "
        + (f"The column {contract.label_column} may be left out. " if label_optional else "")
        + f"Correct {path}, and run again.",
        [problem],
    )


def _header_problem(
    path: Path, line: bytes, parsed: Line, expected: Sequence[str], received: Sequence[str]
) -> CellProblem:
    """What is wrong with the names, where it is first, and why that may be."""
    places: dict[str, list[int]] = {}
    for number, name in enumerate(received, start=1):
        places.setdefault(name, []).append(number)
    missing = [name for name in expected if name not in places]
    extra = [name for name in places if name not in set(expected)]
    twice = [name for name in expected if len(places.get(name, [])) > 1]
    faults = [
        f"{word} {shorten(names[0])}" + (f" and {len(names) - 1} more" if len(names) > 1 else "")
        for word, names in (("more than once:", twice), ("missing:", missing), ("unexpected:", extra))
        if names
    ]
    if (likely := _likely_cause(line, parsed, received, set(expected))) is not None:
        faults = [likely]
    if twice:
        column, value = twice[0], "columns " + " and ".join(map(str, places[twice[0]]))
        reason = "expected this name once in the header"
    elif missing:
        column, at = missing[0], expected.index(missing[0])
        value = shorten(received[at]) if at < len(received) and received[at] in extra else "nothing"
        reason = "expected this name in the header"
    else:
        column, value = str(places[extra[0]][0]), shorten(extra[0])
        reason = "expected no such name in the header"
    return CellProblem(1, column, value, f"{reason} ({'; '.join(faults)})", path.name)


def _likely_cause(line: bytes, parsed: Line, received: Sequence[str], expected: set[str]) -> str | None:
    if all(re.fullmatch("[0-9]+", name) for name in received):
        return "the header is missing: the first line holds numbers"
    if b"\r" in line:
        return f"it holds {LONE_RETURN}"
    if parsed.open_quote:
        return "a quote is left open at the end of the line"
    if expected.isdisjoint(received):
        if len(line.translate(None, _CONTROL)) < len(line):
            return "the file is binary: CSV is text"
        for separator, what in ((";", "semicolons"), ("\t", "tabs"), ("|", "bars"), (" ", "spaces")):
            if not expected.isdisjoint(name.strip(' "') for name in received[0].split(separator)):
                return f"{what} separate the names: save the file with commas"
    return None
