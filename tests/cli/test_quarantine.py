"""`quarantine list` and `export`: rejected rows come back once they are corrected."""

import gzip
import json
import re
from pathlib import Path

import pytest

from schemas.errors import DataContractError
from schemas.references import ParquetSplit
from tasks.data.published_data import find_data
from tasks.ingest import ingest
from tasks.runtime.files import sha256_file
from tests.cli.conftest import Run
from tests.field_faults import field_fault
from tests.registered import register
from tests.tasks.data.csv_cases import BODY, GOOD, HEADER, LABEL_LAST, REGISTERED, ROWS, TINY
from tests.tasks.data.csv_oracle import values

TRAIN = "tiny_train"
BAD = b"10,1,256,x,-1\r\n" + b"1,2,3,\xff,5"
# Cells of BAD and their corrections.
CORRECTIONS = ((b"10,", b"1,"), (b"256,x,-1", b"25,3,1"), (b"\xff", b"4"))


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the data folder, with a test split. The contract has images of 2 x 2 pixels."""
    register(monkeypatch, tmp_path / "datasets", REGISTERED)
    monkeypatch.setenv("FASHION_ANN_ARTIFACTS_DIR", str(tmp_path / "artifacts"))
    monkeypatch.setenv("FASHION_ANN_DATA_DIR", str(tmp_path / "data"))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "tiny_test.csv").write_bytes(GOOD)
    return tmp_path / "data"


def take(data: Path, bad_rows: int = 9) -> ParquetSplit:
    """Ingest the train split of the data folder."""
    csvs = find_data(TINY, data)
    assert csvs is not None
    result: ParquetSplit = ingest.fn(csvs["train"], "tiny", data.parent / "artifacts", bad_rows)
    return result


def correct(shard: Path) -> None:
    text = shard.read_bytes()
    for wrong, right in CORRECTIONS:
        text = text.replace(wrong, right)
    shard.write_bytes(text)


def names(data: Path) -> set[str]:
    return {path.name for path in data.iterdir()} - {"tiny_test.csv"}


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize(
    ("content", "rows"),
    [
        (GOOD + BAD, BAD.split(b"\r\n")),
        (LABEL_LAST + b"1,2,256,x,-1\r\n\n1,2,3,\xff,5", [b"1,2,256,x,-1", b"1,2,3,\xff,5"]),
        (GOOD + b'1,"2\n",256,x,-1\n1,2,3,"\xff\r\n",5\r\n', [b'1,"2\n",256,x,-1', b'1,2,3,"\xff\r\n",5']),
    ],
    ids=["two rows", "label last, blank line", "line ends in quotes"],
)
def test_corrected_rows_are_taken_once(run: Run, data: Path, content: bytes, rows: list[bytes], packed: bool) -> None:
    suffix = ".csv.gz" if packed else ".csv"
    (data / f"{TRAIN}{suffix}").write_bytes(gzip.compress(content) if packed else content)
    bad = take(data).quarantined
    status, out, _ = run("quarantine", "export", "--dataset", "tiny", "--json")
    shard = data / f"{TRAIN}-corrected.csv"
    assert status == 0
    assert json.loads(out) == [
        {
            "split": "train",
            "quarantine": str(next((data.parent / "artifacts" / "quarantine").iterdir())),
            "renamed": str(data / f"{TRAIN}-all{suffix}"),
            "shards": [{"source_file": f"{TRAIN}{suffix}", "path": str(shard), "rows": 2, "written": True}],
        }
    ]
    assert names(data) == {f"{TRAIN}-all{suffix}", shard.name}
    header = content.partition(b"\n")[0]
    assert shard.read_bytes() == b"\n".join([header, *rows]) + b"\n"

    shard.write_bytes(shard.read_bytes().replace(b'"2\n"', b"2").replace(b'"\xff\r\n"', b"\xff"))
    correct(shard)
    corrected = shard.read_bytes()
    for _ in range(2):
        again = take(data)
        assert (again.rows, again.quarantined) == (5, bad)
        assert values(again.path)[:3] == ROWS
        status, out, _ = run("quarantine", "export", "--dataset", "tiny")
        assert status == 0
        assert f"{shard} exists and was left unchanged" in out
        assert (names(data), shard.read_bytes()) == ({f"{TRAIN}-all{suffix}", shard.name}, corrected)


def test_exports_one_shard_per_source_file(run: Run, data: Path) -> None:
    (data / f"{TRAIN}-1.csv").write_bytes(GOOD + BAD)
    (data / f"{TRAIN}-2.csv.gz").write_bytes(gzip.compress(LABEL_LAST + b"2,2,2,2,x\n"))
    (data / f"{TRAIN}-3.csv").write_bytes(GOOD)
    take(data)
    originals = names(data)
    assert run("quarantine", "export", "--dataset", "tiny", "--split", "train")[0] == 0
    assert names(data) - originals == {f"{TRAIN}-1-corrected.csv", f"{TRAIN}-2-corrected.csv"}
    label_last = LABEL_LAST.partition(b"\n")[0]
    assert (data / f"{TRAIN}-2-corrected.csv").read_bytes() == label_last + b"\n2,2,2,2,x\n"

    # An interrupted export is completed, whether or not a run has read the shard in the meantime.
    for trained in (False, True):
        (data / f"{TRAIN}-2-corrected.csv").unlink()
        if trained:
            take(data)
        assert run("quarantine", "export", "--dataset", "tiny")[0] == 0
        assert (data / f"{TRAIN}-2-corrected.csv").exists()
    # Rows that are still wrong in a shard are corrected there.
    take(data)
    status, out, _ = run("quarantine", "export", "--dataset", "tiny")
    assert status == 0
    assert f"correct 2 rows of {TRAIN}-1-corrected.csv there" in out
    assert names(data) - originals == {f"{TRAIN}-1-corrected.csv", f"{TRAIN}-2-corrected.csv"}
    # A shard may be packed after it was corrected.
    shard = data / f"{TRAIN}-1-corrected.csv"
    (data / f"{shard.name}.gz").write_bytes(gzip.compress(shard.read_bytes()))
    shard.unlink()
    assert run("quarantine", "export", "--dataset", "tiny")[0] == 0
    assert not shard.exists()


def test_completes_an_export_killed_after_the_rename(run: Run, data: Path) -> None:
    (data / f"{TRAIN}.csv").write_bytes(GOOD + BAD)
    take(data)
    (data / f"{TRAIN}.csv").rename(data / f"{TRAIN}-all.csv")
    assert run("quarantine", "export", "--dataset", "tiny")[0] == 0
    assert names(data) == {f"{TRAIN}-all.csv", f"{TRAIN}-corrected.csv"}


def test_chooses_by_the_csvs_or_by_file(run: Run, data: Path) -> None:
    source, folder = data / f"{TRAIN}.csv", data.parent / "artifacts" / "quarantine"
    source.write_bytes(GOOD + b"1,1,1,1,older\n")
    take(data)
    (older,) = folder.iterdir()
    source.write_bytes(GOOD + b"1,1,1,1,newer\n")
    assert run("quarantine", "export", "--dataset", "tiny")[0] == 1  # no run has read these yet
    take(data)
    listed = json.loads(run("quarantine", "list", "--json")[1])
    assert [entry["path"] for entry in listed] == sorted(str(path) for path in folder.iterdir())
    assert run("quarantine", "export", "--dataset", "tiny")[0] == 0
    shard = data / f"{TRAIN}-corrected.csv"
    assert b"newer" in shard.read_bytes()
    shard.unlink()
    source = data / f"{TRAIN}-all.csv"
    source.write_bytes(GOOD + b"1,1,1,1,older\n")
    assert run("quarantine", "export", "--dataset", "tiny", older)[0] == 0
    assert b"older" in shard.read_bytes()


@field_fault(
    "input replaced silently",
    "A quarantine file of other CSVs than those in the data folder is exported",
    "`quarantine export` exits with 3 and writes no shard, because rows would be foreign or occur twice",
)
@pytest.mark.parametrize("content", [GOOD, GOOD + b"1,1,1,1,newer\n"], ids=["corrected in the CSV", "other CSV"])
def test_export_requires_the_csvs_of_the_file(run: Run, data: Path, content: bytes) -> None:
    (data / f"{TRAIN}.csv").write_bytes(GOOD + b"1,1,1,1,older\n")
    take(data)
    (older,) = (data.parent / "artifacts" / "quarantine").iterdir()
    (data / f"{TRAIN}.csv").write_bytes(content)
    status, out, err = run("quarantine", "export", "--dataset", "tiny", older)
    assert (status, out, names(data)) == (3, "", {f"{TRAIN}.csv"})
    assert f"{older} holds rows of other CSVs than those in {data}" in err
    assert f"train-{sha256_file(data / f'{TRAIN}.csv')}.parquet" in err
    assert "Export without FILE" in err


@field_fault(
    "stray files and bad values",
    "A person exports the bad rows, corrects them and follows the printed hint",
    "A run with the printed `--bad-rows` accepts the data",
)
def test_the_printed_hint_succeeds(run: Run, data: Path) -> None:
    (data / f"{TRAIN}.csv").write_bytes(GOOD + BAD)
    with pytest.raises(DataContractError):
        take(data, bad_rows=0)
    out = run("quarantine", "export", "--dataset", "tiny")[1]
    correct(data / f"{TRAIN}-corrected.csv")
    with pytest.raises(DataContractError):
        take(data, bad_rows=1)
    (hint,) = re.findall(r"fashion-ann train --dataset tiny` with --bad-rows (\d+) or more", out)
    assert take(data, bad_rows=int(hint)).rows == 5


def test_lists_quarantine_files(run: Run, data: Path) -> None:
    assert run("quarantine", "list", "--json") == (0, "[]\n", "")
    assert "No quarantine files" in run("quarantine", "list")[1]
    (data / f"{TRAIN}.csv").write_bytes(GOOD + BAD)
    take(data)
    (path,) = (data.parent / "artifacts" / "quarantine").iterdir()
    reason = {"column": "label", "value": "10", "reason": "expected an integer 0..9"}
    assert json.loads(run("quarantine", "list", "--json")[1]) == [
        {
            "split": "train",
            "path": str(path),
            "rows": 2,
            "source_files": [f"{TRAIN}.csv"],
            "first_problem": {"source_file": f"{TRAIN}.csv", "line": 5, **reason},
        }
    ]
    out = run("quarantine", "list")[1]
    assert f"train: 2 rows in {path}" in out
    assert f"first: {TRAIN}.csv line 5, column label: expected an integer 0..9, received '10'" in out
    foreign, damaged = path.with_name("a.parquet"), path.with_name("test-0.parquet")
    foreign.touch()
    damaged.write_bytes(b"PAR1")
    status, listed, err = run("quarantine", "list")
    assert (status, listed) == (5, out)
    assert f"{foreign}: expected a quarantine file" in err
    assert f"{damaged} is not a readable quarantine file" in err
    path.unlink()
    assert run("quarantine", "list")[:2] == (5, "")


@pytest.mark.parametrize(
    ("content", "message"),
    [(GOOD, "no rows of the CSVs"), (HEADER + b"\n" + BODY, "blank lines"), (None, "no rows of the CSVs")],
    ids=["no bad row", "blank lines", "no CSV"],
)
def test_nothing_to_export_exits_with_1(run: Run, data: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (data / f"{TRAIN}.csv").write_bytes(content)
        take(data)
    before = names(data)
    status, out, err = run("quarantine", "export", "--dataset", "tiny")
    assert (status, out) == (1, "")
    assert err.startswith("fashion-ann quarantine export: Nothing to export: ")
    assert message in err
    assert names(data) == before


def test_export_rejects_foreign_files(run: Run, data: Path, tmp_path: Path) -> None:
    (data / f"{TRAIN}.csv").write_bytes(GOOD + BAD)
    take(data)
    (path,) = (tmp_path / "artifacts" / "quarantine").iterdir()
    for file in ("train-0.parquet", str(data / f"{TRAIN}.csv"), str(path.parent)):
        status, _, err = run("quarantine", "export", "--dataset", "tiny", file)
        assert status == 2
        assert f"{file}: expected a quarantine file named SPLIT-DIGEST.parquet" in err
    (data / f"{TRAIN}.csv").rename(data / f"{TRAIN}-2024.csv")
    status, _, err = run("quarantine", "export", "--dataset", "tiny", path)
    assert status == 1
    assert f"rows of {TRAIN}.csv, which is not in the data folder" in err
    assert names(data) == {f"{TRAIN}-2024.csv"}
