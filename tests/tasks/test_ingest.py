"""Ingest takes what its grammar allows, to the value, and names what it refuses, to the cell."""

import gzip
import hashlib
import os
import socket
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas import contract as contracts
from schemas.contract import FASHION_MNIST, DatasetContract, Split
from schemas.errors import DataContractError
from schemas.references import CsvSplit, ParquetSplit
from tasks.data import csv_reader as module
from tasks.data import csv_to_parquet
from tasks.data import quarantine as quarantine_module
from tasks.data.csv_reader import open_csv
from tasks.data.csv_to_parquet import IngestFacts, ingest_csv, parquet_schema
from tasks.ingest import ingest
from tests.memory import peak_bytes
from tests.tasks.data.csv_cases import (
    BODY,
    CASES,
    CRLF,
    GOOD,
    GZIP,
    HEADER,
    IDS,
    LABEL_LAST,
    QUOTED,
    ROWS,
    TINY,
    Case,
    quoted,
)
from tests.tasks.data.csv_oracle import QUARANTINE, TARGET, demand_the_verdict_of_csv, rows_of, supplied, values

CORPUS = Path(__file__).parents[1] / "fuzz" / "corpus"


def bound_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


def convert(folder: Path, content: bytes, split: Split = "train") -> list[list[int]]:
    """The rows of the Parquet of a tiny CSV without a bad row."""
    source = folder / "tiny_train.csv"
    source.write_bytes(content)
    (folder / TARGET).unlink(missing_ok=True)
    facts = ingest_csv(supplied(source, split=split), folder / TARGET, folder / QUARANTINE, TINY)
    rows = values(folder / TARGET)
    assert replace(facts, reordered=()) == IngestFacts(rows=len(rows), quarantined=0, count=0, problems=())
    return rows


def refusal(folder: Path, content: bytes, split: Split = "train") -> DataContractError:
    with pytest.raises(DataContractError) as caught:
        convert(folder, content, split)
    assert not (folder / TARGET).exists()
    return caught.value


# --- the table of all forms ------------------------------------------------------------------------------------------


def put(case: Case, path: Path) -> CsvSplit:
    if isinstance(case.made, bytes):
        path.write_bytes(case.made)
    else:
        case.made(path)
    return supplied(path)


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_each_form_has_its_verdict_line_and_column(case: Case, tmp_path: Path) -> None:
    csv, target, quarantine = put(case, tmp_path / "tiny.csv"), tmp_path / TARGET, tmp_path / QUARANTINE
    try:
        ingest_csv(csv, target, quarantine, TINY)
    except DataContractError as error:
        assert case.verdict != "taken", error
        demand_the_words(case, error)
        assert quarantine.exists() == (case.verdict == "bad row")
        assert {path.name for path in tmp_path.iterdir()} <= {"tiny.csv", QUARANTINE}
    else:
        assert case.verdict == "taken"
        assert values(target) == ROWS
        assert pq.read_schema(target).equals(parquet_schema(TINY))
        assert not quarantine.exists()


def demand_the_words(case: Case, error: DataContractError) -> None:
    assert case.words in str(error)
    assert "tiny.csv" in str(error)
    assert len(str(error)) < 900
    if not case.line:
        assert (error.problems, error.count) == ((), 0)
        return
    (problem,) = error.problems
    assert (problem.line, problem.column, problem.file) == (case.line, case.column, "tiny.csv")
    assert problem.value.startswith(case.value)
    assert f"tiny.csv line {case.line}, column {case.column}: {problem.reason}, received {problem.value}" in str(error)
    assert error.count == 1


BYTES = [case for case in CASES if isinstance(case.made, bytes)]


@pytest.mark.parametrize("case", BYTES, ids=[case.name for case in BYTES])
def test_each_form_has_its_verdict_when_it_is_packed_and_when_bad_rows_are_allowed(case: Case, tmp_path: Path) -> None:
    assert isinstance(case.made, bytes)
    packed = case.made if case.made.startswith(b"\x1f\x8b") else gzip.compress(case.made)
    assert demand_the_verdict_of_csv(packed, tmp_path) == case.verdict


