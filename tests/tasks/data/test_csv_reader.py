"""The reader accepts every form of its format, and names each fault by line and column."""

import gzip
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.contract import FASHION_MNIST, DatasetContract
from schemas.errors import DataContractError
from tasks.data import csv_blocks, csv_reader, csv_to_parquet
from tasks.data.csv_reader import open_csv
from tasks.data.parquet_split import ingest_csv
from tests.memory import peak_bytes
from tests.tasks.data.csv_cases import BODY, CASES, CRLF, GOOD, GZIP, HEADER, LABEL_LAST, QUOTED, ROWS, TINY, quoted
from tests.tasks.data.csv_oracle import (
    QUARANTINE,
    TARGET,
    compare_with_csv,
    ingest_again,
    ingest_bytes,
    reject_bytes,
    rows_of,
    supplied,
)

CORPUS = Path(__file__).parents[2] / "fuzz" / "corpus"
BOM_CRLF = b"\xef\xbb\xbf" + CRLF
BYTES = {case.name: case for case in CASES if isinstance(case.content, bytes)}


def full_csv(rows: npt.NDArray[np.uint8], contract: DatasetContract = FASHION_MNIST) -> bytes:
    lines = [",".join(contract.columns), *(",".join(map(str, row)) for row in rows.tolist())]
    return ("\n".join(lines) + "\n").encode()


def random_rows(count: int) -> npt.NDArray[np.uint8]:
    """Return uint8 (count, 785): labels 0..9, then pixels 0..255."""
    generator = np.random.default_rng(0)
    rows = generator.integers(0, 256, (count, 785), np.uint8)
    rows[:, 0] %= 10
    return rows


def read(source: Path, content: bytes, contract: DatasetContract = FASHION_MNIST) -> npt.NDArray[np.uint8]:
    source.write_bytes(content)
    with open_csv(source, contract) as rows:
        return np.concatenate(list(rows))


# --- blocks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block_bytes", [1, 2, 3, 7, 30, 64])
@pytest.mark.parametrize(
    "content", [GOOD, CRLF, BOM_CRLF, QUOTED, GZIP], ids=["plain", "crlf", "BOM and crlf", "quoted", "gzip"]
)
def test_the_end_of_a_block_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, block_bytes: int
) -> None:
    monkeypatch.setattr(csv_reader, "BLOCK_BYTES", block_bytes)
    assert read(tmp_path / "tiny.csv", content, TINY).tolist() == ROWS


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("order", [(0, 1, 2, 3, 4), (4, 2, 0, 1, 3)])
def test_yields_blocks_in_the_contracts_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, labelled: bool, order: tuple[int, ...]
) -> None:
    monkeypatch.setattr(csv_reader, "BLOCK_BYTES", 30)
    in_file = [at for at in order if labelled or at]
    lines = [line.split(b",") for line in GOOD.splitlines()]
    source = tmp_path / "images.csv"
    source.write_bytes(b"\n".join(b",".join(cells[at] for at in in_file) for cells in lines))
    first = 0 if labelled else 1
    with open_csv(source, TINY, label_optional=True) as rows:
        assert (rows.columns, rows.labelled) == (TINY.columns[first:], labelled)
        blocks = list(rows)
    assert len(blocks) > 1
    assert all(len(block) and block.dtype == np.uint8 for block in blocks)
    assert np.concatenate(blocks).tolist() == [row[first:] for row in ROWS]
    assert (rows.tally.rows, rows.tally.count) == (3, 0)


def test_reorders_785_columns_and_describes_it(tmp_path: Path) -> None:
    order = np.random.default_rng(0).permutation(785)
    rows = random_rows(120)
    lines = [",".join(FASHION_MNIST.columns[at] for at in order), *(",".join(map(str, row[order])) for row in rows)]
    (tmp_path / "test.csv").write_text("\n".join(lines) + "\n")
    with open_csv(tmp_path / "test.csv", FASHION_MNIST) as csv:
        assert np.array_equal(np.concatenate(list(csv)), rows)
    first = FASHION_MNIST.columns[order[0]]
    assert csv.reordered == f"columns were reordered ({first} is column 1, expected {order[0] + 1})"


