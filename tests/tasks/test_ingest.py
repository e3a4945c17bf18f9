"""Ingest takes what its grammar allows, to the value, and names what it refuses, to the cell."""

import csv
import gzip
import hashlib
import re
import tempfile
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from schemas import contract as contracts
from schemas.contract import FASHION_MNIST
from schemas.errors import DataContractError
from schemas.references import CsvFile, ParquetSplit
from tasks import ingest as module
from tasks.ingest import IngestFacts, ingest, ingest_csv, open_csv, parquet_schema

TINY = replace(
    FASHION_MNIST,
    name="tiny",
    height=2,
    width=2,
    minimum_rows={"train": 3, "test": 1},
    published={split: replace(FASHION_MNIST.published[split], rows=3) for split in ("train", "test")},
)
HEADER = b"label,pixel1,pixel2,pixel3,pixel4\n"
ROWS = [[9, 0, 10, 100, 255], [0, 1, 20, 200, 0], [5, 7, 77, 177, 250]]
BODY = b"9,0,10,100,255\n0,1,20,200,0\n5,7,77,177,250\n"


def convert(folder: Path, content: bytes, **options: object) -> pa.Table:
    """What the Parquet of a tiny CSV holds. A refusal must leave nothing behind but the CSV."""
    source, target = folder / "tiny_train.csv", folder / "train.parquet"
    source.write_bytes(content)
    target.unlink(missing_ok=True)
    try:
        facts = ingest_csv(source, target, TINY, "train", **options)  # type: ignore[arg-type]
    except DataContractError:
        assert [path.name for path in folder.iterdir()] == [source.name]
        raise
    table = pq.read_table(target)
    assert facts == IngestFacts(table.num_rows, hashlib.sha256(content).hexdigest())
    return table


def refusal(folder: Path, content: bytes, **options: object) -> DataContractError:
    with pytest.raises(DataContractError) as caught:
        convert(folder, content, **options)
    return caught.value


def values(table: pa.Table) -> list[list[int]]:
    return [list(row.values()) for row in table.to_pylist()]


# --- what is accepted ------------------------------------------------------------------------------------------------

ACCEPTED = {
    "plain": HEADER + BODY,
    "no newline at the end": HEADER + BODY.removesuffix(b"\n"),
    "crlf": (HEADER + BODY).replace(b"\n", b"\r\n"),
    "lf and crlf mixed": HEADER + BODY.replace(b"\n", b"\r\n", 1),
    "byte order mark": b"\xef\xbb\xbf" + HEADER + BODY,
    "byte order mark and crlf": b"\xef\xbb\xbf" + (HEADER + BODY).replace(b"\n", b"\r\n"),
    "quoted everywhere": b"\n".join(b'"' + line.replace(b",", b'","') + b'"' for line in (HEADER + BODY).splitlines()),
    "one cell quoted": HEADER + BODY.replace(b"177", b'"177"'),
    "first and last cells quoted": HEADER + b'"9","0",10,100,"255"\n0,1,20,200,0\n5,7,77,177,250\n',
    "spaces": HEADER.replace(b",", b" , ") + BODY.replace(b",", b" , "),
    "spaces and quotes": HEADER + BODY.replace(b"177", b' " 177 " '),
    "leading zeros": HEADER + BODY.replace(b",7,", b",007,").replace(b"1,20", b"0001,020"),
    "thousands of leading zeros": HEADER + BODY.replace(b"7,77", b"0" * 6000 + b"7,77"),
    "blank lines at the end": HEADER + BODY + b"\n \n\r\n",
    "gzip": gzip.compress(HEADER + BODY),
    "gzip in two members": gzip.compress(HEADER) + gzip.compress(BODY),
}


@pytest.mark.parametrize("content", ACCEPTED.values(), ids=ACCEPTED.keys())
def test_each_accepted_form_gives_the_same_parquet(tmp_path: Path, content: bytes) -> None:
    table = convert(tmp_path, content)
    assert values(table) == ROWS
    assert table.schema.equals(parquet_schema(TINY))