def test_a_file_that_this_user_may_not_read_is_refused_in_words() -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)
        source = Path(folder) / "tiny.csv"
        source.write_bytes(GOOD)
        csv = supplied(source)
        source.chmod(0)
        root = os.geteuid() == 0
        if root:  # who may read everything
            os.seteuid(65534)
        try:
            with pytest.raises(DataContractError, match=r"tiny\.csv cannot be read \(Permission denied\)"):
                ingest_csv(csv, Path(folder) / TARGET, Path(folder) / QUARANTINE, TINY)
        finally:
            if root:
                os.seteuid(0)
        assert [path.name for path in Path(folder).iterdir()] == ["tiny.csv"]


def test_a_line_of_100_mb_is_refused_in_bounded_memory(tmp_path: Path) -> None:
    source = tmp_path / "tiny.csv"
    with source.open("wb") as file:
        file.write(GOOD)
        for _ in range(100):
            file.write(b"7" * 1_000_000)
    csv = supplied(source)

    def refused() -> None:
        with pytest.raises(DataContractError, match="line 5, column label: expected the end of the line"):
            ingest_csv(csv, tmp_path / TARGET, tmp_path / QUARANTINE, TINY)

    assert peak_bytes(refused, 20_000_000) < 20_000_000


# --- what is accepted ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block_bytes", [1, 2, 3, 7, 30, 64])
@pytest.mark.parametrize(
    "content",
    [GOOD, CRLF, b"\xef\xbb\xbf" + CRLF, QUOTED, GZIP],
    ids=["plain", "crlf", "byte order mark and crlf", "quoted", "gzip"],
)
def test_where_blocks_end_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, block_bytes: int
) -> None:
    monkeypatch.setattr(module, "_BLOCK_BYTES", block_bytes)
    assert convert(tmp_path, content) == ROWS


def test_columns_in_another_order_are_put_right_and_the_facts_say_so(tmp_path: Path) -> None:
    order = np.random.default_rng(0).permutation(785)
    rows = random_rows(120)
    lines = [",".join(FASHION_MNIST.columns[at] for at in order), *(",".join(map(str, row[order])) for row in rows)]
    (tmp_path / "test.csv").write_text("\n".join(lines) + "\n")
    (sentence,) = ingest_full(tmp_path).reordered
    assert np.array_equal(as_array(tmp_path / TARGET), rows)
    first, right = FASHION_MNIST.columns[order[0]], order[0] + 1
    assert sentence == (
        f"test.csv: its columns stand in another order ({first} is number 1, expected {right}): put right"
    )


def ingest_full(folder: Path) -> IngestFacts:
    """``test.csv``, of 784 pixels."""
    return ingest_csv(supplied(folder / "test.csv", split="test"), folder / TARGET, folder / QUARANTINE, FASHION_MNIST)


def full_csv(rows: npt.NDArray[np.uint8], contract: DatasetContract = FASHION_MNIST) -> bytes:
    lines = [",".join(contract.columns), *(",".join(map(str, row)) for row in rows.tolist())]
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
    monkeypatch.setattr(module, "_BLOCK_BYTES", 1 << 17)
    rows = random_rows(200)  # five blocks
    (tmp_path / "test.csv").write_bytes(full_csv(rows))
    with monkeypatch.context() as patch:
        patch.setattr(module._BlockReader, "_by_line", None)  # a plain file must not come here
        ingest_full(tmp_path)
    as_arrays = (tmp_path / TARGET).read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(module._BlockReader, "_as_array", lambda self, block: None)
        ingest_full(tmp_path)
    assert (tmp_path / TARGET).read_bytes() == as_arrays
    assert np.array_equal(as_array(tmp_path / TARGET), rows)


