"""Rejected rows are quarantined byte for byte, within a budget."""

import gzip
import subprocess
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from schemas.errors import DataContractError
from schemas.references import CsvSplit, ParquetSplit
from tasks.data.parquet_split import ingest_csv
from tasks.data.quarantine import SCHEMA, list_quarantine, quarantine_path
from tasks.ingest import ingest
from tests.registered import register
from tests.tasks.data.csv_cases import BODY, GOOD, HEADER, LABEL_LAST, REGISTERED, ROWS, TINY
from tests.tasks.data.csv_oracle import QUARANTINE, TARGET, rows_of, supplied, values

# 2 of 5 rows are bad. They have four bad cells and one.
TWO_BAD = GOOD + b"10,1,256,x,-1\r\n" + b"1,2,3,\xff,5"


@pytest.fixture(autouse=True)
def tiny_is_a_dataset(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch, tmp_path_factory.mktemp("datasets"), REGISTERED)


def put(folder: Path, content: bytes = TWO_BAD, name: str = "tiny_train.csv") -> CsvSplit:
    (folder / name).write_bytes(content)
    return supplied(folder / name, split="train")


def run(csv: CsvSplit, artifacts: Path, bad_rows: int | str = 0) -> ParquetSplit:
    result: ParquetSplit = ingest.fn(csv, "tiny", artifacts, bad_rows)
    return result


# --- content of the quarantine ---------------------------------------------------------------------------------------


def test_quarantines_bad_rows_byte_for_byte(tmp_path: Path) -> None:
    facts = ingest_csv(put(tmp_path), tmp_path / TARGET, tmp_path / QUARANTINE, TINY, 2)
    assert (facts.rows, facts.quarantined, facts.count) == (3, 2, 5)
    assert values(tmp_path / TARGET) == ROWS
    assert pq.read_schema(tmp_path / QUARANTINE).equals(SCHEMA)
    assert rows_of(tmp_path / QUARANTINE) == [
        {
            "source_file": "tiny_train.csv",
            "line": 5,
            "raw_text": b"10,1,256,x,-1\r\n",
            "column": "label",
            "value": "10",
            "reason": "expected an integer 0..9",
            "bad_cells": 4,
            # printf '10,1,256,x,-1\r\n' | sha256sum
            "content_hash": "72fcec0f096bcaa5383eef64f14661045255033712cca46f7a0af406de943e4d",
        },
        {
            "source_file": "tiny_train.csv",
            "line": 6,
            "raw_text": b"1,2,3,\xff,5",
            "column": "pixel3",
            "value": "\\xff",
            "reason": "expected an integer 0..255",
            "bad_cells": 1,
            "content_hash": "067f859574f6698e1c85f36b7d91e38bf2819bf651545d4ac7ca95933addb016",
        },
    ]


@pytest.mark.parametrize(("count", "size"), [(20_000, 1), (12, 900_000)], ids=["many rows", "long rows"])
def test_writes_several_row_groups(tmp_path: Path, count: int, size: int) -> None:
    bad = [b"%d,%b\n" % (number, b"x" * size) for number in range(count)]
    ingest_csv(put(tmp_path, GOOD + b"".join(bad)), tmp_path / TARGET, tmp_path / QUARANTINE, TINY, count)
    assert pq.ParquetFile(tmp_path / QUARANTINE).num_row_groups > 1
    assert [row["raw_text"] for row in rows_of(tmp_path / QUARANTINE)] == bad


def test_a_rejected_file_leaves_no_quarantine(tmp_path: Path) -> None:
    packed = gzip.compress(TWO_BAD)
    with pytest.raises(DataContractError, match="gzip"):
        ingest_csv(put(tmp_path, packed[:-4]), tmp_path / TARGET, tmp_path / QUARANTINE, TINY, "100%")
    assert [path.name for path in tmp_path.iterdir()] == ["tiny_train.csv"]


# --- the budget ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad_rows", "accepted"),
    [
        *((0, False), (1, False), (2, True), (9, True), ("2", True)),
        *(("39%", False), ("39.999%", False), ("40%", True), ("100%", True), ("0%", False)),
    ],
)
def test_budget_decides(tmp_path: Path, caplog: pytest.LogCaptureFixture, bad_rows: int | str, accepted: bool) -> None:
    csv, artifacts = put(tmp_path), tmp_path / "artifacts"
    if accepted:
        split = run(csv, artifacts, bad_rows)
        assert values(split.path) == ROWS
        assert (split.rows, split.quarantined) == (3, 2)
        assert "2 of 5 rows are bad" in caplog.text
        assert "line 5, column label" in caplog.text
        assert str(quarantine_path(artifacts, csv)) in caplog.text
    else:
        with pytest.raises(DataContractError) as caught:
            run(csv, artifacts, bad_rows)
        assert f"2 of 5 rows are bad, --bad-rows allows {bad_rows}" in str(caught.value)
        assert str(quarantine_path(artifacts, csv)) in str(caught.value)
        places = [(problem.line, problem.column) for problem in caught.value.problems]
        assert places[:2] == [(5, "label"), (5, "pixel2")]
        assert list((artifacts / "data").glob("*/train")) == []
    assert quarantine_path(artifacts, csv) == artifacts / "quarantine" / f"train-{csv.sha256}.parquet"
    assert len(rows_of(quarantine_path(artifacts, csv))) == 2
    assert len(list((artifacts / "quarantine").iterdir())) == 1


