"""The pages that Great Expectations draws of the last validation of each split."""

import json
import logging
import os
import re
from contextlib import suppress
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from schemas.contract import Split
from schemas.errors import DataContractError
from schemas.references import ValidatedSplit
from tasks.reports.data_docs import write_data_docs
from tasks.validate import validate


def _linked(index: Path) -> set[str]:
    """Return the pages that the index links to."""
    links = set(re.findall(r'href="(validations/[^"]+\.html)"', index.read_text(encoding="utf-8")))
    assert all((index.parent / link).is_file() for link in links)
    return links


def _pages_of(frame: pd.DataFrame, validated: ValidatedSplit, folder: Path) -> dict[str, str]:
    """Validate ``frame`` in place of the split; return the index and the pages of columns and classes."""
    path = folder / "test"
    (part,) = validated.data.parts
    part = part.model_copy(update={"path": path / part.path.name})
    path.mkdir()
    pq.write_table(pa.Table.from_pandas(frame, preserve_index=False), part.path)
    with suppress(DataContractError):
        validate.fn(validated.data.model_copy(update={"path": path, "parts": (part,)}), "fashion-mnist", folder)
    index = folder / "data_docs" / "index.html"
    pages = {"index": index.read_text(encoding="utf-8")}
    for profile in ("columns", "classes"):
        (page,) = (link for link in _linked(index) if profile in link)
        pages[profile] = (index.parent / page).read_text(encoding="utf-8")
    return pages


def test_index_links_to_every_result(sample_data: dict[Split, ValidatedSplit], sample_artifacts: Path) -> None:
    index = sample_artifacts / "data_docs" / "index.html"
    links = _linked(index)
    for split, validated in sample_data.items():
        text = ""
        for profile in ("columns", "classes"):
            (page,) = (link for link in links if f"fashion-mnist-{split}-{profile}" in link)
            text = (index.parent / page).read_text(encoding="utf-8")
            assert validated.record.path.name in page
            assert "Succeeded" in text
            assert re.findall(r'<script|<link| on\w+="|(?:src|url)[=(]["\']?http[^"\']*', text) == []
        assert "orientation: Gain in mean correlation if the images are turned" in text
        assert "Fails above 0." in text


