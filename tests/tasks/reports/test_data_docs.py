"""The pages that Great Expectations draws of the last verdict on each split."""

import logging
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
    """Pages that the index leads to."""
    links = set(re.findall(r'href="(validations/[^"]+\.html)"', index.read_text(encoding="utf-8")))
    assert all((index.parent / link).is_file() for link in links)
    return links


def test_the_index_leads_to_a_page_of_each_verdict_and_its_checks(
    sample_data: dict[Split, ValidatedSplit], sample_artifacts: Path
) -> None:
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
        assert "orientation: How much better they agree turned" in text
        assert "At most 0, else the split is refused." in text


def test_a_page_of_a_broken_verdict_says_where_and_what_was_found(
    sample_data: dict[Split, ValidatedSplit], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    frame = pd.read_parquet(sample_data["test"].data.path).astype({"pixel400": "int16", "label": "int16"})
    frame.loc[17, ["pixel400", "label"]] = 300, 12
    path = tmp_path / "test.parquet"
    pq.write_table(pa.Table.from_pandas(frame, preserve_index=False), path)
    data = sample_data["test"].data.model_copy(update={"path": path})
    with pytest.raises(DataContractError):
        validate.fn(data, "fashion-mnist", tmp_path)
    index = tmp_path / "data_docs" / "index.html"
    (page,) = (link for link in _linked(index) if "columns" in link)
    words = re.sub(r"<[^>]*>|\s+", " ", (index.parent / page).read_text(encoding="utf-8"))
    assert re.search(r"pixel400 +int16 +uint8", words)
    assert re.search(r"pixel400 +300 +255", words)
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []


@pytest.mark.parametrize(
    ("blank", "marks", "told"),
    [
        (1, {"exclamation-triangle text-warning": ["blank_images"]}, "expectations met, 1 warned of<"),
        # Both of its bounds are passed, and that of the repeated ones which warns.
        (
            9,
            {
                "times text-danger": ["blank_images"],
                "exclamation-triangle text-warning": ["blank_images", "repeated_images"],
            },
            "expectations met, 2 warned of, refused for 1<",
        ),
    ],
)
def test_what_is_only_warned_of_has_another_mark_than_what_refuses(
    sample_data: dict[Split, ValidatedSplit], tmp_path: Path, blank: int, marks: dict[str, list[str]], told: str
) -> None:
    frame = pd.read_parquet(sample_data["test"].data.path)
    frame.iloc[:blank, 1:] = 0
    path = tmp_path / "test.parquet"
    pq.write_table(pa.Table.from_pandas(frame, preserve_index=False), path)
    data = sample_data["test"].data.model_copy(update={"path": path})
    with suppress(DataContractError):
        validate.fn(data, "fashion-mnist", tmp_path)
    index = tmp_path / "data_docs" / "index.html"
    (page,) = (link for link in _linked(index) if "classes" in link)
    text = (index.parent / page).read_text(encoding="utf-8")
    rows = re.findall(r'<i class="fas fa-([a-z -]+)"[^>]*></i>\s*</span>.*?(\w+): ', text, re.DOTALL)
    found: dict[str, list[str]] = {}
    for mark, check in rows:
        found.setdefault(mark, []).append(check)
    assert {mark: checks for mark, checks in found.items() if "success" not in mark} == marks
    assert told in index.read_text(encoding="utf-8")


def test_a_newer_verdict_takes_the_place_of_the_one_before_and_leaves_the_others(
    sample_data: dict[Split, ValidatedSplit], tmp_path: Path
) -> None:
    results = {split: validated.result for split, validated in sample_data.items()}
    write_data_docs(tmp_path, "fashion-mnist", "train", results["train"], "first")
    index = write_data_docs(tmp_path, "fashion-mnist", "test", results["test"], "second")
    before = _linked(index)
    (tmp_path / ".data_docs.abcdefgh" / "verdicts").mkdir(parents=True)  # as a killed run leaves it
    write_data_docs(tmp_path, "fashion-mnist", "test", results["test"], "third")
    after = _linked(index)
    assert {link for link in before if "second" in link} == before - after
    assert len(after) == len(before) == 4
    pages = {path.relative_to(index.parent).as_posix() for path in (index.parent / "validations").rglob("*.html")}
    assert pages == after
    assert {path.name for path in tmp_path.iterdir()} == {"data_docs", ".data_docs.lock"}


def test_the_same_verdict_draws_nothing_anew_unless_pages_are_gone(
    sample_data: dict[Split, ValidatedSplit], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = sample_data["train"].result
    index = write_data_docs(tmp_path, "fashion-mnist", "train", result, "run")
    drawn = index.stat().st_mtime_ns
    write_data_docs(tmp_path, "fashion-mnist", "train", result, "run")
    assert index.stat().st_mtime_ns == drawn
    index.unlink()
    write_data_docs(tmp_path, "fashion-mnist", "train", result, "run")
    assert index.exists()