def test_parquet_has_the_contracts_columns_ranges_in_its_footer_and_bounded_row_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(csv_to_parquet, "BLOCK_ROWS", 100)
    rows = random_rows(250)
    (tmp_path / "test.csv").write_bytes(full_csv(rows))
    ingest_full(tmp_path)
    file = pq.ParquetFile(tmp_path / TARGET)
    assert file.schema_arrow.names == list(FASHION_MNIST.columns)
    assert all(field.type == pa.uint8() and not field.nullable for field in file.schema_arrow)
    assert [file.metadata.row_group(at).num_rows for at in range(file.num_row_groups)] == [100, 100, 50]
    statistics = file.metadata.row_group(1).column(17).statistics
    assert (statistics.min, statistics.max) == (rows[100:200, 17].min(), rows[100:200, 17].max())
    assert np.array_equal(as_array(tmp_path / TARGET), rows)


@pytest.mark.parametrize(
    ("form", "pack", "sizes"),
    [
        ("plain", bytes, (2, 18)),
        # From Python 3.12 on gzip reads 128 KiB of compressed bytes at a time; 12 copies compress to 164 KiB.
        ("plain", gzip.compress, (12, 60)),
        ("quoted", bytes, (2, 18)),
        ("label last", bytes, (2, 18)),
        ("every other row bad", bytes, (2, 18)),
    ],
)
def test_memory_does_not_grow_with_the_file(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    form: str,
    pack: Callable[[bytes], bytes],
    sizes: tuple[int, int],
) -> None:
    monkeypatch.setattr(csv_to_parquet, "BLOCK_ROWS", 64)
    monkeypatch.setattr(module, "_BLOCK_BYTES", 1 << 13)
    monkeypatch.setattr(quarantine_module, "_BUFFER_ROWS", 64)
    narrow = replace(FASHION_MNIST, height=10, width=10)
    text = full_csv(random_rows(100)[:, :101], narrow)
    if form == "quoted":
        text = quoted(text)
    elif form == "label last":
        text = b"".join(line.partition(b",")[2] + b"," + line.partition(b",")[0] + b"\n" for line in text.splitlines())
    elif form == "every other row bad":
        text = b"".join((b"-" if at and at % 2 else b"") + line for at, line in enumerate(text.splitlines(True)))
    header, _, body = text.partition(b"\n")
    peaks = []
    for times in sizes:
        (tmp_path / "train.csv").write_bytes(pack(header + b"\n") + pack(body) * times)
        csv = supplied(tmp_path / "train.csv", split="test")
        ingested = partial(ingest_csv, csv, tmp_path / TARGET, tmp_path / QUARANTINE, narrow, "50%")
        peaks.append(peak_bytes(ingested, 1.5 * sum(peaks)))
    assert peaks[1] < len(body) * sizes[1] / 3
    assert peaks[1] < 1.5 * peaks[0]


# --- what is refused -------------------------------------------------------------------------------------------------


def test_first_ten_problems_are_named_in_order_and_all_are_counted(tmp_path: Path) -> None:
    content = HEADER + b"10,x,y,z,256\n" + BODY + b"\n\n1,2\n" + b"a,b,c,d,e\n" * 1_000
    error = refusal(tmp_path, content)
    assert error.count == 5 + 2 + 1 + 5_000
    assert [(problem.line, problem.column) for problem in error.problems] == [
        *((2, column) for column in TINY.columns),
        (6, "label"), (7, "label"), (8, "pixel2"), (9, "label"), (9, "pixel1"),
    ]  # fmt: skip
    assert ".. and 4998 more" in str(error)
    assert "1004 of 1007 rows are bad" in str(error)
    assert len(str(error).splitlines()) == 12


