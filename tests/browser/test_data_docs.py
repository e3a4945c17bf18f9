"""Open Great Expectations' pages of an accepted and of a rejected split in a browser, from disk."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from axe_playwright_python.sync_playwright import Axe

from schemas.contract import FASHION_MNIST, Split
from schemas.references import ValidatedSplit
from tasks.checks.scan import scan_split
from tasks.checks.suite import validate_split
from tasks.reports.data_docs import write_data_docs
from tasks.runtime.files import write_json
from tests.browser.test_pages import SCREENS


@pytest.fixture(scope="module")
def index(sample_data: dict[Split, ValidatedSplit], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The index of the sample's train split, and of its test split with inverted images."""
    folder = tmp_path_factory.mktemp("docs")
    table = pq.read_table(sample_data["test"].data.path)
    inverted = [table.column(0), *(pa.array(np.uint8(255) - column.to_numpy()) for column in table.columns[1:])]
    files = [folder / "inverted.parquet"]
    pq.write_table(pa.table(inverted, names=table.column_names), files[0])
    result = validate_split(scan_split(files, FASHION_MNIST), files, FASHION_MNIST, "test").result
    write_json(folder / "result.json", result)
    train, test = sample_data["train"], sample_data["test"].data
    write_data_docs(folder, FASHION_MNIST.name, train.data, train.result, "accepted")
    return write_data_docs(folder, FASHION_MNIST.name, test, folder / "result.json", "inverted", train.data)


@pytest.mark.parametrize(("width", "scheme"), SCREENS)
def test_pages_open_without_errors_or_requests(opened: Any, index: Path, width: int, scheme: str) -> None:
    page, observed = opened(index, width, scheme)
    links = page.locator("a[href^='validations/']")
    assert sorted(links.all_inner_texts()) == [
        f"{FASHION_MNIST.name}-{split}-{profile}" for split in ("test", "train") for profile in ("classes", "columns")
    ]
    for number in range(5):
        if number:  # 0 is the index
            page.goto(index.as_uri())
            links.nth(number - 1).click()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate("[...document.images].every(picture => picture.naturalWidth > 0)")
        light = sum(map(int, page.evaluate("getComputedStyle(document.body).backgroundColor")[4:-1].split(",")))
        assert light > 600 if scheme == "light" else light < 150
        violations = Axe().run(page).response["violations"]
        serious = [(rule["id"], rule["nodes"][0]["target"]) for rule in violations if rule["impact"] != "moderate"]
        assert serious == []
    assert observed.console == []
    assert [url for url in observed.requests if not url.startswith(index.parent.as_uri())] == []


def test_filter_shows_failures_alone(opened: Any, index: Path) -> None:
    page, _ = opened(index)
    page.locator("a", has_text=f"{FASHION_MNIST.name}-test-classes").click()
    assert "Failed" in page.locator("#section-1").inner_text()
    polarity, imbalance = (page.locator("tr", has_text=f"{name}: ").last for name in ("polarity", "class_imbalance"))
    assert _icon(polarity) == "✘"
    assert _icon(imbalance) == "✔"
    page.get_by_text("Failed Only").click()
    assert polarity.is_visible()
    assert imbalance.is_hidden()
    page.get_by_text("Show All").click()
    assert imbalance.is_visible()


def _icon(row: Any) -> str:
    content = row.locator("i").evaluate("e => getComputedStyle(e, '::before').content")
    return str(json.loads(content))


def test_link_unfolds_the_validation_info(opened: Any, index: Path) -> None:
    page, _ = opened(index)
    page.locator("a", has_text=f"{FASHION_MNIST.name}-train-columns").click()
    more = page.get_by_text("Great Expectations Version")
    assert more.is_hidden()
    page.get_by_text("Show more info...").click()
    assert more.is_visible()