@pytest.mark.parametrize("block_bytes", [1, 2, 3, 7, 30, 64])
@pytest.mark.parametrize("form", ["plain", "crlf", "byte order mark and crlf", "quoted everywhere", "gzip"])
def test_where_blocks_end_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, block_bytes: int
) -> None:
    monkeypatch.setattr(module, "_BLOCK_BYTES", block_bytes)
    assert values(convert(tmp_path, ACCEPTED[form])) == ROWS


def full_csv(rows: npt.NDArray[np.uint8]) -> bytes:
    lines = [",".join(FASHION_MNIST.columns), *(",".join(map(str, row)) for row in rows.tolist())]
    return ("\n".join(lines) + "\n").encode()


def random_rows(count: int) -> npt.NDArray[np.uint8]:
    """uint8, (count, 785): labels 0..9, then pixels 0..255."""
    generator = np.random.default_rng(0)
    rows = generator.integers(0, 256, (count, 785), np.uint8)
    rows[:, 0] %= 10
    return rows


def as_array(path: Path) -> npt.NDArray[np.uint8]:
    return np.stack([column.to_numpy() for column in pq.read_table(path).columns], axis=1)


def test_both_ways_of_reading_give_the_same_785_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = random_rows(1_500)
    source = tmp_path / "train.csv"
    source.write_bytes(full_csv(rows))
    with monkeypatch.context() as patch:
        patch.setattr(module._BlockReader, "_by_line", None)  # a plain file must not come here
        ingest_csv(source, tmp_path / "array.parquet", FASHION_MNIST, "train")
    with monkeypatch.context() as patch:
        patch.setattr(module._BlockReader, "_as_array", lambda self, block: None)
        ingest_csv(source, tmp_path / "line.parquet", FASHION_MNIST, "train")
    assert (tmp_path / "array.parquet").read_bytes() == (tmp_path / "line.parquet").read_bytes()
    assert np.array_equal(as_array(tmp_path / "array.parquet"), rows)


def test_parquet_has_the_contracts_columns_ranges_in_its_footer_and_bounded_row_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_ROW_GROUP_ROWS", 400)
    rows = random_rows(1_000)
    (tmp_path / "train.csv").write_bytes(full_csv(rows))
    ingest_csv(tmp_path / "train.csv", tmp_path / "train.parquet", FASHION_MNIST, "train")
    file = pq.ParquetFile(tmp_path / "train.parquet")
    assert file.schema_arrow.names == list(FASHION_MNIST.columns)
    assert all(field.type == pa.uint8() and not field.nullable for field in file.schema_arrow)
    assert [file.metadata.row_group(at).num_rows for at in range(file.num_row_groups)] == [400, 400, 200]
    statistics = file.metadata.row_group(1).column(17).statistics
    assert (statistics.min, statistics.max) == (rows[400:800, 17].min(), rows[400:800, 17].max())
    assert np.array_equal(as_array(tmp_path / "train.parquet"), rows)


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pack: type[bytes]) -> None:
    monkeypatch.setattr(module, "_ROW_GROUP_ROWS", 256)
    monkeypatch.setattr(module, "_BLOCK_BYTES", 1 << 16)
    header, _, body = full_csv(random_rows(100)).partition(b"\n")
    peaks = []
    for times in (10, 30):
        (tmp_path / "train.csv").write_bytes(pack(header + b"\n") + pack(body) * times)
        tracemalloc.start()
        ingest_csv(tmp_path / "train.csv", tmp_path / "train.parquet", FASHION_MNIST, "train")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < len(body) * 30 / 4
    assert peaks[1] < 1.5 * peaks[0]


# --- what is refused -------------------------------------------------------------------------------------------------


def damaged(cell: bytes) -> bytes:
    """A file whose line 3 has ``cell`` for pixel3."""
    return HEADER + BODY.replace(b"200", cell)