def test_page_names_columns_and_values(
    sample_data: dict[Split, ValidatedSplit], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    frame = pd.read_parquet(sample_data["test"].data.path).astype({"pixel400": "int16", "label": "int16"})
    frame.loc[17, ["pixel400", "label"]] = 300, 12
    pages = _pages_of(frame, sample_data["test"], tmp_path)
    words = re.sub(r"<[^>]*>|\s+", " ", pages["columns"])
    assert re.search(r"pixel400.{0,40} int16|int16.{0,40} pixel400", words)
    assert re.search(r"300.{0,40} pixel400|pixel400.{0,40} 300", words)
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []


@pytest.mark.parametrize(
    ("blank", "failed", "warned", "counts"),
    [
        (1, [], ["blank_images"], "passed, 1 warning<"),
        # Both bounds of blank_images are exceeded, and the warning of repeated_images.
        (9, ["blank_images"], ["blank_images", "repeated_images"], "passed, 2 warnings, 1 failure<"),
    ],
)
def test_marks_warnings_and_failures_apart(
    sample_data: dict[Split, ValidatedSplit],
    tmp_path: Path,
    blank: int,
    failed: list[str],
    warned: list[str],
    counts: str,
) -> None:
    frame = pd.read_parquet(sample_data["test"].data.path)
    frame.iloc[:blank, 1:] = 0
    pages = _pages_of(frame, sample_data["test"], tmp_path)
    marks = re.findall(r'<i class="fas fa-([a-z -]+)"[^>]*></i>\s*</span>.*?(\w+): ', pages["classes"], re.DOTALL)
    assert [check for mark, check in marks if mark == "times text-danger"] == failed
    assert [check for mark, check in marks if mark == "exclamation-triangle text-warning"] == warned
    assert counts in pages["index"]


def test_replaces_only_the_split_that_was_validated(sample_data: dict[Split, ValidatedSplit], tmp_path: Path) -> None:
    train, test = sample_data["train"], sample_data["test"]
    write_data_docs(tmp_path, "fashion-mnist", train.data, train.result, "first")
    index = write_data_docs(tmp_path, "fashion-mnist", test.data, test.result, "second", train.data)
    before = _linked(index)
    (tmp_path / ".data_docs.abcdefgh" / "verdicts").mkdir(parents=True)  # left by a killed run
    for folder in (index.parent, index.parent / "verdicts"):
        (folder / "._fashion-mnist-train.json").write_bytes(b"\0\5\x16\7")  # left by macOS
    write_data_docs(tmp_path, "fashion-mnist", test.data, test.result, "third", train.data)
    after = _linked(index)
    assert {link for link in before if "second" in link} == before - after
    assert len(after) == len(before) == 4
    pages = {path.relative_to(index.parent).as_posix() for path in (index.parent / "validations").rglob("*.html")}
    assert pages == after
    assert {path.name for path in tmp_path.iterdir()} == {"data_docs", ".data_docs.lock"}


def test_names_file_time_and_run_of_each_split(sample_data: dict[Split, ValidatedSplit], tmp_path: Path) -> None:
    train, test = sample_data["train"], sample_data["test"]
    result = tmp_path / "result.json"
    result.write_bytes(train.result.read_bytes())
    os.utime(result, (0, 0))
    write_data_docs(tmp_path, "fashion-mnist", train.data, result, "first")
    index = write_data_docs(tmp_path, "fashion-mnist", test.data, test.result, "second", train.data)
    words = re.sub(r"<[^>]*>|\s+", " ", index.read_text(encoding="utf-8"))
    source = "fashion-mnist_train.csv.gz, 1,000 rows, sha256 "
    assert f"fashion-mnist, train: {source}" in words
    assert "validated 1970-01-01 00:00:00 UTC in run first" in words
    assert "fashion-mnist, test: fashion-mnist_test.csv.gz, 200 rows" in words
    assert "another run" not in words
    for link in _linked(index):
        page = (index.parent / link).read_text(encoding="utf-8")
        assert ("<title>fashion-mnist-train-" in page) is (source in page) is ("train" in link)

    other = train.data.source.files[0].model_copy(update={"sha256": "f" * 64})
    changed = train.data.model_copy(update={"source": train.data.source.model_copy(update={"files": (other,)})})
    write_data_docs(tmp_path, "fashion-mnist", changed, result, "third")
    assert "This result is of another run" in index.read_text(encoding="utf-8")


def test_draws_pages_again_only_if_they_are_gone(sample_data: dict[Split, ValidatedSplit], tmp_path: Path) -> None:
    data, result = sample_data["train"].data, sample_data["train"].result
    index = write_data_docs(tmp_path, "fashion-mnist", data, result, "run")
    drawn = index.stat().st_mtime_ns
    write_data_docs(tmp_path, "fashion-mnist", data, result, "run")
    assert index.stat().st_mtime_ns == drawn
    index.unlink()
    write_data_docs(tmp_path, "fashion-mnist", data, result, "run")
    assert index.exists()


def test_leaves_out_what_is_no_validation(
    sample_data: dict[Split, ValidatedSplit], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    verdicts = tmp_path / "data_docs" / "verdicts"
    verdicts.mkdir(parents=True)
    (verdicts / "a.json").write_text("[1]")
    (verdicts / "b.json").write_text('{"verdict": {"columns": {}}}')
    os.mkfifo(verdicts / "fashion-mnist-test.json")
    test = sample_data["test"]
    index = write_data_docs(tmp_path, "fashion-mnist", test.data, test.result, "run")
    assert len(_linked(index)) == 2
    assert "no page of a.json" in caplog.text
    assert "no page of b.json" in caplog.text


def test_names_of_shards_are_text_in_pages(sample_data: dict[Split, ValidatedSplit], tmp_path: Path) -> None:
    validated = sample_data["test"]
    stored = json.loads(validated.result.read_bytes())
    config = stored["classes"]["results"][-1]["expectation_config"]
    config |= {"description": "Details: rows 1 to 2 of <i>$a & b.csv", "notes": "rows 1 to 2 of <i>$a & b.csv"}
    result = tmp_path / "result.json"
    result.write_text(json.dumps(stored))
    index = write_data_docs(tmp_path, "fashion-mnist", validated.data, result, "run")
    (page,) = (index.parent / link for link in _linked(index) if "classes" in link)
    text = page.read_text(encoding="utf-8")
    assert "rows 1 to 2 of &lt;i&gt;$a &amp; b.csv" in text
    assert "<i>$a" not in text