@pytest.mark.parametrize(("blank", "count"), [(b"\n", 1_000), (b" " * 2_000 + b"\n", 600), (b"\n", 12_345)])
def test_blank_lines_before_the_last_row_are_bad_rows(tmp_path: Path, blank: bytes, count: int) -> None:
    error = refusal(tmp_path, GOOD + blank * count + BODY)
    assert (error.count, len(error.problems), error.problems[0].line) == (count, 10, 5)
    rows = rows_of(tmp_path / QUARANTINE)
    assert [row["line"] for row in rows] == list(range(5, 5 + count))
    assert {row["raw_text"] for row in rows} == {blank}


def test_more_blank_lines_than_a_file_ends_with_are_bad_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert convert(tmp_path, GOOD + b"\n" * 10_000) == ROWS
    for more in (10_001, 15_000):
        assert refusal(tmp_path, GOOD + b"\n" * more).count == more
    # Counted anew after each row.
    long = b" " * 600_000 + b"\n"
    assert refusal(tmp_path, GOOD + long + BODY + long).count == 1
    assert refusal(tmp_path, GOOD + long + BODY + long * 2).count == 3


def test_blank_lines_between_two_blocks_are_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BLOCK_BYTES", len(GOOD) + 2)
    error = refusal(tmp_path, GOOD + b"\n\n" + BODY)
    assert [problem.line for problem in error.problems] == [5, 6]


@pytest.mark.parametrize("block_bytes", [1, 50, 1 << 20])
def test_line_numbers_hold_across_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_bytes: int) -> None:
    monkeypatch.setattr(module, "_BLOCK_BYTES", block_bytes)
    error = refusal(tmp_path, HEADER + BODY * 40 + b'"1",2,3,4,5\n' + BODY + b"1,2,3,4,-5\n")
    assert [(problem.line, problem.column) for problem in error.problems] == [(126, "pixel4")]


def test_pixel_256_is_rejected_with_its_line_among_785_columns(tmp_path: Path) -> None:
    lines = full_csv(random_rows(120)).split(b"\n")
    cells = lines[119].split(b",")
    cells[412] = b"256"
    lines[119] = b",".join(cells)
    (tmp_path / "test.csv").write_bytes(b"\n".join(lines))
    with pytest.raises(
        DataContractError, match=r"line 120, column pixel412: expected an integer 0\.\.255, received 256"
    ):
        ingest_full(tmp_path)


@pytest.mark.parametrize("content", [GOOD + b"1" * 3_000, b"1" * 3_000 + b"\n", HEADER + b"1" * 900 + b"\n"])
def test_file_without_line_ends_is_rejected_before_it_fills_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    monkeypatch.setattr(module, "_BLOCK_BYTES", 500)
    monkeypatch.setattr(module, "_LINE_BYTES", 800)
    error = refusal(tmp_path, content)
    lines = content.split(b"\n")
    assert [problem.line for problem in error.problems] == [next(i for i, x in enumerate(lines, 1) if len(x) > 800)]
    assert "more than 800 bytes" in str(error)


@pytest.mark.parametrize(
    "content",
    [GOOD, GOOD.replace(b"200", b"x"), GZIP, b"nothing of it"],
    ids=["whole", "damaged", "gzip", "nothing of it"],
)
def test_file_that_changed_since_it_was_hashed_is_rejected(tmp_path: Path, content: bytes) -> None:
    source = tmp_path / "tiny.csv"
    source.write_bytes(b"as it was")
    csv = supplied(source)
    source.write_bytes(content)
    with pytest.raises(DataContractError, match=r"changed.*expected sha256 \w+, received") as caught:
        ingest_csv(csv, tmp_path / TARGET, tmp_path / QUARANTINE, TINY, "100%")
    assert hashlib.sha256(content).hexdigest() in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.csv"]