REFUSED_CELLS = {
    "256": (b"256", "256"),
    "300": (b"300", "300"),
    "negative": (b"-1", "-1"),
    "minus zero": (b"-0", "-0"),
    "plus": (b"+5", "+5"),
    "fraction": (b"12.5", "12.5"),
    "exponent": (b"1e2", "'1e2'"),
    "hexadecimal": (b"0x1F", "'0x1F'"),
    "underscore": (b"1_0", "'1_0'"),
    "text": (b"abc", "'abc'"),
    "not a number": (b"NaN", "'NaN'"),
    "empty": (b"", "''"),
    "empty in quotes": (b'""', "''"),
    "space alone": (b" ", "' '"),
    "space inside": (b"1 2", "'1 2'"),
    "tab": (b"\t5", "'\\t5'"),
    "wide digit": ("\uff11".encode(), "'\uff11'"),
    "superscript": ("\u00b2".encode(), "'\u00b2'"),
    "not utf-8": (b"\xff7", "'\\\\xff7'"),
    "nul": (b"1\x00", "'1\\x00'"),
    "carriage return": (b"1\r", "'1\\r'"),
    "quote inside": (b'1"2', "'1\"2'"),
    "text after quotes": (b'"1"2', "'\"1\"2'"),
    "quote left open": (b'"200', "'\"200'"),
    "comma in quotes": (b'"1,2"', "'1,2'"),
    "5,000 digits": (b"9" * 5000, "9" * 38 + ".."),
    "zeros before too much": (b"0000256", "0000256"),
    "field beyond csv's limit": (b'"' + b"x" * 140_000 + b'"', "'" + "x" * 37 + ".."),
}


@pytest.mark.parametrize(("cell", "shown"), REFUSED_CELLS.values(), ids=REFUSED_CELLS.keys())
def test_bad_cell_is_rejected_with_its_line_column_and_value(tmp_path: Path, cell: bytes, shown: str) -> None:
    error = refusal(tmp_path, damaged(cell))
    (problem,) = error.problems
    assert (problem.line, problem.column, problem.value) == (3, "pixel3", shown)
    assert problem.reason == "expected an integer 0..255"
    assert error.count == 1
    assert f"tiny_train.csv line 3, column pixel3: expected an integer 0..255, received {shown}\n" in str(error)
    assert str(tmp_path / "tiny_train.csv") in str(error)


