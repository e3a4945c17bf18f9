"""Check the header of a CSV, and name the likely cause if it is wrong."""

import re
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from schemas.contract import DatasetContract
from schemas.errors import CellProblem, DataContractError
from tasks.data.csv_blocks import SAVE_WITHOUT_INDEX, unusable
from tasks.data.csv_cells import BOM, LONE_RETURN, Line, parse_line, shorten
from tasks.data.csv_file import GZIP_MAGIC

# The most common mistakes: saved, packed or downloaded in the wrong form. The header's text would not explain them.
_UTF_16 = "UTF-16 text: save it as CSV in UTF-8"
_UNPACK = "a compressed file of another kind than gzip: unpack it, or compress it with gzip"
_OTHER_FORMATS = {
    b"PK\x03\x04": "a zip archive or a spreadsheet: unpack it, or save it as CSV",
    b"PK\x05\x06": "an empty zip archive: supply the CSV",
    b"\xd0\xcf\x11\xe0": "a spreadsheet: save it as CSV",
    b"PAR1": "Parquet: save it as CSV",
    b"\xff\xfe\0\0": "UTF-32 text: save it as CSV in UTF-8",
    b"\xff\xfe": _UTF_16,
    b"\xfe\xff": _UTF_16,
    GZIP_MAGIC: "gzip within gzip: unpack it once",
    b"BZh": _UNPACK,
    b"\xfd7zXZ": _UNPACK,
    b"\x28\xb5\x2f\xfd": _UNPACK,
    b"7z\xbc\xaf": _UNPACK,
    b"<": "a web page or XML, such as the login page of a download site: download the file itself",
}
INDEX = re.compile(r"|index|Unnamed: [0-9]+(\.[0-9]+)*")
_CONTROL = bytes({*range(32), 127} - set(b"\t\r"))


def reject_other_formats(path: Path, start: bytes, first_column: str) -> None:
    """Raise `DataContractError` if a file is empty, or if its first bytes are those of another format."""
    if not start:
        reason = "expected a header (the file is empty)"
        raise unusable(path, [CellProblem(1, first_column, "nothing", reason, path.name)])
    # UTF-16 without a byte order mark: every other byte is 0.
    if [byte == 0 for byte in start[:4]] in ([True, False] * 2, [False, True] * 2):
        raise DataContractError(f"{path} is not a CSV but {_UTF_16}; then run again.")
    for signature, description in _OTHER_FORMATS.items():
        if start.removeprefix(BOM).lstrip().startswith(signature):
            raise DataContractError(f"{path} is not a CSV but {description}; then run again.")


def check_header(path: Path, line: bytes, contract: DatasetContract, *, label_optional: bool) -> tuple[str, ...]:
    """Return the columns of a header line in its order; without a header, those of the first row.

    Raises `DataContractError` unless they are the contract's columns. With ``label_optional`` the label may be missing.
    """
    parsed = parse_line(line)
    received = tuple(cell.strip(" ") for cell in parsed.cells)
    expected = contract.file_columns
    if not contract.has_header:
        if not any(map(re.compile("-?[0-9]+").fullmatch, received)):
            reason = f'expected numbers, because {contract.path.name} has columns = "none"'
            raise unusable(path, [CellProblem(1, expected[0], shorten(received[0]), reason, path.name)])
        return expected[1:] if label_optional and len(received) == len(expected) - 1 else expected
    if label_optional and contract.label_column not in received and received[0] in expected:
        expected = expected[1:]
    if sorted(received) == sorted(expected):
        return received
    cause = _likely_cause(line, parsed, received, contract)
    if cause is not None and label_optional and contract.label_column not in received:
        expected = expected[-contract.pixels :]
    problem = _header_problem(path, expected, received, cause)
    if cause is not None:
        raise unusable(path, [problem])
    raise DataContractError(
        f"{problem}.\n"
        f"The header must name {len(expected)} columns, in any order: {', '.join(expected[:3])} .. {expected[-1]}. "
        + (f"The column {contract.label_column} may be left out. " if label_optional else "")
        + f"Correct {path}, and run again.",
        [problem],
    )


def _header_problem(path: Path, expected: Sequence[str], received: Sequence[str], cause: str | None) -> CellProblem:
    """Return the first problem of the names. Its reason contains the cause if it is known, or else all wrong names."""
    counts, names = Counter(received), set(expected)
    repeated = [name for name in expected if counts[name] > 1]
    missing = [name for name in expected if name not in counts]
    extra = [name for name in counts if name not in names]
    if repeated:
        column, reason = repeated[0], "expected this name once in the header"
        value = "columns " + " and ".join(str(at) for at, name in enumerate(received, start=1) if name == column)
    elif missing:
        column, reason, at = missing[0], "expected this name in the header", expected.index(missing[0])
        value = shorten(received[at]) if at < len(received) and received[at] in extra else "nothing"
    else:
        column, value = str(received.index(extra[0]) + 1), shorten(extra[0])
        reason = "expected no such name in the header"
    cause = cause or "; ".join(
        f"{kind}: {shorten(wrong[0])}" + (f" and {len(wrong) - 1} more" if len(wrong) > 1 else "")
        for kind, wrong in (("more than once", repeated), ("missing", missing), ("unexpected", extra))
        if wrong
    )
    return CellProblem(1, column, value, f"{reason} ({cause})", path.name)


def _likely_cause(line: bytes, parsed: Line, received: Sequence[str], contract: DatasetContract) -> str | None:
    expected = set(contract.file_columns)
    if all(re.fullmatch("[0-9]+", name) for name in received):
        return (
            "the header is missing: the first line holds numbers; add a header, or use a dataset file with "
            'columns = "none"'
        )
    if b"\r" in line:
        return f"it holds {LONE_RETURN}"
    if parsed.open_quote:
        return "a quote is left open at the end of the line"
    if expected.isdisjoint(received):
        if len(line.translate(None, _CONTROL)) < len(line):
            return "the file is binary: CSV is text"
        for separator, name in ((";", "semicolons"), ("\t", "tabs"), ("|", "bars"), (" ", "spaces")):
            if not expected.isdisjoint(part.strip(' "') for part in received[0].split(separator)):
                return f"the names are separated by {name}: save the file with commas"
    causes = []
    pixels = [name for name in received if name != contract.label_column]
    if len(received) > 1 and INDEX.fullmatch(received[0]) and received[0] not in expected:
        causes.append(f"the first column looks like the index of a pandas DataFrame: {SAVE_WITHOUT_INDEX}")
        pixels.remove(received[0])
    with suppress(ValueError, IndexError):  # the first name has no number, or there is none
        other = replace(contract, naming=f"{pixels[0]}..")
        if other.naming != contract.naming and sorted(other.file_columns[1:]) == sorted(pixels):
            own = contract.file_columns
            causes.append(
                f"the pixels are named {pixels[0]}..: rename them to {own[1]}..{own[-1]}, or use a dataset file with "
                f'columns = "{other.naming}", as `fashion-ann dataset init NAME --from DIR` writes it'
            )
    return "; ".join(causes) or None