@pytest.mark.parametrize("content", [GOOD * 9, GOOD * 9 + b"x\n"], ids=["good", "bad"])
def test_file_that_changes_while_it_is_read_is_rejected_whoever_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    monkeypatch.setattr(module, "_BLOCK_BYTES", 50)
    source = tmp_path / "images.csv"
    source.write_bytes(content)
    with (
        pytest.raises(DataContractError, match=r"images\.csv changed while it was read"),
        open_csv(source, TINY) as rows,
    ):
        next(iter(rows))
        with source.open("ab") as file:
            file.write(BODY)
        list(rows)


def overwritten(source: Path) -> None:
    """In place, behind what was read already; the size stays."""
    with source.open("r+b") as file:
        file.seek(len(HEADER))
        file.write(b"8")


def renamed_over(source: Path) -> None:
    other = source.with_name("other")
    other.write_bytes(source.read_bytes().replace(b"9,0,", b"8,0,"))
    other.rename(source)


def removed(source: Path) -> None:
    source.unlink()


CHANGES = [overwritten, renamed_over, removed]


def changing(patch: pytest.MonkeyPatch, change: Callable[[Path], None], source: Path, last: bytes) -> None:
    """``source`` changes when the end of ``last`` has been read, of a file read some bytes at a time."""
    patch.setattr(module, "_BLOCK_BYTES", 50)
    read = module._HashedFile.read
    done: list[Path] = []

    def read_and_change(self: Any, size: int = -1) -> bytes:
        data = read(self, size)
        if not data and self.path.name == last.decode() and not done:
            done.append(source)
            change(source)
        return data

    patch.setattr(module._HashedFile, "read", read_and_change)


@pytest.mark.parametrize("bad_rows", ["0", "100%"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_changes_behind_what_was_read_is_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], None], bad_rows: str
) -> None:
    source = tmp_path / "tiny.csv"
    source.write_bytes(GOOD + b"x\n")
    csv = supplied(source)
    changing(monkeypatch, change, source, b"tiny.csv")
    with pytest.raises(DataContractError, match=r"tiny\.csv changed while it was read"):
        ingest_csv(csv, tmp_path / TARGET, tmp_path / QUARANTINE, TINY, bad_rows)
    assert not (tmp_path / TARGET).exists()
    assert not (tmp_path / QUARANTINE).exists()


@pytest.mark.parametrize("change", CHANGES)
def test_a_shard_that_changes_after_its_turn_is_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], None]
) -> None:
    for name in ("tiny-1.csv", "tiny-2.csv"):
        (tmp_path / name).write_bytes(GOOD)
    csv = supplied(tmp_path / "tiny-1.csv", tmp_path / "tiny-2.csv")
    changing(monkeypatch, change, tmp_path / "tiny-1.csv", b"tiny-2.csv")
    with pytest.raises(DataContractError, match=r"tiny-1\.csv changed while it was read"):
        ingest_csv(csv, tmp_path / TARGET, tmp_path / QUARANTINE, TINY)
    assert not (tmp_path / TARGET).exists()


@pytest.mark.parametrize("change", CHANGES)
def test_whoever_knows_no_digest_finds_a_change_behind_what_was_read_too(
    tmp_path: Path, change: Callable[[Path], None]
) -> None:
    source = tmp_path / "images.csv"
    source.write_bytes(GOOD)
    with pytest.raises(DataContractError, match="changed while it was read"), open_csv(source, TINY) as rows:
        list(rows)
        change(source)


def test_a_file_that_is_written_anew_with_the_same_content_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "tiny.csv"
    source.write_bytes(GOOD)
    csv = supplied(source)
    changing(monkeypatch, lambda path: path.write_bytes(GOOD) and None, source, b"tiny.csv")
    assert ingest_csv(csv, tmp_path / TARGET, tmp_path / QUARANTINE, TINY).rows == 3


