"""Several CSVs: the predictions of each are those of `predict` for it alone, and all are written or none."""

import shutil
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds
import pytest

from schemas.errors import DataContractError, VersionNotFound, WrongUsage
from schemas.references import PredictedFiles
from tasks.data.data_folder import csv_split
from tasks.predict import predict_file, predict_files
from tasks.registry import batch_prediction
from tasks.registry.batch_prediction import predict_csv
from tasks.registry.prediction_folder import csvs_by_part
from tasks.registry.store import ModelStore, StoredVersion
from tasks.runtime.files import sha256_file
from tasks.runtime.materialize import receive_file, send_csv
from tests.tasks.test_shards import shards_of

NAME = "fashion-mnist"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder with three CSVs of the sample, of 66 or 67 rows."""
    shards_of(tmp_path / "images", "test", 3)
    return tmp_path / "images"


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of the versions whose model was loaded."""
    numbers: list[int] = []
    load = batch_prediction.load_model

    def load_and_count(version: StoredVersion) -> Any:
        numbers.append(version.number)
        return load(version)

    monkeypatch.setattr(batch_prediction, "load_model", load_and_count)
    return numbers


def run(images: Path, artifacts: Path, **options: Any) -> PredictedFiles:
    given = {"version": "2", **options}
    return predict_files(csvs_by_part([images]), images.parent / "out", given.pop("version"), NAME, artifacts, **given)


def test_each_file_is_that_of_a_single_prediction(
    two_versions: Path, images: Path, tmp_path: Path, loaded: list[int]
) -> None:
    run(images, two_versions, version="1")
    loaded.clear()
    predicted = run(images, two_versions)
    assert loaded == [2]  # once, and not for each file
    assert (predicted.version, predicted.rows, predicted.output) == (2, 200, tmp_path / "out")
    for file in predicted.files:
        alone = predict_csv(file.images, tmp_path / "alone.parquet", "2", NAME, two_versions)
        assert file.output.read_bytes() == alone.output.read_bytes()
        assert (file.sha256, file.accuracy, file.rows) == (alone.sha256, alone.accuracy, alone.rows)
    assert ds.dataset(tmp_path / "out").to_table()["row"].to_pylist() == [*range(67), *range(67), *range(66)]


def test_every_bad_file_is_named_and_nothing_is_written(two_versions: Path, images: Path, tmp_path: Path) -> None:
    run(images, two_versions)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet")}
    for place, content in ((0, b"PK\x03\x04"), (2, b"label\n")):
        (images / f"{NAME}_test-00{place}.csv").write_bytes(content)
    with pytest.raises(DataContractError) as caught:
        run(images, two_versions)
    assert "_test-000.csv" in str(caught.value)
    assert "_test-002.csv" in str(caught.value)
    assert "_test-001.csv" not in str(caught.value)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet")} == before


def test_strict_names_the_output_and_writes_nothing(two_versions: Path, images: Path, tmp_path: Path) -> None:
    second = images / f"{NAME}_test-001.csv"
    header, *rows = second.read_bytes().splitlines()
    second.write_bytes(b"\n".join([header, *(row.partition(b",")[0] + b",0" * 784 for row in rows)]))  # blank images
    with pytest.raises(DataContractError, match=rf"{tmp_path}/out/{NAME}_test-001\.parquet was not written"):
        run(images, two_versions, strict=True)
    assert [*tmp_path.iterdir()] == [images]


def test_an_unknown_version_leaves_nothing(two_versions: Path, images: Path, tmp_path: Path) -> None:
    with pytest.raises(VersionNotFound):
        run(images, two_versions, version="9")
    assert [*tmp_path.iterdir()] == [images]


def test_a_worker_without_the_folder_names_the_cure(two_versions: Path, images: Path, tmp_path: Path) -> None:
    csv, *_ = images.iterdir()
    output = tmp_path / f".out.{'0' * 32}.tmp" / "a.parquet"
    with pytest.raises(WrongUsage, match=r"/out: this worker has no such folder\..* set FASHION_ANN_REMOTE"):
        predict_file.fn(csv, None, output, "2", NAME, two_versions)


def test_a_worker_that_shares_only_the_remote(
    two_versions: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (csv,) = csv_split("test", [images / f"{NAME}_test-000.csv"]).files
    alone = predict_csv(csv.path, tmp_path / "alone.parquet", "2", NAME, two_versions)
    copy = shutil.copytree(two_versions, tmp_path / "run")
    monkeypatch.setenv("FASHION_ANN_REMOTE", f"file://{tmp_path}/remote")
    monkeypatch.setenv("FASHION_ANN_ARTIFACTS_DIR", str(tmp_path / "worker"))
    store = ModelStore.of(copy, NAME)
    with store.lock():
        store.synchronize()
    send_csv(csv)
    csv.path.unlink()
    predicted = predict_file.fn(csv.path, csv.sha256, Path("/none/a.parquet"), "2", NAME, None)
    assert (predicted.images, predicted.sha256) == (csv.path, alone.sha256)
    assert predicted.profile_sha256 is not None
    for digest, own in ((predicted.sha256, predicted.output), (predicted.profile_sha256, predicted.profile)):
        assert own is not None
        assert not own.exists()
        receive_file(digest, tmp_path / digest)
        assert sha256_file(tmp_path / digest) == digest
