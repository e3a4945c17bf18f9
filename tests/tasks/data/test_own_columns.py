"""CSVs with other labels, columns and pixel orders than those of Fashion-MNIST, as a dataset file describes them."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from schemas.contract import DatasetContract
from schemas.errors import DataContractError
from tasks.data.csv_reader import open_csv
from tasks.data.csv_to_parquet import held_out
from tasks.data.data_folder import present_csvs
from tasks.data.missing_data import describe_missing, likely_names
from tasks.data.parquet_split import ingest_csv
from tests.tasks.data.csv_cases import HEADER, TINY
from tests.tasks.data.csv_oracle import QUARANTINE, TARGET, rows_of, supplied, values

PLAIN = replace(TINY, published={}, minimum_rows={"train": 1, "test": 1})


def read(path: Path, content: bytes, contract: DatasetContract, **options: bool) -> list[list[int]]:
    path.write_bytes(content)
    with open_csv(path, contract, **options) as rows:
        return [row for block in rows for row in block.tolist()]


def labelled(*labels: int) -> DatasetContract:
    return replace(PLAIN, labels={label: f"name of {label}" for label in labels})


@pytest.mark.parametrize("quote", ["", '"'], ids=["array", "lines"])
@pytest.mark.parametrize("labels", [(0, 1, 3), (1, 2, 26), (65, 66, 255), (-1, 1), (1_000, 2_000)], ids=str)
def test_labels_become_classes(tmp_path: Path, labels: Sequence[int], quote: str) -> None:
    body = "".join(f"{quote}{label}{quote},1,2,3,4\n" for label in reversed(labels))
    rows = read(tmp_path / "a.csv", HEADER + body.encode(), labelled(*labels))
    assert rows == [[at, 1, 2, 3, 4] for at in reversed(range(len(labels)))]


@pytest.mark.parametrize("quote", ["", '"'], ids=["array", "lines"])
@pytest.mark.parametrize("label", ["9", "25", "-1", "0.0", "256", ""])
def test_a_label_of_no_class_is_a_bad_cell(tmp_path: Path, label: str, quote: str) -> None:
    contract = labelled(*range(9), *range(10, 25))
    with pytest.raises(DataContractError, match=r"line 2, column label: expected an integer 0\.\.8, 10\.\.24"):
        read(tmp_path / "a.csv", HEADER + f"{quote}{label}{quote},1,2,3,4\n".encode(), contract)


@pytest.mark.parametrize(
    ("content", "options", "rows"),
    [
        (b"9,1,2,3,4\n0,5,6,7,8", {}, [[9, 1, 2, 3, 4], [0, 5, 6, 7, 8]]),
        (b"\xef\xbb\xbf9,1,2,3,4\r\n", {}, [[9, 1, 2, 3, 4]]),
        (b"1,2,3,4\n5,6,7,8\n", {"label_optional": True}, [[1, 2, 3, 4], [5, 6, 7, 8]]),
        (b"9,1,2,3,4\n", {"label_optional": True}, [[9, 1, 2, 3, 4]]),
    ],
    ids=["rows", "mark and CRLF", "without labels", "with optional labels"],
)
def test_the_first_line_may_be_a_row(
    tmp_path: Path, content: bytes, options: dict[str, bool], rows: list[list[int]]
) -> None:
    assert read(tmp_path / "a.csv", content, replace(PLAIN, naming="none"), **options) == rows


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (HEADER + b"9,1,2,3,4\n", r'line 1, column label: expected numbers, because .* has columns = "none"'),
        (b"9,1,2,x,4\n", "line 1, column pixel3: expected an integer"),
        (b"9,1,2,3\n", "line 1, column pixel4: expected 5 values"),
    ],
    ids=["header", "cell", "short"],
)
def test_faults_without_a_header_name_line_1(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(DataContractError, match=message):
        read(tmp_path / "a.csv", content, replace(PLAIN, naming="none"))


def test_rejected_rows_without_a_header_have_none(tmp_path: Path) -> None:
    (tmp_path / "tiny_train.csv").write_bytes(b"9,1,2,3,4\n9,1,2,3,400\n")
    csv = supplied(tmp_path / "tiny_train.csv", split="train")
    ingest_csv(csv, tmp_path / TARGET, tmp_path / QUARANTINE, replace(PLAIN, naming="none"), 1)
    assert [row["line"] for row in rows_of(tmp_path / QUARANTINE)] == [2]
    assert pq.read_metadata(tmp_path / QUARANTINE).metadata[b"fashion_ann.headers"] == b'{"tiny_train.csv": ""}'


@pytest.mark.parametrize(("naming", "header"), [("none", b""), ("1x1..", b"label,1x1,1x2,2x1,2x2,3x1,3x2\n")])
def test_transposed_pixels_are_read_row_by_row(tmp_path: Path, naming: str, header: bytes) -> None:
    # An image of 2 x 3 pixels whose columns are the rows of the file.
    contract = replace(PLAIN, height=2, width=3, naming=naming, transpose=True)
    path = tmp_path / "a.csv"
    path.write_bytes(header + b"9,1,4,2,5,3,6\n")
    with open_csv(path, contract) as rows:
        assert [block.tolist() for block in rows] == [[[9, 1, 2, 3, 4, 5, 6]]]
        assert rows.reordered is None
        assert rows.columns == contract.columns


def test_a_row_keeps_its_side_of_a_holdout() -> None:
    images = np.random.default_rng(0).integers(0, 256, (5_000, 4), np.uint8)
    held = held_out(images, 0.2)
    assert abs(held.mean() - 0.2) < 5 * (0.2 * 0.8 / 5_000) ** 0.5
    parts = [held_out(part, 0.2) for part in np.array_split(images[::-1], 3)]
    assert (np.concatenate(parts)[::-1] == held).all()
    assert not (held & ~held_out(images, 0.3)).any()


def test_a_holdout_takes_both_splits_from_train(tmp_path: Path) -> None:
    contract = replace(PLAIN, holdout=0.5)
    good = [[9, number, number, number, number] for number in range(20)]
    lines = [",".join(map(str, row)) for row in good]
    (tmp_path / "tiny_train.csv").write_bytes(HEADER + "\n".join([*lines, "9,x,3,3,3"]).encode())
    (tmp_path / "tiny_test.csv").write_bytes(b"pixel1,pixel2,pixel3,pixel4\n1,1,1,1\n")
    present = present_csvs(contract, tmp_path)
    assert present["train"] == present["test"] == (tmp_path / "tiny_train.csv",)
    assert describe_missing(contract, tmp_path) is None
    assert likely_names(contract, tmp_path) == {}
    rows, bad = {}, {}
    for split in ("train", "test"):
        csv = supplied(tmp_path / "tiny_train.csv", split=split)
        facts = ingest_csv(csv, tmp_path / split, tmp_path / f"{split}-bad.parquet", contract, 1)
        rows[split], bad[split] = values(tmp_path / split), (facts.quarantined, facts.count)
        assert facts.rows == len(rows[split])
    test = held_out(np.array(good, np.uint8)[:, 1:], 0.5)
    assert rows == {
        "train": [row for row, held in zip(good, test, strict=True) if not held],
        "test": [row for row, held in zip(good, test, strict=True) if held],
    }
    assert 5 < len(rows["test"]) < 15
    assert bad == {"train": (1, 1), "test": (0, 0)}  # each bad row is counted once
    assert not (tmp_path / "test-bad.parquet").exists()


def test_files_may_have_other_names(tmp_path: Path) -> None:
    contract = replace(PLAIN, files={"train": "letters-train.csv"})
    for name in ("letters-train-1.csv.gz", "letters-train-2.csv", "tiny_test.csv"):
        (tmp_path / name).touch()
    names = {split: [path.name for path in paths] for split, paths in present_csvs(contract, tmp_path).items()}
    assert names == {"train": ["letters-train-1.csv.gz", "letters-train-2.csv"], "test": ["tiny_test.csv"]}