def test_arrays_and_lines_give_the_same_785_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_reader, "BLOCK_BYTES", 1 << 17)
    rows = random_rows(200)  # five blocks
    assert np.array_equal(read(tmp_path / "test.csv", quoted(full_csv(rows))), rows)
    monkeypatch.setattr(csv_blocks, "parse_line", None)  # a plain file is never parsed by line
    assert np.array_equal(read(tmp_path / "test.csv", full_csv(rows)), rows)


def test_yields_no_row_after_the_first_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_reader, "BLOCK_BYTES", 20)
    source = tmp_path / "images.csv"
    source.write_bytes(GOOD + b"1,2,3,4,256\n" + BODY + b"10,2,3,4,5\n" + BODY)
    received: list[list[int]] = []
    with pytest.raises(DataContractError) as caught, open_csv(source, TINY) as rows:
        for block in rows:
            received += block.tolist()
    assert received == ROWS
    assert [(problem.line, problem.column) for problem in caught.value.problems] == [(5, "pixel4"), (9, "label")]


# --- memory ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "copies"),
    [
        ("plain", (2, 18)),
        # From Python 3.12 on gzip reads 128 KiB of compressed bytes at a time; 12 copies compress to 164 KiB.
        ("gzip", (12, 60)),
        ("quoted", (2, 18)),
        ("label last", (2, 18)),
    ],
)
def test_memory_does_not_grow_with_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, copies: tuple[int, int]
) -> None:
    monkeypatch.setattr(csv_to_parquet, "BLOCK_ROWS", 64)
    monkeypatch.setattr(csv_reader, "BLOCK_BYTES", 1 << 13)
    narrow = replace(FASHION_MNIST, height=10, width=10)
    text = full_csv(random_rows(100)[:, :101], narrow)
    if form == "quoted":
        text = quoted(text)
    elif form == "label last":
        text = b"".join(line.partition(b",")[2] + b"," + line.partition(b",")[0] + b"\n" for line in text.splitlines())
    header, _, body = text.partition(b"\n")
    pack = gzip.compress if form == "gzip" else bytes
    peaks = []
    for times in copies:
        (tmp_path / "train.csv").write_bytes(pack(header + b"\n") + pack(body) * times)
        csv = supplied(tmp_path / "train.csv")
        ingest = partial(ingest_again, csv, tmp_path, narrow)
        peaks.append(peak_bytes(ingest, 1.5 * sum(peaks)))
    assert peaks[1] < len(body) * copies[1] / 3
    assert peaks[1] < 1.5 * peaks[0]


def test_memory_does_not_grow_with_the_bad_rows(tmp_path: Path) -> None:
    peaks = []
    for rows in (150, 900):
        (tmp_path / "tiny.csv").write_bytes(GOOD + (b"1," + b"x" * 100_000 + b",3,4,5\n") * rows)
        csv = supplied(tmp_path / "tiny.csv")
        ingest = partial(ingest_again, csv, tmp_path, TINY, "100%")
        peaks.append(peak_bytes(ingest, 1.5 * sum(peaks)))
    assert peaks[1] < 1.5 * peaks[0]


def test_memory_does_not_grow_with_a_line(tmp_path: Path) -> None:
    source = tmp_path / "tiny.csv"
    with source.open("wb") as file:
        file.write(GOOD)
        for _ in range(100):
            file.write(b"7" * 1_000_000)
    csv = supplied(source)

    def rejected() -> None:
        with pytest.raises(DataContractError, match="line 5, column label: expected the end of the line"):
            ingest_csv(csv, tmp_path / TARGET, tmp_path / QUARANTINE, TINY)

    assert peak_bytes(rejected, 20_000_000) < 20_000_000


# --- faults ----------------------------------------------------------------------------------------------------------


def test_names_the_first_ten_problems_and_counts_all(tmp_path: Path) -> None:
    content = HEADER + b"10,x,y,z,256\n" + BODY + b"\n\n1,2\n" + b"a,b,c,d,e\n" * 1_000
    error = reject_bytes(tmp_path, content)
    assert error.count == 5 + 2 + 1 + 5_000
    assert [(problem.line, problem.column) for problem in error.problems] == [
        *((2, column) for column in TINY.columns),
        (6, "label"), (7, "label"), (8, "pixel2"), (9, "label"), (9, "pixel1"),
    ]  # fmt: skip
    assert ".. and 4998 more" in str(error)
    assert "1004 of 1007 rows are bad" in str(error)
    assert len(str(error).splitlines()) == 12


