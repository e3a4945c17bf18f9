"""CSVs of a split become one Parquet file, or an error that names file, line and column."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from schemas.contract import FASHION_MNIST
from schemas.errors import DataContractError
from schemas.layout import part_name
from schemas.references import CsvSplit
from tasks.data import csv_to_parquet
from tasks.data.csv_to_parquet import parquet_schema
from tasks.data.parquet_split import ingest_csv
from tests.tasks.data.csv_cases import CASES, GOOD, HEADER, ROWS, TINY, Case
from tests.tasks.data.csv_oracle import QUARANTINE, TARGET, ingest_bytes, reject_bytes, supplied, values


def put(case: Case, path: Path) -> CsvSplit:
    if isinstance(case.content, bytes):
        path.write_bytes(case.content)
    else:
        case.content(path)
    return supplied(path)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_each_form_has_its_verdict_line_and_column(case: Case, tmp_path: Path) -> None:
    csv, target, quarantine = put(case, tmp_path / "tiny.csv"), tmp_path / TARGET, tmp_path / QUARANTINE
    try:
        ingest_csv(csv, target, quarantine, TINY)
    except DataContractError as error:
        assert case.verdict != "accepted", error
        check_error(case, error)
        assert quarantine.exists() == (case.verdict == "bad row")
        assert {path.name for path in tmp_path.iterdir()} <= {"tiny.csv", QUARANTINE}
    else:
        assert case.verdict == "accepted"
        assert values(target) == ROWS
        assert pq.read_schema(target / part_name(0)).equals(parquet_schema(TINY))
        assert not quarantine.exists()


def check_error(case: Case, error: DataContractError) -> None:
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


def test_writes_bounded_row_groups_with_statistics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_to_parquet, "BLOCK_ROWS", 100)
    rows = np.random.default_rng(0).integers(0, 10, (250, 785), np.uint8)
    lines = [",".join(FASHION_MNIST.columns), *(",".join(map(str, row)) for row in rows.tolist())]
    (tmp_path / "test.csv").write_text("\n".join(lines) + "\n")
    ingest_csv(supplied(tmp_path / "test.csv"), tmp_path / TARGET, tmp_path / QUARANTINE, FASHION_MNIST)
    file = pq.ParquetFile(tmp_path / TARGET / part_name(0))
    assert file.schema_arrow.equals(parquet_schema(FASHION_MNIST))
    assert file.schema_arrow.names == list(FASHION_MNIST.columns)
    assert all(field.type == "uint8" and not field.nullable for field in file.schema_arrow)
    assert [file.metadata.row_group(at).num_rows for at in range(file.num_row_groups)] == [100, 100, 50]
    statistics = file.metadata.row_group(1).column(17).statistics
    assert (statistics.min, statistics.max) == (rows[100:200, 17].min(), rows[100:200, 17].max())
    assert np.array_equal(np.stack([column.to_numpy() for column in file.read().columns], axis=1), rows)


def test_requires_enough_good_rows(tmp_path: Path) -> None:
    few = GOOD.replace(b"5,7,77,177,250\n", b"")
    assert "has 2 rows: expected at least 3 for the train split" in str(reject_bytes(tmp_path, few, "train"))
    (tmp_path / "tiny_train.csv").write_bytes(GOOD.replace(b"200", b"x"))
    csv = supplied(tmp_path / "tiny_train.csv", split="train")
    expected = r"has 2 rows without the 1 bad ones, which are in .*quarantine\.parquet: expected at least 3"
    with pytest.raises(DataContractError, match=expected) as caught:
        ingest_csv(csv, tmp_path / TARGET, tmp_path / QUARANTINE, TINY, 1)
    assert [problem.value for problem in caught.value.problems] == ["'x'"]
    assert not (tmp_path / TARGET).exists()
    assert (tmp_path / QUARANTINE).exists()


def test_a_fetched_split_has_exactly_the_published_rows(tmp_path: Path) -> None:
    assert len(ingest_bytes(tmp_path, GOOD + b"1,2,3,4,5\n", "train")) == 4
    csv = supplied(tmp_path / "tiny.csv", split="train").model_copy(update={"origin": "fetched"})
    with pytest.raises(DataContractError, match="has 4 rows: expected the 3 of the published train split"):
        ingest_csv(csv, tmp_path / TARGET, tmp_path / QUARANTINE, TINY)


@pytest.mark.parametrize(
    ("labels", "shift"),
    [
        ([*range(1, 11)], 1),
        ([*range(-1, 9)], -1),
        ([*range(11)], 0),  # 0 occurs
        ([*range(-1, 10)], 0),  # 9 occurs
        ([*range(1, 12)], 0),  # 11 is not one above 9
        ([*range(-2, 9)], 0),  # -2 is not one below 0
        ([1, 2, 3, 10], 0),  # some labels never occur
        ([-1, 0, 1, 8], 0),
        ([*range(2, 11)], 0),  # 1 never occurs
        ([*range(-1, 8)], 0),  # 8 never occurs
        ([*range(10), 300], 0),
    ],
    ids=str,
)
def test_detects_labels_shifted_by_one(tmp_path: Path, labels: list[int], shift: int) -> None:
    rows = [f"{label},1,2,3,4\n".encode() for label in labels * 3]
    for number, part in enumerate((rows[:7], rows[7:])):
        (tmp_path / f"tiny-{number}.csv").write_bytes(HEADER + b"".join(part))
    csv = supplied(*sorted(tmp_path.glob("*.csv")))
    facts = ingest_csv(csv, tmp_path / TARGET, tmp_path / QUARANTINE, TINY, "100%")
    assert facts.labels_shifted == shift
    with pytest.raises(DataContractError) as caught:
        ingest_csv(csv, tmp_path / TARGET, tmp_path / QUARANTINE, TINY)
    sentence = {
        1: "The labels look shifted by one: some are one above their range, and the lowest label never occurs.",
        -1: "The labels look shifted by one: some are one below their range, and the highest label never occurs.",
        0: "were not used",
    }[shift]
    assert sentence in str(caught.value)
    assert ("look shifted" in str(caught.value)) == bool(shift)