REFUSED_LINES = {
    # content: line, column, value, words of the message
    "label 10": (HEADER + BODY.replace(b"5,7,", b"10,7,"), 4, "label", "10", "an integer 0..9"),
    "empty first cell": (HEADER + b"," + BODY[2:], 2, "label", "''", "an integer 0..9"),
    "empty last cell": (HEADER + BODY.replace(b"255", b""), 2, "pixel4", "''", "an integer 0..255"),
    "short line": (HEADER + BODY.replace(b",200,0", b""), 3, "pixel3", "3 values", "expected 5 values"),
    "long line": (HEADER + BODY.replace(b"200", b"200,1,2"), 3, "6", "7 values", "expected 5 values"),
    "long and short line": (HEADER + BODY.replace(b"255\n0,", b"255,0\n"), 2, "6", "6 values", "expected 5 values"),
    "one row on two lines": (HEADER + BODY.replace(b"0,10,", b"0\n10,"), 2, "pixel2", "2 values", "expected 5 values"),
    "two rows on a line": (HEADER + BODY.replace(b"255\n", b"255,"), 2, "6", "10 values", "expected 5 values"),
    "cut off": (HEADER + BODY[:-9], 4, "pixel3", "3 values", "the file was probably cut off"),
    "cut off after a comma": (HEADER + BODY[:-4], 4, "pixel4", "''", "an integer 0..255"),
    "blank line": (HEADER + BODY.replace(b"\n", b"\n\n", 1), 3, "label", "a blank line", "expected 5 values"),
    "blank first row": (HEADER + b"\r\n" + BODY, 2, "label", "a blank line", "expected 5 values"),
    "newline in quotes": (HEADER + BODY.replace(b"0,10,", b'"0\n",10,'), 2, "pixel2", "2 values", "expected 5 values"),
    "carriage return at the end": (HEADER + BODY[:-1] + b"\r", 4, "pixel4", "'250\\r'", "an integer 0..255"),
    "lone carriage returns": (
        (HEADER + BODY).replace(b"\n", b"\r"), 1, "pixel4", "'pixel4\\r9'", "expected this name"
    ),
    "semicolons": ((HEADER + BODY).replace(b",", b";"), 1, "label", "'label;pixel1;", "expected this name"),
    "no header": (BODY, 1, "label", "9", "the header is missing"),
    "blank header": (b"\n" + HEADER + BODY, 1, "label", "''", "missing: 'label'"),
    "wrong name": (HEADER.replace(b"label", b"Label") + BODY, 1, "label", "'Label'", "unexpected: 'Label'"),
    "reordered": (
        HEADER.replace(b"pixel1,pixel2", b"pixel2,pixel1") + BODY, 1, "pixel1", "'pixel2'", "in another order"
    ),
    "duplicate": (HEADER.replace(b"pixel2", b"pixel1") + BODY, 1, "pixel2", "'pixel1'", "more than once"),
    "missing column": (HEADER.replace(b"pixel3,", b"") + BODY, 1, "pixel3", "'pixel4'", "missing: 'pixel3'"),
    "missing last columns": (
        b"label,pixel1\n" + BODY, 1, "pixel2", "nothing", "missing: 'pixel2' and 2 more"
    ),
    "extra column": (HEADER[:-1] + b",pixel5\n" + BODY, 1, "6", "'pixel5'", "unexpected: 'pixel5'"),
    "web page": (b"<!DOCTYPE html>\n<html>\n", 1, "label", "'<!DOCTYPE html>'", "expected this name"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("content", "line", "column", "value", "words"), REFUSED_LINES.values(), ids=REFUSED_LINES.keys()
)
def test_damage_is_rejected_with_the_line_and_column_where_it_starts(
    tmp_path: Path, content: bytes, line: int, column: str, value: str, words: str
) -> None:
    error = refusal(tmp_path, content)
    first = error.problems[0]
    assert (first.line, first.column) == (line, column)
    assert first.value.startswith(value)
    assert words in str(error)
    assert f"tiny_train.csv line {line}, column {column}: " in str(error)
    packed = refusal(tmp_path, gzip.compress(content))
    assert (packed.problems, packed.count) == (error.problems, error.count)


REFUSED_FILES = {
    "empty": (b"", "is empty"),
    "header alone": (HEADER, "has 0 rows: expected at least 3 for the train split"),
    "header alone, cut": (HEADER[:-1], "has 0 rows"),
    "too few rows": (HEADER + BODY.replace(b"5,7,77,177,250\n", b"\n"), "has 2 rows: expected at least 3"),
    "zip": (b"PK\x03\x04....", "a zip archive or a spreadsheet"),
    "parquet": (b"PAR1....", "Parquet already"),
    "utf-16": ((HEADER + BODY).decode().encode("utf-16"), "UTF-16"),
    "gzip of nothing": (gzip.compress(b""), "is empty"),
    "gzip cut off": (gzip.compress(HEADER + BODY)[:-12], "ends too early"),
    "gzip magic alone": (b"\x1f\x8b", "ends too early"),
    "gzip with a wrong checksum": (gzip.compress(HEADER + BODY)[:-8] + b"\0" * 8, "damaged gzip"),
    "gzip with garbage inside": (gzip.compress(HEADER + BODY)[:10] + b"\xff" * 40, "damaged gzip"),
    "gzip with garbage behind": (gzip.compress(HEADER + BODY) + b"garbage", "damaged gzip"),
}


@pytest.mark.parametrize(("content", "words"), REFUSED_FILES.values(), ids=REFUSED_FILES.keys())
def test_file_that_is_wrong_as_a_whole_is_rejected_in_words(tmp_path: Path, content: bytes, words: str) -> None:
    error = refusal(tmp_path, content)
    assert words in str(error)
    assert "tiny_train.csv" in str(error)
    assert (error.problems, error.count) == ((), 0)


def test_first_ten_problems_are_named_in_order_and_all_are_counted(tmp_path: Path) -> None:
    content = HEADER + b"10,x,y,z,256\n" + BODY + b"\n\n1,2\n" + b"a,b,c,d,e\n" * 1_000
    error = refusal(tmp_path, content)
    assert error.count == 5 + 2 + 1 + 5_000
    assert [(problem.line, problem.column) for problem in error.problems] == [
        *((2, column) for column in TINY.columns),
        (6, "label"), (7, "label"), (8, "pixel2"), (9, "label"), (9, "pixel1"),
    ]  # fmt: skip
    assert ".. and 4998 more" in str(error)
    assert len(str(error).splitlines()) == 12


def test_many_blank_lines_are_counted_and_not_kept(tmp_path: Path) -> None:
    error = refusal(tmp_path, HEADER + BODY + b"\n" * 1_000 + BODY)
    assert (error.count, len(error.problems), error.problems[0].line) == (1_000, 10, 5)


def test_blank_lines_between_two_blocks_are_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BLOCK_BYTES", len(HEADER + BODY) + 2)
    error = refusal(tmp_path, HEADER + BODY + b"\n\n" + BODY)
    assert [problem.line for problem in error.problems] == [5, 6]


@pytest.mark.parametrize("block_bytes", [1, 50, 1 << 20])
def test_line_numbers_hold_across_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_bytes: int) -> None:
    monkeypatch.setattr(module, "_BLOCK_BYTES", block_bytes)
    error = refusal(tmp_path, HEADER + BODY * 40 + b'"1",2,3,4,5\n' + BODY + b"1,2,3,4,-5\n")
    assert [(problem.line, problem.column) for problem in error.problems] == [(126, "pixel4")]