@pytest.mark.parametrize(("blank", "count"), [(b"\n", 1_000), (b" " * 2_000 + b"\n", 600), (b"\n", 12_345)])
def test_blank_lines_before_the_last_row_are_bad(tmp_path: Path, blank: bytes, count: int) -> None:
    error = reject_bytes(tmp_path, GOOD + blank * count + BODY)
    assert (error.count, len(error.problems), error.problems[0].line) == (count, 10, 5)
    rows = rows_of(tmp_path / QUARANTINE)
    assert [row["line"] for row in rows] == list(range(5, 5 + count))
    assert {row["raw_text"] for row in rows} == {blank}


def test_too_many_blank_lines_at_the_end_are_bad(tmp_path: Path) -> None:
    assert ingest_bytes(tmp_path, GOOD + b"\n" * 10_000) == ROWS
    for more in (10_001, 15_000):
        assert reject_bytes(tmp_path, GOOD + b"\n" * more).count == more
    # The count starts again after each row.
    long = b" " * 600_000 + b"\n"
    assert reject_bytes(tmp_path, GOOD + long + BODY + long).count == 1
    assert reject_bytes(tmp_path, GOOD + long + BODY + long * 2).count == 3


@pytest.mark.parametrize("block_bytes", [1, 50, len(GOOD) + 2, 1 << 20])
def test_line_numbers_are_right_across_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_bytes: int
) -> None:
    monkeypatch.setattr(csv_reader, "BLOCK_BYTES", block_bytes)
    error = reject_bytes(tmp_path, GOOD + b"\n\n" + BODY * 40 + b'"1",2,3,4,5\n' + BODY + b"1,2,3,4,-5\n")
    assert [(problem.line, problem.column) for problem in error.problems] == [
        (5, "label"), (6, "label"), (131, "pixel4"),
    ]  # fmt: skip


@pytest.mark.parametrize("form", [bytes, quoted], ids=["array", "lines"])
def test_pixels_must_be_within_the_contracts_range(tmp_path: Path, form: Callable[[bytes], bytes]) -> None:
    contract = replace(TINY, pixel_min=10, pixel_max=210, background=10)
    good = HEADER + b"0,10,11,209,210\n"
    assert read(tmp_path / "tiny.csv", form(good), contract).tolist() == [[0, 10, 11, 209, 210]]
    for row, column in ((b"0,9,10,210,210\n", "pixel1"), (b"0,10,10,210,211\n", "pixel4")):
        with pytest.raises(DataContractError, match=rf"line 3, column {column}: expected an integer 10\.\.210"):
            read(tmp_path / "tiny.csv", form(good + row), contract)


# --- any file --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BYTES)
def test_each_form_agrees_with_csv_when_compressed(name: str, tmp_path: Path) -> None:
    case = BYTES[name]
    assert isinstance(case.content, bytes)
    packed = case.content if case.content.startswith(b"\x1f\x8b") else gzip.compress(case.content)
    assert compare_with_csv(packed, tmp_path) == case.verdict


@pytest.mark.parametrize("path", sorted(CORPUS.iterdir()), ids=lambda path: path.name[:8])
def test_the_fuzzers_corpus_agrees_with_csv(path: Path, tmp_path: Path) -> None:
    compare_with_csv(path.read_bytes(), tmp_path)


def as_rows(content: bytes) -> list[list[int]]:
    """Return five bytes per row, of which the first becomes a label."""
    return [[content[at] % 10, *content[at + 1 : at + 5]] for at in range(0, len(content) - 4, 5)]


# Drawn as bytes: drawing each number takes longer than ingesting it.
GOOD_ROWS = st.binary(min_size=3 * 5, max_size=30 * 5).map(as_rows)
SPELLINGS = ("{}", "{}", "{}", '"{}"', " {}", "{} ", '"{}" ', ' "{}"', '" {} "', "0{}", "000{}")