def test_a_smaller_budget_rejects_a_cached_split(tmp_path: Path) -> None:
    csv, artifacts = put(tmp_path), tmp_path / "artifacts"
    with pytest.raises(DataContractError) as fresh:
        run(csv, artifacts)
    first = run(csv, artifacts, 2)
    with pytest.raises(DataContractError) as again:
        run(csv, artifacts)
    assert str(again.value) == str(fresh.value)
    assert (again.value.problems, again.value.count) == (fresh.value.problems, fresh.value.count)
    third = run(csv, artifacts, "50%")
    assert third.record.reused
    assert third == first.model_copy(update={"record": third.record})


def test_a_cached_split_restores_its_quarantine(tmp_path: Path) -> None:
    csv, artifacts = put(tmp_path), tmp_path / "artifacts"
    run(csv, artifacts, 2)
    path = quarantine_path(artifacts, csv)
    before = path.read_bytes()
    for damage in (path.unlink, lambda: path.write_bytes(b"")):
        damage()
        assert run(csv, artifacts, 2).record.reused
        assert path.read_bytes() == before
    # The same rows under another file name have another quarantine.
    (file,) = csv.files
    shard = file.path.rename(file.path.with_name("another-name.csv"))
    run(csv.model_copy(update={"files": (file.model_copy(update={"path": shard}),)}), artifacts, 2)
    assert set(pq.read_table(path)["source_file"].to_pylist()) == {shard.name}
    shard.rename(file.path)
    run(csv, artifacts, 2)
    assert path.read_bytes() == before


def test_removes_temporary_files_of_a_killed_run(tmp_path: Path) -> None:
    csv, artifacts = put(tmp_path), tmp_path / "artifacts"
    path = quarantine_path(artifacts, csv)
    path.parent.mkdir(parents=True)
    # No process has so large a number.
    (path.parent / f".{path.name}.{2**22 + 1}.tmp").write_bytes(b"half of it")
    run(csv, artifacts, 2)
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


# --- shards ----------------------------------------------------------------------------------------------------------


def test_names_shard_and_line_of_each_bad_row(tmp_path: Path) -> None:
    (tmp_path / "tiny_train-1.csv").write_bytes(GOOD)
    (tmp_path / "tiny_train-2.csv.gz").write_bytes(gzip.compress(LABEL_LAST.replace(b"20,200", b"20,300") + b"1,2\n"))
    (tmp_path / "tiny_train-3.csv").write_bytes(HEADER + b"x,1,2,3,4\n" + b"3,1,2,3,4\n")
    csv = supplied(*sorted(tmp_path.glob("*-*")), split="train")
    split = run(csv, tmp_path / "artifacts", 3)
    assert values(split.path) == [*ROWS, ROWS[0], ROWS[2], [3, 1, 2, 3, 4]]
    assert [
        (row["source_file"], row["line"], row["column"])
        for row in rows_of(quarantine_path(tmp_path / "artifacts", csv))
    ] == [
        ("tiny_train-2.csv.gz", 3, "pixel3"),
        ("tiny_train-2.csv.gz", 5, "pixel3"),
        ("tiny_train-3.csv", 2, "label"),
    ]
    with pytest.raises(DataContractError) as caught:
        run(csv, tmp_path / "artifacts", 2)
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("tiny_train-2.csv.gz line 3, column pixel3: ")
    assert lines[2].startswith("tiny_train-3.csv line 2, column label: ")
    assert "tiny_train-1.csv and 2 more were not used: 3 of 9 rows are bad" in lines[3]
    assert [problem.file for problem in caught.value.problems] == ["tiny_train-2.csv.gz"] * 2 + ["tiny_train-3.csv"]


@pytest.mark.parametrize("content", [HEADER, b"", GOOD.replace(b"label", b"Label"), b"PK\x03\x04"])
def test_a_rejected_shard_rejects_the_split(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tiny_train-1.csv").write_bytes(TWO_BAD)
    (tmp_path / "tiny_train-2.csv").write_bytes(content)
    csv = supplied(*sorted(tmp_path.glob("*-*")), split="train")
    with pytest.raises(DataContractError, match=r"tiny_train-2\.csv") as caught:
        ingest_csv(csv, tmp_path / TARGET, tmp_path / QUARANTINE, TINY, "100%")
    assert "tiny_train-1.csv" not in str(caught.value)
    assert {path.name for path in tmp_path.iterdir()} == {"tiny_train-1.csv", "tiny_train-2.csv"}


def test_rejects_a_shard_that_changes_before_it_is_read(tmp_path: Path) -> None:
    for number in (1, 2):
        (tmp_path / f"tiny_train-{number}.csv").write_bytes(GOOD)
    csv = supplied(*sorted(tmp_path.glob("*-*")), split="train")
    (tmp_path / "tiny_train-2.csv").write_bytes(GOOD + BODY)
    with pytest.raises(DataContractError, match=r"tiny_train-2\.csv changed since"):
        ingest_csv(csv, tmp_path / TARGET, tmp_path / QUARANTINE, TINY)


def test_digest_of_shards_is_that_of_sha256sum(tmp_path: Path) -> None:
    for name in ("tiny_train-b.csv", "tiny_train-B.csv", "tiny_train-a.csv"):
        (tmp_path / name).write_bytes(GOOD + name.encode())
    csv = supplied(*sorted(tmp_path.iterdir()), split="train")
    command = "export LC_ALL=C; sha256sum tiny_train-*.csv | sha256sum | cut -d' ' -f1"
    process = subprocess.run(["sh", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert csv.sha256 == process.stdout.strip()


def test_litter_is_no_quarantine_file(tmp_path: Path) -> None:
    csv, artifacts = put(tmp_path), tmp_path / "artifacts"
    run(csv, artifacts, 2)
    path = quarantine_path(artifacts, csv)
    path.with_name(f"._{path.name}").write_bytes(b"\0\5\x16\7")
    assert [file.path for file in list_quarantine(artifacts)[0]] == [path]
