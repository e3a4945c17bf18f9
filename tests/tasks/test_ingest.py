"""The ingest stage: cached Parquet of the CSVs of a split."""

import hashlib
from pathlib import Path

import pytest

from schemas.errors import DataContractError
from schemas.references import CsvSplit, ParquetSplit
from tasks.ingest import ingest
from tests.registered import register
from tests.tasks.data.csv_cases import GOOD, LABEL_LAST, REGISTERED, ROWS
from tests.tasks.data.csv_oracle import supplied, values


@pytest.fixture
def csv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CsvSplit:
    register(monkeypatch, tmp_path / "datasets", REGISTERED)
    (tmp_path / "tiny_train.csv").write_bytes(GOOD)
    return supplied(tmp_path / "tiny_train.csv", split="train")


def test_returns_a_reference_to_the_parquet(csv: CsvSplit, tmp_path: Path) -> None:
    result: ParquetSplit = ingest.fn(csv, "tiny", tmp_path / "artifacts")
    assert [part.path.name for part in result.parts] == ["part-00000.parquet"]
    assert result.path.is_relative_to(tmp_path / "artifacts" / "data")
    assert (result.rows, result.quarantined, result.origin, result.source) == (3, 0, "supplied", csv)
    assert result.sha256 == hashlib.sha256(result.files[0].read_bytes()).hexdigest()
    assert values(result.path) == ROWS


def test_reuses_an_unchanged_csv_but_not_a_changed_one(csv: CsvSplit, tmp_path: Path) -> None:
    first = ingest.fn(csv, "tiny", tmp_path / "artifacts")
    again = ingest.fn(csv, "tiny", tmp_path / "artifacts")
    assert (first.record.reused, again.record.reused) == (False, True)
    assert again == first.model_copy(update={"record": again.record})
    (tmp_path / "tiny_train.csv").write_bytes(GOOD.replace(b"250", b"251"))
    third = ingest.fn(supplied(tmp_path / "tiny_train.csv", split="train"), "tiny", tmp_path / "artifacts")
    assert not third.record.reused
    assert values(third.path)[2][4] == 251


def test_reuses_an_output_when_other_datasets_change(csv: CsvSplit, tmp_path: Path) -> None:
    datasets = tmp_path / "datasets"

    def reused() -> bool:
        result: ParquetSplit = ingest.fn(csv, "tiny", tmp_path / "artifacts")
        return result.record.reused

    assert not reused()
    (datasets / "other.toml").write_text("height = 3")
    text = (datasets / "tiny.toml").read_text()
    (datasets / "tiny.toml").write_text(f"# A comment.\n{text}")
    assert reused()
    (datasets / "tiny.toml").write_text(text.replace("near_duplicate = 0.02", "near_duplicate = 0.03"))
    assert not reused()


def test_warns_of_reordered_columns_when_cached_too(
    csv: CsvSplit, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    csv.files[0].path.write_bytes(LABEL_LAST)
    csv = supplied(csv.files[0].path, split="train")
    for reused in (False, True):
        caplog.clear()
        assert ingest.fn(csv, "tiny", tmp_path / "artifacts").record.reused == reused
        (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
        assert warning == "tiny_train.csv: columns were reordered (pixel1 is column 1, expected 2)"


def test_problems_have_the_current_name_of_the_file(csv: CsvSplit, tmp_path: Path) -> None:
    (tmp_path / "tiny_train.csv").write_bytes(GOOD + b"1,2,3\n")
    ingest.fn(supplied(tmp_path / "tiny_train.csv", split="train"), "tiny", tmp_path / "artifacts", 1)
    renamed = (tmp_path / "tiny_train.csv").rename(tmp_path / "tiny_train-1.csv")
    with pytest.raises(DataContractError, match=r"^tiny_train-1\.csv line 5, column pixel3"):
        ingest.fn(supplied(renamed, split="train"), "tiny", tmp_path / "artifacts")


def test_a_rejected_csv_leaves_no_output(csv: CsvSplit, tmp_path: Path) -> None:
    (tmp_path / "tiny_train.csv").write_bytes(GOOD.replace(b"200", b"x"))
    with pytest.raises(DataContractError, match="changed since"):
        ingest.fn(csv, "tiny", tmp_path / "artifacts")
    assert not [path for path in (tmp_path / "artifacts" / "data").iterdir() if path.suffix != ".lock"]
    assert not (tmp_path / "artifacts" / "quarantine").exists()