def test_pixel_256_is_rejected_with_its_line_among_785_columns(tmp_path: Path) -> None:
    lines = full_csv(random_rows(1_200)).split(b"\n")
    cells = lines[1_199].split(b",")
    cells[412] = b"256"
    lines[1_199] = b",".join(cells)
    source = tmp_path / "train.csv"
    source.write_bytes(b"\n".join(lines))
    with pytest.raises(
        DataContractError, match=r"line 1200, column pixel412: expected an integer 0\.\.255, received 256"
    ):
        ingest_csv(source, tmp_path / "train.parquet", FASHION_MNIST, "train")


@pytest.mark.parametrize("content", [HEADER + BODY + b"1" * 3_000, b"1" * 3_000 + b"\n", HEADER + b"1" * 900 + b"\n"])
def test_file_without_line_ends_is_rejected_before_it_fills_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    monkeypatch.setattr(module, "_BLOCK_BYTES", 500)
    monkeypatch.setattr(module, "_LINE_BYTES", 800)
    error = refusal(tmp_path, content)
    lines = content.split(b"\n")
    assert [problem.line for problem in error.problems] == [next(i for i, x in enumerate(lines, 1) if len(x) > 800)]
    assert "longer than 800 bytes" in str(error)


@pytest.mark.parametrize("make", [Path.mkdir, lambda path: None], ids=["a folder", "nothing there"])
def test_file_that_cannot_be_read_is_rejected_in_words(tmp_path: Path, make: object) -> None:
    make(tmp_path / "train.csv")  # type: ignore[operator]
    with pytest.raises(DataContractError, match=r"train\.csv cannot be read \("):
        ingest_csv(tmp_path / "train.csv", tmp_path / "train.parquet", TINY, "train")
    assert not (tmp_path / "train.parquet").exists()


@pytest.mark.parametrize(
    "content",
    [HEADER + BODY, damaged(b"x"), gzip.compress(HEADER + BODY), b"nothing of it"],
    ids=["whole", "damaged", "gzip", "nothing of it"],
)
def test_file_that_changed_since_it_was_hashed_is_rejected(tmp_path: Path, content: bytes) -> None:
    error = refusal(tmp_path, content, expected_sha256="0" * 64)
    assert "changed" in str(error)
    assert hashlib.sha256(content).hexdigest() in str(error)


def test_refusal_at_the_header_is_not_taken_for_a_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BLOCK_BYTES", 40)
    error = refusal(tmp_path, b"x" + HEADER + BODY, expected_sha256=hashlib.sha256(b"x" + HEADER + BODY).hexdigest())
    assert error.problems[0].line == 1


def test_fetched_file_needs_exactly_the_published_rows(tmp_path: Path) -> None:
    assert values(convert(tmp_path, HEADER + BODY, origin="fetched")) == ROWS
    (tmp_path / "train.parquet").unlink()
    error = refusal(tmp_path, HEADER + BODY + b"1,2,3,4,5\n", origin="fetched")
    assert "has 4 rows: expected the 3 of the train split" in str(error)
    assert len(values(convert(tmp_path, HEADER + BODY + b"1,2,3,4,5\n"))) == 4


