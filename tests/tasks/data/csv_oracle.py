"""Compare the outcome of ingest with Python's csv module, for any bytes.

Hypothesis (test_csv_reader.py) and the fuzzer (tests/fuzz/) search for bytes where they disagree.
"""

import csv
import gzip
import hashlib
import io
import re
import shutil
import zlib
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from schemas.config import BadRows
from schemas.contract import DatasetContract, Split
from schemas.errors import DataContractError
from schemas.references import CsvFile, CsvSplit
from tasks.data.parquet_split import IngestFacts, ingest_csv
from tests.tasks.data.csv_cases import TINY, Verdict

TARGET, QUARANTINE = "split", "quarantine.parquet"

_LONGEST = 1 << 20  # bytes of a row; longer ones are rejected
csv.field_size_limit(1 << 24)  # the default is 131,072


def supplied(*paths: Path, split: Split = "test") -> CsvSplit:
    """Return a reference to files as they are now. A file that cannot be read has the digest of no bytes."""
    files = []
    for path in paths:
        try:
            content = path.read_bytes()
        except OSError:
            content = b""
        files.append(CsvFile(path=path, sha256=hashlib.sha256(content).hexdigest()))
    return CsvSplit(split=split, files=tuple(files), origin="supplied")


def rows_of(path: Path) -> list[dict[str, Any]]:
    # Called thousands of times on few rows: `read_table` takes six times as long to start.
    rows: list[dict[str, Any]] = pq.ParquetFile(path, pre_buffer=False).read(use_threads=False).to_pylist()
    return rows


def values(split: Path) -> list[list[int]]:
    """Return the rows of all Parquet files of a split."""
    return [list(row.values()) for path in sorted(split.iterdir()) for row in rows_of(path)]


def ingest_again(csv: CsvSplit, folder: Path, contract: DatasetContract, bad_rows: BadRows = 0) -> IngestFacts:
    """Ingest in place of an earlier output."""
    shutil.rmtree(folder / TARGET, ignore_errors=True)
    return ingest_csv(csv, folder / TARGET, folder / QUARANTINE, contract, bad_rows)


def ingest_bytes(folder: Path, content: bytes, split: Split = "test") -> list[list[int]]:
    """Ingest a CSV without a bad row, and return the rows of the Parquet."""
    source = folder / "tiny.csv"
    source.write_bytes(content)
    facts = ingest_again(supplied(source, split=split), folder, TINY)
    rows = values(folder / TARGET)
    assert (facts.rows, facts.quarantined, facts.count, facts.problems) == (len(rows), 0, 0, ())
    return rows


def reject_bytes(folder: Path, content: bytes, split: Split = "test") -> DataContractError:
    """Ingest a CSV that is rejected, and return the error."""
    with pytest.raises(DataContractError) as caught:
        ingest_bytes(folder, content, split)
    assert not (folder / TARGET).exists()
    return caught.value


