"""Run the validate stage: what it stores, logs, raises and reuses."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from schemas.contract import FASHION_MNIST, SPLIT_CHECKS, Split
from schemas.errors import DataContractError
from schemas.layout import RESULT_NAME, TEST_IN_TRAIN_NAME
from schemas.references import ParquetSplit, ValidatedSplit
from tasks.registry.store import ModelStore
from tasks.validate import validate
from tests.stored import add_promoted
from tests.tasks.checks.rows import on_images, read_rows, transposed, write_rows


@pytest.fixture
def _without_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.validate.write_data_docs", lambda artifacts_dir, *_: artifacts_dir / "index.html")


# Data Docs are tested in test_data_docs.py, and take half of the time.
without_pages = pytest.mark.usefixtures("_without_pages")


@pytest.fixture
def copied(sample_data: dict[Split, ValidatedSplit], tmp_path: Path) -> ParquetSplit:
    """A copy of the sample's test split that a test may change."""
    data = sample_data["test"].data
    folder = shutil.copytree(data.path, tmp_path / "test")
    parts = tuple(part.model_copy(update={"path": folder / part.path.name}) for part in data.parts)
    return data.model_copy(update={"path": folder, "parts": parts})


def _write_300(path: Path) -> None:
    frame = pd.read_parquet(path).astype({"pixel400": "int16"})
    frame.loc[17, "pixel400"] = 300
    pq.write_table(pa.Table.from_pandas(frame, preserve_index=False), path)


def test_accepts_the_sample_and_stores_the_results(sample_data: dict[Split, ValidatedSplit]) -> None:
    for split, validated in sample_data.items():
        result = json.loads(validated.result.read_bytes())
        assert {profile["success"] for profile in result.values()} == {True}
        bounds = [
            bound
            for check in FASHION_MNIST.checks[: len(SPLIT_CHECKS)]
            for bound in (check.warn, check.fail)
            if bound is not None and (split == "test" or "in_train" not in check.name)
            # The 200 rows of test are one chunk.
            if split == "train" or check.name != "faulty_chunks"
        ]
        # Five expectations on columns, four on classes.
        expected = 9 + len(bounds)
        assert sum(len(profile["results"]) for profile in result.values()) == validated.expectations == expected
        assert len(validated.checks) == len(bounds)
        assert validated.warnings == ()
        assert validated.data.path.parent in validated.result.parents


@without_pages
def test_logs_warnings_and_raises_failures(
    sample_data: dict[Split, ValidatedSplit], copied: ParquetSplit, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = read_rows(*copied.files)
    write_rows(on_images(lambda images: np.minimum(images * 1.2, 255))(rows), copied.files[0])
    (warning,) = validate.fn(copied, "fashion-mnist", tmp_path, sample_data["train"]).warnings
    assert warning.startswith("drift: distance of the distribution of pixel values from that of the baseline; ")
    assert "expected at most 0.1, received 0." in warning
    assert warning in caplog.text
    write_rows(transposed(rows), copied.files[0])
    with pytest.raises(DataContractError, match=r"the images look transposed \(rows are columns\); expected at most 0"):
        validate.fn(copied, "fashion-mnist", tmp_path, sample_data["train"])
    results = [json.loads(path.read_bytes()) for path in tmp_path.glob(f"validation/*/{RESULT_NAME}")]
    failed = [entry for result in results for entry in result["classes"]["results"] if not entry["success"]]
    assert sorted(entry["expectation_config"]["severity"] for entry in failed) == ["critical", "warning"]


@without_pages
def test_reports_train_images_in_test(
    sample_data: dict[Split, ValidatedSplit], copied: ParquetSplit, tmp_path: Path
) -> None:
    train, test = read_rows(*sample_data["train"].data.files), read_rows(*copied.files)

    def validated(copies: int, near: int) -> ValidatedSplit:
        taken = copies + near
        images, labels = (np.concatenate([part[:taken], own[taken:]]) for part, own in zip(train, test, strict=True))
        changed = images[copies:taken]
        changed[changed > 0] -= 1
        write_rows((images, labels), copied.files[0])
        return validate.fn(copied, "fashion-mnist", tmp_path, sample_data["train"])

    some = validated(7, 5)
    assert some.duplicates is not None
    assert (some.duplicates.test_rows_in_train, some.duplicates.test_rows_near_train) == (7, 5)
    assert "7 of 200 test images are copies of train images" in "; ".join(some.warnings)
    assert "5 of 200 test images are near duplicates of train images" in "; ".join(some.warnings)
    assert np.load(some.record.path / TEST_IN_TRAIN_NAME).tolist() == [2] * 7 + [1] * 5 + [0] * 188
    with pytest.raises(DataContractError, match="test_images_in_train: 150 of 200 test images are copies of train"):
        validated(150, 0)


@without_pages
def test_rejects_a_300_and_remembers_it(copied: ParquetSplit, tmp_path: Path) -> None:
    _write_300(copied.files[0])
    for _ in range(2):
        with pytest.raises(DataContractError, match=r"pixel400 .*maximum 300") as caught:
            validate.fn(copied, "fashion-mnist", tmp_path)
        assert [str(problem) for problem in caught.value.problems] == [
            "column pixel400: expected type uint8, received int16",
            "column pixel400: expected maximum <= 255, received 300",
        ]
        first, *violations, last = str(caught.value).splitlines()
        assert first == "test split (fashion-mnist_test.csv.gz) breaks its contract:"
        assert ["pixel400" in line for line in violations] == [True] * 2
        assert last.startswith("All results are in ")
    assert len(list((tmp_path / "validation").glob(f"*/{RESULT_NAME}"))) == 1


@without_pages
def test_validates_a_changed_file_again(copied: ParquetSplit, tmp_path: Path) -> None:
    validate.fn(copied, "fashion-mnist", tmp_path)
    _write_300(copied.files[0])
    with pytest.raises(DataContractError, match=r"pixel400 .*maximum 300"):
        validate.fn(copied, "fashion-mnist", tmp_path)


@without_pages
def test_fetched_data_has_the_published_rows(copied: ParquetSplit, tmp_path: Path) -> None:
    validate.fn(copied, "fashion-mnist", tmp_path)
    with pytest.raises(DataContractError, match="received 200"):
        validate.fn(copied.model_copy(update={"origin": "fetched"}), "fashion-mnist", tmp_path)


@without_pages
@pytest.mark.parametrize("profile", [b"[]", b"{}", b"[" * 100_000, b'{"class_rows": NaN}'])
def test_an_unreadable_champion_profile_is_logged(
    copied: ParquetSplit, tmp_path: Path, caplog: pytest.LogCaptureFixture, profile: bytes
) -> None:
    store = ModelStore.of(tmp_path / "artifacts", "fashion-mnist")
    add_promoted(store.root, write=lambda folder: (folder / "profile.json").write_bytes(profile))
    validated = validate.fn(copied, "fashion-mnist", tmp_path / "artifacts")
    assert "drift from the champion's train data is not measured" in caplog.text
    assert validated.warnings == ()
