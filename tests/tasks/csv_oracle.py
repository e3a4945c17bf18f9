"""What has to hold for ingest, whatever the bytes are, said by Python's csv module line by line.

Hypothesis (test_ingest.py) and the fuzzer (tests/fuzz/) look for bytes where it does not.
"""

import csv
import gzip
import hashlib
import io
import re
import zlib
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from schemas.contract import Split
from schemas.errors import DataContractError
from schemas.references import CsvFile, CsvSplit
from tasks.ingest import ingest_csv
from tests.tasks.csv_cases import TINY, Verdict

# Of `convert`, beside the CSV itself.
TARGET, QUARANTINE = "split.parquet", "quarantine.parquet"


def supplied(*paths: Path, split: Split = "test") -> CsvSplit:
    """A reference to what lies there now; what cannot be read has an empty digest."""
    files = []
    for path in paths:
        try:
            content = path.read_bytes()
        except OSError:
            content = b""
        files.append(CsvFile(path=path, sha256=hashlib.sha256(content).hexdigest()))
    return CsvSplit(split=split, files=tuple(files), origin="supplied")


def quarantined(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    return rows


def values(path: Path) -> list[list[int]]:
    return [list(row.values()) for row in pq.read_table(path).to_pylist()]


def demand_the_verdict_of_csv(content: bytes, folder: Path) -> Verdict:
    """Ingest ``content`` in the empty ``folder``, and assert of the outcome, against Python's csv module:

    - It is Parquet with the rows that csv reads and a quarantine with the others, to the byte; or a refusal.
    - A row in quarantine has no fault before the column that is named, and one in it.
    - What csv finds nothing wrong with, even when it is strict, is taken.
    - With no bad row allowed the same rows are named, and there is no Parquet.
    - Beside these no file is left.
    """
    source, target, quarantine = folder / "tiny_test.csv", folder / TARGET, folder / QUARANTINE
    source.write_bytes(content)
    reference = supplied(source)
    text = _text(content)
    try:
        facts = ingest_csv(reference, target, quarantine, TINY, "100%")
    except DataContractError as error:
        assert [path.name for path in folder.iterdir()] == [source.name]
        assert source.name in str(error)
        if text is not None:
            _demand_a_reason(text, error)
        return "refused"
    assert text is not None, "a damaged gzip was taken"

    lines = _lines(text)
    names = _cells(lines[0], strict=False)
    assert names is not None
    names = [name.strip(" ") for name in names]
    assert sorted(names) == sorted(TINY.columns)
    bad = {row["line"]: row for row in quarantined(quarantine)} if quarantine.exists() else {}
    assert len(bad) == facts.quarantined
    rows = iter(values(target))
    end = len(lines) if facts.quarantined + facts.rows == len(lines) - 1 else _end_of_rows(lines)
    for number, line in enumerate(lines[1:end], start=2):
        if number in bad:
            row = bad.pop(number)
            assert row["raw_text"] == line
            assert row["content_hash"] == hashlib.sha256(line).hexdigest()
            _demand_a_fault(line, names, row["column"])
        else:
            read = _numbers(line, names, strict=False)
            assert read is not None
            assert next(rows) == [read[names.index(column)] for column in TINY.columns]
    assert not bad
    assert next(rows, None) is None
    if not facts.quarantined:
        return "taken" if _whole(text) == values(target) else _fail("csv reads the whole file in another way")

    before = quarantined(quarantine)
    target.unlink()
    quarantine.unlink()
    try:
        ingest_csv(reference, target, quarantine, TINY)
    except DataContractError as error:
        first = error.problems[0]
        assert (first.line, first.column, first.file) == (before[0]["line"], before[0]["column"], source.name)
        assert error.count == sum(row["bad_cells"] for row in before)
    else:
        _fail("bad rows were taken")
    assert {path.name for path in folder.iterdir()} == {source.name, quarantine.name}
    assert quarantined(quarantine) == before
    return "bad row"


def _fail(why: str) -> Any:
    raise AssertionError(why)


def _text(content: bytes) -> bytes | None:
    """What a gzip holds, None for a damaged one; other content as it is. Without the byte order mark."""
    if content.startswith(b"\x1f\x8b"):
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error):
            return None
    return content.removeprefix(b"\xef\xbb\xbf")


def _lines(text: bytes) -> list[bytes]:
    """Physical lines with their ends."""
    return [line for line in re.split(rb"(?<=\n)", text) if line]


def _stripped(line: bytes) -> bytes:
    return line[:-1].removesuffix(b"\r") if line.endswith(b"\n") else line


def _end_of_rows(lines: list[bytes]) -> int:
    """How many lines there are before the blank ones at the end."""
    return next((number for number in range(len(lines), 0, -1) if _stripped(lines[number - 1]).strip(b" ")), 0)


def _cells(line: bytes, *, strict: bool) -> list[str] | None:
    """What csv reads in a line, None where it reads nothing, or more than one row."""
    try:
        (cells,) = csv.reader([_stripped(line).decode("utf-8", "replace")], skipinitialspace=True, strict=strict)
    except (csv.Error, ValueError):
        return None
    return cells


def _number(text: str, column: str) -> int | None:
    if not re.fullmatch(" *[0-9]+ *", text):
        return None
    digits = text.strip(" ").lstrip("0") or "0"
    low, high = TINY.bounds(column)
    return int(digits) if len(digits) < 9 and low <= int(digits) <= high else None


def _numbers(line: bytes, names: list[str], *, strict: bool) -> list[int | None] | None:
    """The row that csv reads, None for a bad cell; None alone for a row of the wrong length."""
    # csv takes a lone carriage return for the end of a line.
    cells = None if b"\r" in _stripped(line) else _cells(line, strict=strict)
    if cells is None or len(cells) != len(names):
        return None
    return [_number(cell, name) for cell, name in zip(cells, names, strict=True)]


def _demand_a_fault(line: bytes, names: list[str], column: str) -> None:
    read = _numbers(line, names, strict=True)
    if read is None:
        cells = _cells(line, strict=True)
        if cells is not None and b"\r" not in line and len(cells) != len(names) and _stripped(line).strip(b" "):
            assert column == (names[len(cells)] if len(cells) < len(names) else str(len(names) + 1))
        return
    assert None in read
    assert column == names[read.index(None)]


def _demand_a_reason(text: bytes, error: DataContractError) -> None:
    """A refusal of the whole file: csv, when it is strict, reads another header, or no row at all."""
    lines = _lines(text)
    assert all(1 <= problem.line <= max(1, len(lines)) for problem in error.problems)
    if any(len(line) > 1 << 20 for line in lines):
        return
    names = _cells(lines[0], strict=True) if lines else None
    # csv takes a lone carriage return for the end of a line, at the end of the header too.
    if names is None or b"\r" in _stripped(lines[0]):
        return
    if sorted(name.strip(" ") for name in names) == sorted(TINY.columns):
        assert _end_of_rows(lines) == 1


def _whole(text: bytes) -> list[list[int]]:
    """All rows as csv reads them in one go."""
    header, *rows = csv.reader(io.StringIO(text.decode(), newline=""), skipinitialspace=True)
    names = [name.strip(" ") for name in header]
    while not "".join(rows[-1]).strip(" "):
        rows.pop()
    return [[int(row[names.index(column)].lstrip(" 0") or "0") for column in TINY.columns] for row in rows]