@st.composite
def spelled(draw: st.DrawFn) -> tuple[list[list[int]], bytes]:
    """Draw a table, and one of the many ways to write it."""
    rows = draw(GOOD_ROWS)
    order = draw(st.permutations(range(5)) | st.just(range(5)))
    cells = iter(draw(st.just(bytes(150)) | st.binary(min_size=150, max_size=150)))
    end = st.just(draw(st.sampled_from(["\n", "\r\n"]))) if draw(st.booleans()) else st.sampled_from(["\n", "\r\n"])
    table = [[SPELLINGS[next(cells) % len(SPELLINGS)].format(row[at]) for at in order] for row in rows]
    lines = [[TINY.columns[at] for at in order], *table]
    text = "".join(",".join(line) + draw(end) for line in lines)
    text = text.rstrip("\r\n") if draw(st.booleans()) else text + draw(st.sampled_from(["", "\n", "\r\n\n"]))
    content = draw(st.sampled_from([b"", b"\xef\xbb\xbf"])) + text.encode()
    return rows, gzip.compress(content, 1) if draw(st.booleans()) else content


@settings(deadline=None, max_examples=150)
@given(spelled(), st.sampled_from([5, 40, 1 << 20]))
def test_reads_any_spelling_of_a_table(table: tuple[list[list[int]], bytes], block_bytes: int) -> None:
    rows, content = table
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(csv_reader, "BLOCK_BYTES", block_bytes)
        assert ingest_bytes(Path(folder), content) == rows


@settings(deadline=None, max_examples=100)
@given(
    GOOD_ROWS,
    st.dictionaries(
        st.tuples(st.integers(0, 29), st.integers(0, 4)),
        st.sampled_from(["256", "-1", "", "x", "1.0", "1e1", "\u0661"]),
        min_size=1,
    ),
)
def test_finds_every_bad_cell_of_any_table(rows: list[list[int]], damage: dict[tuple[int, int], str]) -> None:
    damage = {(y % len(rows), x): cell for (y, x), cell in damage.items()}
    good = [
        [SPELLINGS[(y + x) % len(SPELLINGS)].format(value) for x, value in enumerate(row)] for y, row in enumerate(rows)
    ]
    cells = [[damage.get((y, x), cell) for x, cell in enumerate(row)] for y, row in enumerate(good)]
    with tempfile.TemporaryDirectory() as folder:
        error = reject_bytes(Path(folder), HEADER + "\n".join(map(",".join, cells)).encode())
        rejected = rows_of(Path(folder) / QUARANTINE)
    assert error.count == len(damage)
    places = [(y + 2, TINY.columns[x]) for y, x in sorted(damage)]
    assert [(problem.line, problem.column) for problem in error.problems] == places[:10]
    assert [row["line"] for row in rejected] == sorted({line for line, _ in places})
    firsts = dict(sorted(damage, reverse=True))
    assert [row["value"] for row in rejected] == [damage[y, firsts[y]] for y in sorted(firsts)]


TEXTS = (GOOD, CRLF, QUOTED, LABEL_LAST, GOOD + b"\n\n", b"\xef\xbb\xbf" + GOOD)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """Draw a file with a few bytes replaced, inserted or removed."""
    content = bytearray(draw(st.sampled_from(TEXTS)))
    for _ in range(draw(st.integers(0, 5))):
        at = draw(st.integers(len(HEADER) if draw(st.integers(0, 3)) else 0, len(content)))
        content[at : at + draw(st.integers(0, 3))] = draw(
            st.text('059,"\n\r -x\x00').map(str.encode) | st.binary(max_size=3) | st.sampled_from([HEADER, BODY, b"\n"])
        )
    if draw(st.booleans()):
        return bytes(content)
    packed = bytearray(gzip.compress(content, mtime=0))
    if draw(st.booleans()):
        at = draw(st.integers(0, len(packed) - 1))
        packed[at:] = draw(st.binary(max_size=4)) + packed[at + draw(st.integers(0, 4)) :]
    return bytes(packed)


@settings(deadline=None, max_examples=300)
@given(damaged() | st.binary(max_size=200) | st.binary(max_size=60).map(HEADER.__add__))
def test_any_bytes_agree_with_csv(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        compare_with_csv(content, Path(folder))
