"""What has to hold for ingest, whatever the bytes are, said by Python's csv module.

Hypothesis (test_ingest.py) and the fuzzer (tests/fuzz/) look for bytes where it does not.
"""

import csv
import gzip
import hashlib
import io
import re
import zlib
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from schemas.contract import Split
from schemas.errors import DataContractError
from schemas.references import CsvFile, CsvSplit
from tasks.data.csv_to_parquet import ingest_csv
from tests.tasks.data.csv_cases import TINY, Verdict

# Of `convert`, beside the CSV itself.
TARGET, QUARANTINE = "split.parquet", "quarantine.parquet"

_LONGEST = 1 << 20  # bytes of a row: what is longer is refused
csv.field_size_limit(1 << 24)  # beyond csv's own, 131,072, it would say nothing


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


def rows_of(path: Path) -> list[dict[str, Any]]:
    # A few rows, thousands of times: `read_table` takes six times as long to begin.
    rows: list[dict[str, Any]] = pq.ParquetFile(path, pre_buffer=False).read(use_threads=False).to_pylist()
    return rows


def values(path: Path) -> list[list[int]]:
    return [list(row.values()) for row in rows_of(path)]


def demand_the_verdict_of_csv(content: bytes, folder: Path) -> Verdict:
    """Ingest ``content`` in the empty ``folder``, and assert of the outcome, against Python's csv module:

    - It is Parquet with the rows that csv reads and a quarantine with the others, to the byte; or a refusal.
    - A row in quarantine is named by the physical line that it begins in, and by the column of its first fault.
    - What csv finds nothing wrong with, even when it is strict, is taken.
    - With no bad row allowed the same rows are named, and there is no Parquet.
    - A refusal of the whole file has a reason that csv sees, too, where it is said to be.
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
        assert all(problem.file == source.name and str(problem) in str(error) for problem in error.problems)
        if text is not None:
            _demand_a_reason(text, error)
        return "refused"
    assert text is not None, "a damaged gzip was taken"

    header, *records = _records(text)
    names = [name.strip(" ") for name in header.cells]
    assert sorted(names) == sorted(TINY.columns)
    set_aside = rows_of(quarantine) if quarantine.exists() else []
    bad = {row["line"]: row for row in set_aside}
    assert len(bad) == facts.quarantined
    kept = values(target)
    rows = iter(kept)
    if facts.quarantined + facts.rows < len(records):
        records = records[: _end_of_rows(records)]
    assert facts.quarantined + facts.rows == len(records)
    for record in records:
        if record.line in bad:
            row = bad.pop(record.line)
            assert row["raw_text"] == record.raw
            assert row["content_hash"] == hashlib.sha256(record.raw).hexdigest()
            assert row["column"] in _columns_of_the_fault(record, names)
        else:
            read = record.numbers(names)
            assert len(record.rows) == 1
            assert next(rows) == [read[names.index(column)] for column in TINY.columns]
    assert not bad
    assert next(rows, None) is None
    if not facts.quarantined:
        return "taken" if _whole(text) == kept else _fail("csv reads the whole file in another way")

    target.unlink()
    quarantine.unlink()
    try:
        ingest_csv(reference, target, quarantine, TINY)
    except DataContractError as error:
        first = error.problems[0]
        assert (first.line, first.column, first.file) == (set_aside[0]["line"], set_aside[0]["column"], source.name)
        assert error.count == sum(row["bad_cells"] for row in set_aside)
    else:
        _fail("bad rows were taken")
    assert {path.name for path in folder.iterdir()} == {source.name, quarantine.name}
    assert rows_of(quarantine) == set_aside
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


@dataclass(frozen=True)
class Record:
    """What csv reads in whole physical lines, those that end in LF: several rows where a lone CR ends one of them."""

    line: int
    raw: bytes
    rows: list[list[str]]

    @property
    def cells(self) -> list[str]:
        return self.rows[0]

    @property
    def blank(self) -> bool:
        return not _stripped(self.raw).strip(b" ")

    @property
    def lone_return(self) -> bool:
        """Whether a CR stands in it, outside of quotes and not before its last LF."""
        return len(self.rows) > 1 or (self.raw.endswith(b"\r") and not self.open)

    @property
    def open(self) -> bool:
        """Whether it ends within quotes: it is the last one then."""
        return list(csv.reader(_pieces(self.raw + b"\n1"), skipinitialspace=True))[-1] != ["1"]

    def numbers(self, names: list[str]) -> list[int | None]:
        """None for a bad cell; the row is of the right length."""
        return [_number(cell, name) for cell, name in zip(self.cells, names, strict=True)]


def _records(text: bytes) -> list[Record]:
    # csv is handed a piece up to each CR, LF or CRLF at a time, as a file opened with newline="" would hand it.
    taken: list[str] = []

    def hand_over() -> Iterator[str]:
        for piece in _pieces(text):
            taken.append(piece)
            yield piece

    records: list[Record] = []
    line, start = 1, 0
    rows: list[list[str]] = []
    for row in csv.reader(hand_over(), skipinitialspace=True):
        rows.append(row or [""])
        if taken[-1].endswith("\n"):
            raw = "".join(taken)
            records.append(Record(line, raw.encode("latin-1"), rows))
            line, start, rows = line + raw.count("\n"), start + len(raw), []
            taken.clear()
    if rows:
        records.append(Record(line, text[start:], rows))
    return records


def _pieces(text: bytes) -> list[str]:
    return [piece for piece in re.split(r"(?<=\n)|(?<=\r)(?!\n)", text.decode("latin-1")) if piece]


def _complaint(raw: bytes) -> str | None:
    """What csv says of the quotes in a piece of a record when it is strict."""
    try:
        list(csv.reader(_pieces(raw), skipinitialspace=True, strict=True))
    except csv.Error as error:
        return str(error)
    return None


def _stripped(line: bytes) -> bytes:
    return line[:-1].removesuffix(b"\r") if line.endswith(b"\n") else line


def _end_of_rows(records: list[Record]) -> int:
    """How many records there are before the blank ones at the end."""
    return next((number for number in range(len(records), 0, -1) if not records[number - 1].blank), 0)


def _number(text: str, column: str) -> int | None:
    if not re.fullmatch(" *[0-9]+ *", text):
        return None
    digits = text.strip(" ").lstrip("0") or "0"
    low, high = TINY.bounds(column)
    return int(digits) if len(digits) < 9 and low <= int(digits) <= high else None


def _named(number: int, names: list[str]) -> str:
    return names[number] if number < len(names) else str(len(names) + 1)


def _columns_of_the_fault(record: Record, names: list[str]) -> set[str]:
    """That of the first fault; behind quotes that are wrong, where cells end is open, and a lone carriage return is one
    as well."""
    first = {_column_of_the_first_fault(record, names)}
    if record.lone_return and _malformed(record) is not None:
        return first | {_named(len(record.cells) - 1, names)}
    return first


def _column_of_the_first_fault(record: Record, names: list[str]) -> str:
    if record.blank:
        return names[0]
    number = len(record.cells) - 1  # with a lone carriage return behind it
    cells = record.cells
    if record.lone_return:
        # A CR belongs to the cell that it ends, as does what follows up to the next comma.
        wide = sum(len(row) - 1 for row in record.rows) + 1 == len(names)
        if not wide:
            return _named(number, names)
        cells = cells[:-1]
    elif len(cells) != len(names):
        return _named(len(cells), names)
    wrong = [at for at, cell in enumerate(cells) if _number(cell, names[at]) is None]
    if record.lone_return:
        wrong.append(number)
    if (malformed := _malformed(record)) is not None:
        wrong.append(malformed)
    assert wrong, "csv sees nothing wrong"
    return names[min(wrong)]


def _malformed(record: Record) -> int | None:
    """The number of the first cell in whose quotes something is wrong, or behind them."""
    text = _stripped(record.raw)
    while b'"' in text:
        at = bisect_left(range(len(text)), True, key=lambda at: _complains(text[: at + 1]))
        if at == len(text):
            return None
        # Spaces are fine.
        behind = re.compile(rb" +(?=,|\r|\Z)").match(text, at)
        if behind is None:
            return sum(max(0, len(row) - 1) for row in csv.reader(_pieces(text[:at]), skipinitialspace=True))
        text = text[:at] + text[behind.end() :]
    return None


def _complains(text: bytes) -> bool:
    return (_complaint(text) or "").startswith("',' expected")


def _demand_a_reason(text: bytes, error: DataContractError) -> None:
    """A refusal of the whole file: csv reads another header, or no row at all, or a row without end."""
    if not text:
        assert [(problem.line, problem.column) for problem in error.problems] == [(1, TINY.columns[0])]
        return
    header, *records = _records(text)
    names = [name.strip(" ") for name in header.cells]
    malformed = header.open or _malformed(header) is not None  # spaces behind quotes are fine
    if _stripped(header.raw).find(b"\r") >= 0 or malformed or sorted(names) != sorted(TINY.columns):
        if not error.problems:  # known by its first bytes for something that is no CSV
            return
        (problem,) = error.problems
        assert problem.line == 1
        # What is within quotes that the first line leaves open is looked at no further.
        if len(header.rows) > 1 or _complaint(header.raw) or len(header.raw) > _LONGEST or b"\n" in header.raw[:-1]:
            return
        if problem.column in TINY.columns:
            # A lone carriage return at the end belongs to the last name.
            assert names.count(problem.column) != 1 or (header.lone_return and problem.column == names[-1])
        else:
            assert names[int(problem.column) - 1] not in TINY.columns
        return
    (problem,) = error.problems
    if not any(not record.blank for record in records):
        assert (problem.line, problem.column) == (2, names[0])
        return
    physical = text.split(b"\n")
    last = records[-1]
    longest = next((at for at, record in enumerate(records) if len(record.raw) > _LONGEST), None)
    if longest is not None:
        record = records[longest]
        assert record.line <= problem.line <= record.line + record.raw.count(b"\n")
        assert len(physical[problem.line - 1]) > _LONGEST or record.raw.count(b"\n") > 1
        return
    assert last.open, "csv sees nothing wrong with the whole file"
    opened = last.rows[-1][-1]
    assert problem.line == last.line + last.raw.count(b"\n") - opened.count("\n")
    assert problem.column == _named(sum(len(row) - 1 for row in last.rows), names)


def _whole(text: bytes) -> list[list[int]]:
    """All rows as csv reads them in one go."""
    header, *rows = csv.reader(io.StringIO(text.decode(), newline=""), skipinitialspace=True)
    names = [name.strip(" ") for name in header]
    while not "".join(rows[-1]).strip(" "):
        rows.pop()
    return [[int(row[names.index(column)].lstrip(" 0") or "0") for column in TINY.columns] for row in rows]