# --- the reader alone ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("labelled", [True, False])
def test_reader_gives_blocks_of_rows_with_or_without_the_label(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, labelled: bool
) -> None:
    monkeypatch.setattr(module, "_BLOCK_BYTES", 30)
    first = 0 if labelled else 1
    lines = [line.split(b",", 1)[first:] for line in (HEADER + BODY).splitlines()]
    source = tmp_path / "images.csv"
    source.write_bytes(b"\n".join(map(b",".join, lines)))
    with open_csv(source, TINY, label_optional=True) as rows:
        assert (rows.columns, rows.labelled) == (TINY.columns[first:], labelled)
        blocks = list(rows)
    assert len(blocks) > 1
    assert all(len(block) and block.dtype == np.uint8 for block in blocks)
    assert np.concatenate(blocks).tolist() == [row[first:] for row in ROWS]
    assert (rows.rows, rows.sha256) == (3, hashlib.sha256(source.read_bytes()).hexdigest())


def test_reader_gives_no_row_after_the_first_problem_and_reads_on_for_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_BLOCK_BYTES", 20)
    source = tmp_path / "images.csv"
    source.write_bytes(HEADER + BODY + b"1,2,3,4,256\n" + BODY + b"10,2,3,4,5\n" + BODY)
    given: list[list[int]] = []
    with pytest.raises(DataContractError) as caught, open_csv(source, TINY) as rows:
        for block in rows:
            given += block.tolist()
    assert given == ROWS
    assert [(problem.line, problem.column) for problem in caught.value.problems] == [(5, "pixel4"), (9, "label")]


# --- any file --------------------------------------------------------------------------------------------------------

GOOD_ROW = st.tuples(st.integers(0, 9), *[st.integers(0, 255)] * 4)
SPELLINGS = ("{}", "{}", "{}", '"{}"', " {}", "{} ", '"{}" ', ' "{}"', '" {} "', "0{}", "000{}")


@st.composite
def spelled(draw: st.DrawFn) -> tuple[list[list[int]], bytes]:
    """A table, and one of the many ways to write it."""
    rows = draw(st.lists(GOOD_ROW, min_size=3, max_size=30))
    cell = draw(st.sampled_from([st.just("{}"), st.sampled_from(SPELLINGS)]))
    end = st.just(draw(st.sampled_from(["\n", "\r\n"]))) if draw(st.booleans()) else st.sampled_from(["\n", "\r\n"])
    lines = [[draw(cell).format(value) for value in row] for row in rows]
    text = HEADER.decode() + "".join(",".join(line) + draw(end) for line in lines)
    text = text.rstrip("\r\n") if draw(st.booleans()) else text + draw(st.sampled_from(["", "\n", "\r\n\n"]))
    content = draw(st.sampled_from([b"", b"\xef\xbb\xbf"])) + text.encode()
    return [list(row) for row in rows], gzip.compress(content, 1) if draw(st.booleans()) else content


@settings(deadline=None, max_examples=150)
@given(spelled(), st.sampled_from([5, 40, 1 << 20]))
def test_any_spelling_of_a_table_is_read_as_that_table(table: tuple[list[list[int]], bytes], block_bytes: int) -> None:
    rows, content = table
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_BLOCK_BYTES", block_bytes)
        assert values(convert(Path(folder), content)) == rows


@settings(deadline=None, max_examples=100)
@given(
    st.lists(GOOD_ROW, min_size=3, max_size=30),
    st.dictionaries(
        st.tuples(st.integers(0, 29), st.integers(0, 4)),
        st.sampled_from(["256", "-1", "", "x", "1.0", "1e1", "\u0661"]),
    ),
)
def test_every_bad_cell_is_counted_and_the_first_ten_are_named(
    rows: list[tuple[int, ...]], damage: dict[tuple[int, int], str]
) -> None:
    damage = {at: cell for at, cell in damage.items() if at[0] < len(rows)}
    assume(damage)
    cells = [[damage.get((y, x), str(value)) for x, value in enumerate(row)] for y, row in enumerate(rows)]
    with tempfile.TemporaryDirectory() as folder:
        error = refusal(Path(folder), HEADER + "\n".join(map(",".join, cells)).encode())
    assert error.count == len(damage)
    assert [(p.line, p.column) for p in error.problems] == [(y + 2, TINY.columns[x]) for y, x in sorted(damage)][:10]