@pytest.mark.parametrize(
    ("made", "received"),
    [(os.mkfifo, "a pipe"), (lambda path: path.symlink_to("/dev/zero"), "a device"), (bound_socket, "a socket")],
)
def test_what_has_no_end_is_refused_before_it_is_opened(
    tmp_path: Path, made: Callable[[Path], None], received: str
) -> None:
    made(tmp_path / "images.csv")
    with (
        pytest.raises(DataContractError, match=rf"images\.csv is not a file\. Expected a CSV, received {received}"),
        open_csv(tmp_path / "images.csv", TINY),
    ):
        pass


def test_refusal_at_the_header_is_not_taken_for_a_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BLOCK_BYTES", 40)
    assert refusal(tmp_path, b"x" + GOOD).problems[0].line == 1


def test_too_few_rows_are_rejected_and_bad_ones_do_not_count(tmp_path: Path) -> None:
    few = GOOD.replace(b"5,7,77,177,250\n", b"")
    assert "has 2 rows: expected at least 3 for the train split" in str(refusal(tmp_path, few))
    (tmp_path / "tiny_train.csv").write_bytes(GOOD.replace(b"200", b"x"))
    csv = supplied(tmp_path / "tiny_train.csv", split="train")
    with pytest.raises(
        DataContractError, match=r"has 2 rows without the 1 bad ones, which are in .*: expected at least 3"
    ) as e:
        ingest_csv(csv, tmp_path / TARGET, tmp_path / QUARANTINE, TINY, 1)
    assert str(tmp_path / QUARANTINE) in str(e.value)
    assert [problem.value for problem in e.value.problems] == ["'x'"]
    assert not (tmp_path / TARGET).exists()
    assert (tmp_path / QUARANTINE).exists()


def test_fetched_file_needs_exactly_the_published_rows(tmp_path: Path) -> None:
    (tmp_path / "tiny_train.csv").write_bytes(GOOD + b"1,2,3,4,5\n")
    csv = supplied(tmp_path / "tiny_train.csv", split="train").model_copy(update={"origin": "fetched"})
    with pytest.raises(DataContractError, match="has 4 rows: expected the 3 of the train split"):
        ingest_csv(csv, tmp_path / TARGET, tmp_path / QUARANTINE, TINY)
    assert len(convert(tmp_path, GOOD + b"1,2,3,4,5\n")) == 4


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        ([*range(1, 11)], "shifted by one: some are one above their range, and its lowest never occurs"),
        ([*range(-1, 9)], "shifted by one: some are one below their range, and its highest never occurs"),
        ([*range(11)], None),
        ([*range(1, 12)], None),
        ([1, 2, 3, 10], None),
        ([*range(-1, 10)], None),
        ([*range(10), 300], None),
    ],
)
def test_labels_that_look_shifted_by_one_are_told_as_that(tmp_path: Path, labels: list[int], told: str | None) -> None:
    rows = [f"{label},1,2,3,4\n".encode() for label in labels * 3]
    contents = [HEADER + b"".join(rows[:7]), HEADER + b"".join(rows[7:])]
    for number, content in enumerate(contents):
        (tmp_path / f"tiny-{number}.csv").write_bytes(content)
    csv = supplied(*sorted(tmp_path.glob("*.csv")))
    with pytest.raises(DataContractError) as caught:
        ingest_csv(csv, tmp_path / TARGET, tmp_path / QUARANTINE, TINY)
    assert ("look shifted" in str(caught.value)) == (told is not None)
    assert (told or "") in str(caught.value)


# --- the reader alone ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("order", [(0, 1, 2, 3, 4), (4, 2, 0, 1, 3)])
def test_reader_gives_blocks_of_rows_with_or_without_the_label(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, labelled: bool, order: tuple[int, ...]
) -> None:
    monkeypatch.setattr(module, "_BLOCK_BYTES", 30)
    kept = [at for at in order if labelled or at]
    lines = [line.split(b",") for line in GOOD.splitlines()]
    source = tmp_path / "images.csv"
    source.write_bytes(b"\n".join(b",".join(cells[at] for at in kept) for cells in lines))
    first = 0 if labelled else 1
    with open_csv(source, TINY, label_optional=True) as rows:
        assert (rows.columns, rows.labelled) == (TINY.columns[first:], labelled)
        blocks = list(rows)
    assert len(blocks) > 1
    assert all(len(block) and block.dtype == np.uint8 for block in blocks)
    assert np.concatenate(blocks).tolist() == [row[first:] for row in ROWS]
    assert (rows.rows, rows.count) == (3, 0)