def compare_with_csv(content: bytes, folder: Path) -> Verdict:
    """Ingest ``content`` in the empty ``folder``, and compare the outcome with Python's csv module.

    - The Parquet has the rows that csv reads, and the quarantine has the other rows byte for byte; or all is rejected.
    - A rejected row is named by the line in which it begins, and by the column of its first fault.
    - A file is accepted if csv in strict mode finds no fault.
    - If no bad row is allowed, the same rows are named, and there is no Parquet.
    - A file is rejected as a whole for a reason that csv finds at the same place.
    - No other file remains.
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
            _check_reason(text, error)
        return "rejected"
    assert text is not None, "a damaged gzip was accepted"

    header, *records = _records(text)
    names = [name.strip(" ") for name in header.cells]
    assert sorted(names) == sorted(TINY.columns)
    rejected = rows_of(quarantine) if quarantine.exists() else []
    bad = {row["line"]: row for row in rejected}
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
        assert _whole(text) == kept
        return "accepted"

    shutil.rmtree(target)
    quarantine.unlink()
    with pytest.raises(DataContractError) as caught:
        ingest_csv(reference, target, quarantine, TINY)
    first = caught.value.problems[0]
    assert (first.line, first.column, first.file) == (rejected[0]["line"], rejected[0]["column"], source.name)
    assert caught.value.count == sum(row["bad_cells"] for row in rejected)
    assert {path.name for path in folder.iterdir()} == {source.name, quarantine.name}
    assert rows_of(quarantine) == rejected
    return "bad row"


def _text(content: bytes) -> bytes | None:
    """Return the decompressed content without its byte order mark, or None for a damaged gzip."""
    if content.startswith(b"\x1f\x8b"):
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error):
            return None
    return content.removeprefix(b"\xef\xbb\xbf")


@dataclass(frozen=True)
class Record:
    """Rows that csv reads from whole lines, which end in LF: several if a lone CR ends some of them."""

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
        """Return True if it contains a CR outside quotes that does not precede its last LF."""
        return len(self.rows) > 1 or (self.raw.endswith(b"\r") and not self.open)

    @property
    def open(self) -> bool:
        """Return True if it ends within quotes, which only the last record can."""
        return list(csv.reader(_pieces(self.raw + b"\n1"), skipinitialspace=True))[-1] != ["1"]

    def numbers(self, names: list[str]) -> list[int | None]:
        """Return the numbers of a row of the right length, None for a bad cell."""
        return [_number(cell, name) for cell, name in zip(self.cells, names, strict=True)]


def _records(text: bytes) -> list[Record]:
    # csv reads one piece up to a CR, LF or CRLF at a time, as from a file opened with newline="".
    consumed: list[str] = []

    def pieces() -> Iterator[str]:
        for piece in _pieces(text):
            consumed.append(piece)
            yield piece

    records: list[Record] = []
    line, start = 1, 0
    rows: list[list[str]] = []
    for row in csv.reader(pieces(), skipinitialspace=True):
        rows.append(row or [""])
        if consumed[-1].endswith("\n"):
            raw = "".join(consumed)
            records.append(Record(line, raw.encode("latin-1"), rows))
            line, start, rows = line + raw.count("\n"), start + len(raw), []
            consumed.clear()
    if rows:
        records.append(Record(line, text[start:], rows))
    return records


def _pieces(text: bytes) -> list[str]:
    return [piece for piece in re.split(r"(?<=\n)|(?<=\r)(?!\n)", text.decode("latin-1")) if piece]


def _strict_error(raw: bytes) -> str | None:
    """Return the error of csv in strict mode for a piece of a record."""
    try:
        list(csv.reader(_pieces(raw), skipinitialspace=True, strict=True))
    except csv.Error as error:
        return str(error)
    return None


def _stripped(line: bytes) -> bytes:
    return line[:-1].removesuffix(b"\r") if line.endswith(b"\n") else line


def _end_of_rows(records: list[Record]) -> int:
    """Return the number of records before the blank ones at the end."""
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
    """Return the possible columns of the first fault.

    After malformed quotes it is undefined where cells end. A lone carriage return in them may be the fault instead.
    """
    first = {_column_of_the_first_fault(record, names)}
    if record.lone_return and _malformed(record) is not None:
        return first | {_named(len(record.cells) - 1, names)}
    return first


def _column_of_the_first_fault(record: Record, names: list[str]) -> str:
    if record.blank:
        return names[0]
    number = len(record.cells) - 1  # the cell before a lone carriage return
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
    assert wrong, "csv finds no fault"
    return names[min(wrong)]


def _malformed(record: Record) -> int | None:
    """Return the index of the first cell with a fault in its quotes or after them."""
    text = _stripped(record.raw)
    while b'"' in text:
        at = bisect_left(range(len(text)), True, key=lambda at: _has_text_after_quote(text[: at + 1]))
        if at == len(text):
            return None
        # Spaces are allowed.
        spaces = re.compile(rb" +(?=,|\r|\Z)").match(text, at)
        if spaces is None:
            return sum(max(0, len(row) - 1) for row in csv.reader(_pieces(text[:at]), skipinitialspace=True))
        text = text[:at] + text[spaces.end() :]
    return None


def _has_text_after_quote(text: bytes) -> bool:
    return (_strict_error(text) or "").startswith("',' expected")


def _check_reason(text: bytes, error: DataContractError) -> None:
    """Check the rejection of a whole file: csv reads another header, or no row, or a row without end."""
    if not text:
        assert [(problem.line, problem.column) for problem in error.problems] == [(1, TINY.columns[0])]
        return
    header, *records = _records(text)
    names = [name.strip(" ") for name in header.cells]
    malformed = header.open or _malformed(header) is not None  # spaces after quotes are allowed
    if _stripped(header.raw).find(b"\r") >= 0 or malformed or sorted(names) != sorted(TINY.columns):
        if not error.problems:  # the first bytes are those of another format
            return
        (problem,) = error.problems
        assert problem.line == 1
        # Quotes that the first line leaves open are not examined any further.
        if len(header.rows) > 1 or _strict_error(header.raw) or len(header.raw) > _LONGEST or b"\n" in header.raw[:-1]:
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
    assert last.open, "csv finds no fault in the whole file"
    opened = last.rows[-1][-1]
    assert problem.line == last.line + last.raw.count(b"\n") - opened.count("\n")
    assert problem.column == _named(sum(len(row) - 1 for row in last.rows), names)


def _whole(text: bytes) -> list[list[int]]:
    """Return all rows as csv reads them at once."""
    header, *rows = csv.reader(io.StringIO(text.decode(), newline=""), skipinitialspace=True)
    names = [name.strip(" ") for name in header]
    while not "".join(rows[-1]).strip(" "):
        rows.pop()
    return [[int(row[names.index(column)].lstrip(" 0") or "0") for column in TINY.columns] for row in rows]