def naive_cell(text: str, column: str) -> int | None:
    if not re.fullmatch(" *[0-9]{1,9} *", text):
        return None
    low, high = TINY.bounds(column)
    return int(text) if low <= int(text) <= high else None


def naive_line(line: bytes, *, strict: bool) -> list[int | None] | None:
    """What Python's csv reads in a line, None for a bad cell; None alone for a line of the wrong length."""
    if b"\r" in line:  # csv takes a lone carriage return for the end of a line
        return None
    try:
        text = line.decode("utf-8", "replace")
        (cells,) = csv.reader([text], skipinitialspace=True, strict=strict)
    except (csv.Error, ValueError):
        return None
    if len(cells) != len(TINY.columns):
        return None
    return [naive_cell(cell, column) for cell, column in zip(cells, TINY.columns, strict=True)]


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_any_damage_is_either_harmless_or_refused_where_it_is(data: st.DataObject) -> None:
    content = bytearray(data.draw(st.sampled_from([HEADER + BODY, ACCEPTED["crlf"], ACCEPTED["quoted everywhere"]])))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(len(HEADER) if data.draw(st.booleans()) else 0, len(content)))
        until = at + data.draw(st.integers(0, 3))
        content[at:until] = data.draw(st.text('059,"\n\r -x\x00').map(str.encode) | st.binary(max_size=3))
    lines = bytes(content).removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").split(b"\n")
    with tempfile.TemporaryDirectory() as folder:
        try:
            table = convert(Path(folder), bytes(content))
        except DataContractError as error:
            for problem in error.problems:
                if problem.line > 1 and problem.column in TINY.columns:
                    read = naive_line(lines[problem.line - 1], strict=True)
                    assert read is None or read[TINY.columns.index(problem.column)] is None
        else:
            kept = [line for line in lines[1:] if line.strip(b" ")]
            assert values(table) == [naive_line(line, strict=False) for line in kept]


# --- the task --------------------------------------------------------------------------------------------------------


@pytest.fixture
def supplied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CsvFile:
    monkeypatch.setattr(contracts, "CONTRACTS", {"tiny": TINY})
    path = tmp_path / "tiny_train.csv"
    path.write_bytes(HEADER + BODY)
    return CsvFile(split="train", path=path, sha256=hashlib.sha256(HEADER + BODY).hexdigest(), origin="supplied")


def test_task_hands_on_a_reference_to_the_parquet(supplied: CsvFile, tmp_path: Path) -> None:
    result: ParquetSplit = ingest.fn(supplied, "tiny", tmp_path / "artifacts")
    assert result.path.name == "train.parquet"
    assert result.path.is_relative_to(tmp_path / "artifacts" / "data")
    assert (result.rows, result.origin, result.source) == (3, "supplied", supplied)
    assert result.sha256 == hashlib.sha256(result.path.read_bytes()).hexdigest()
    assert values(pq.read_table(result.path)) == ROWS


def test_unchanged_csv_is_not_converted_twice_and_a_changed_byte_is(supplied: CsvFile, tmp_path: Path) -> None:
    first = ingest.fn(supplied, "tiny", tmp_path / "artifacts")
    again = ingest.fn(supplied, "tiny", tmp_path / "artifacts")
    assert (first.record.reused, again.record.reused) == (False, True)
    assert again == first.model_copy(update={"record": again.record})
    content = (HEADER + BODY).replace(b"250", b"251")
    supplied.path.write_bytes(content)
    changed = supplied.model_copy(update={"sha256": hashlib.sha256(content).hexdigest()})
    third = ingest.fn(changed, "tiny", tmp_path / "artifacts")
    assert not third.record.reused
    assert values(pq.read_table(third.path))[2][4] == 251


def test_refused_csv_leaves_no_stage_behind(supplied: CsvFile, tmp_path: Path) -> None:
    supplied.path.write_bytes(damaged(b"x"))
    with pytest.raises(DataContractError, match="changed since"):
        ingest.fn(supplied, "tiny", tmp_path / "artifacts")
    assert not [path for path in (tmp_path / "artifacts" / "data").iterdir() if path.suffix != ".lock"]