def test_reader_gives_no_row_after_the_first_problem_and_reads_on_for_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_BLOCK_BYTES", 20)
    source = tmp_path / "images.csv"
    source.write_bytes(GOOD + b"1,2,3,4,256\n" + BODY + b"10,2,3,4,5\n" + BODY)
    given: list[list[int]] = []
    with pytest.raises(DataContractError) as caught, open_csv(source, TINY) as rows:
        for block in rows:
            given += block.tolist()
    assert given == ROWS
    assert [(problem.line, problem.column) for problem in caught.value.problems] == [(5, "pixel4"), (9, "label")]


@pytest.mark.parametrize(
    ("header", "column"),
    [
        (b"pixel1,pixel2,pixel3,pixel5", "pixel4"),
        (b"pixel1,pixel2,pixel3", "pixel4"),
        (b"pixel1,pixel2,pixel3,pixel4,pixel5", "5"),
    ],
)
def test_reader_without_a_label_names_what_else_is_missing(tmp_path: Path, header: bytes, column: str) -> None:
    (tmp_path / "images.csv").write_bytes(header + b"\n1,2,3,4\n")
    with (
        pytest.raises(DataContractError, match=f"(?s)column {column}: .*The column label may be left out"),
        open_csv(tmp_path / "images.csv", TINY, label_optional=True),
    ):
        pass


# --- any file --------------------------------------------------------------------------------------------------------


def _as_rows(content: bytes) -> list[list[int]]:
    """Five bytes a row, of which the first becomes a label."""
    return [[content[at] % 10, *content[at + 1 : at + 5]] for at in range(0, len(content) - 4, 5)]


# Drawn as bytes: to draw each number by itself takes longer than to ingest them.
GOOD_ROWS = st.binary(min_size=3 * 5, max_size=30 * 5).map(_as_rows)
SPELLINGS = ("{}", "{}", "{}", '"{}"', " {}", "{} ", '"{}" ', ' "{}"', '" {} "', "0{}", "000{}")


@st.composite
def spelled(draw: st.DrawFn) -> tuple[list[list[int]], bytes]:
    """A table, and one of the many ways to write it."""
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
def test_any_spelling_of_a_table_is_read_as_that_table(table: tuple[list[list[int]], bytes], block_bytes: int) -> None:
    rows, content = table
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_BLOCK_BYTES", block_bytes)
        assert convert(Path(folder), content) == rows


@settings(deadline=None, max_examples=100)
@given(
    GOOD_ROWS,
    st.dictionaries(
        st.tuples(st.integers(0, 29), st.integers(0, 4)),
        st.sampled_from(["256", "-1", "", "x", "1.0", "1e1", "\u0661"]),
        min_size=1,
    ),
)
def test_every_bad_cell_is_counted_and_the_first_ten_are_named(
    rows: list[list[int]], damage: dict[tuple[int, int], str]
) -> None:
    damage = {(y % len(rows), x): cell for (y, x), cell in damage.items()}
    good = [
        [SPELLINGS[(y + x) % len(SPELLINGS)].format(value) for x, value in enumerate(row)] for y, row in enumerate(rows)
    ]
    cells = [[damage.get((y, x), cell) for x, cell in enumerate(row)] for y, row in enumerate(good)]
    with tempfile.TemporaryDirectory() as folder:
        error = refusal(Path(folder), HEADER + "\n".join(map(",".join, cells)).encode())
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
    """A file with a few bytes replaced, put in or taken out, or nothing but such bytes."""
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
def test_any_bytes_end_in_what_csv_reads_or_in_an_error_that_names_a_true_line_and_column(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        demand_the_verdict_of_csv(content, Path(folder))


@pytest.mark.parametrize("path", sorted(CORPUS.iterdir()), ids=lambda path: path.name[:8])
def test_what_the_fuzzer_found_has_the_verdict_of_csv(path: Path, tmp_path: Path) -> None:
    demand_the_verdict_of_csv(path.read_bytes(), tmp_path)


# --- the task --------------------------------------------------------------------------------------------------------


@pytest.fixture
def csv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CsvSplit:
    monkeypatch.setattr(contracts, "CONTRACTS", {"tiny": TINY})
    (tmp_path / "tiny_train.csv").write_bytes(GOOD)
    return supplied(tmp_path / "tiny_train.csv", split="train")


def test_task_hands_on_a_reference_to_the_parquet(csv: CsvSplit, tmp_path: Path) -> None:
    result: ParquetSplit = ingest.fn(csv, "tiny", tmp_path / "artifacts")
    assert result.path.name == "train.parquet"
    assert result.path.is_relative_to(tmp_path / "artifacts" / "data")
    assert (result.rows, result.quarantined, result.origin, result.source) == (3, 0, "supplied", csv)
    assert result.sha256 == hashlib.sha256(result.path.read_bytes()).hexdigest()
    assert values(result.path) == ROWS


def test_unchanged_csv_is_not_converted_twice_and_a_changed_byte_is(csv: CsvSplit, tmp_path: Path) -> None:
    first = ingest.fn(csv, "tiny", tmp_path / "artifacts")
    again = ingest.fn(csv, "tiny", tmp_path / "artifacts")
    assert (first.record.reused, again.record.reused) == (False, True)
    assert again == first.model_copy(update={"record": again.record})
    (tmp_path / "tiny_train.csv").write_bytes(GOOD.replace(b"250", b"251"))
    third = ingest.fn(supplied(tmp_path / "tiny_train.csv", split="train"), "tiny", tmp_path / "artifacts")
    assert not third.record.reused
    assert values(third.path)[2][4] == 251


def test_columns_in_another_order_are_told_as_a_warning_of_a_reused_stage_too(
    csv: CsvSplit, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    csv.files[0].path.write_bytes(LABEL_LAST)
    csv = supplied(csv.files[0].path, split="train")
    for reused in (False, True):
        caplog.clear()
        assert ingest.fn(csv, "tiny", tmp_path / "artifacts").record.reused == reused
        (told,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
        assert told.startswith("tiny_train.csv: its columns stand in another order (pixel1 is number 1, expected 2)")


def test_a_csv_of_another_name_is_told_of_by_that_name(csv: CsvSplit, tmp_path: Path) -> None:
    (tmp_path / "tiny_train.csv").write_bytes(GOOD + b"1,2,3\n")
    ingest.fn(supplied(tmp_path / "tiny_train.csv", split="train"), "tiny", tmp_path / "artifacts", 1)
    renamed = (tmp_path / "tiny_train.csv").rename(tmp_path / "tiny_train-1.csv")
    with pytest.raises(DataContractError, match=r"^tiny_train-1\.csv line 5, column pixel3"):
        ingest.fn(supplied(renamed, split="train"), "tiny", tmp_path / "artifacts")


def test_refused_csv_leaves_no_stage_behind(csv: CsvSplit, tmp_path: Path) -> None:
    (tmp_path / "tiny_train.csv").write_bytes(GOOD.replace(b"200", b"x"))
    with pytest.raises(DataContractError, match="changed since"):
        ingest.fn(csv, "tiny", tmp_path / "artifacts")
    assert not [path for path in (tmp_path / "artifacts" / "data").iterdir() if path.suffix != ".lock"]
    assert not (tmp_path / "artifacts" / "quarantine").exists()
