"""Open Prefect's UI in a browser after real runs."""

import re
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser.conftest import Run

TIMEOUT = 30_000  # milliseconds; the UI requests all its data from the server


@pytest.fixture
def ui(browser: Browser, run: Run) -> Any:
    context = browser.new_context(viewport={"width": 1400, "height": 1000}, base_url=run.ui)
    context.set_default_timeout(TIMEOUT)
    yield context.new_page()
    context.close()


def test_runs_have_names_and_tags(ui: Page) -> None:
    ui.goto("/runs")
    for text in ("fashion-mnist v0001 seed 0", "fashion-mnist v0002 seed 3"):
        expect(ui.get_by_text(text).first).to_be_visible(timeout=TIMEOUT)
    expect(ui.get_by_text("v0002", exact=True).first).to_be_visible(timeout=TIMEOUT)


def _open_latest(ui: Page, key: str) -> None:
    """Open the latest artifact from the page of its key.

    Opened by its address, the page of an artifact may stay blank. The UI of Prefect 3.8.8 fails on the inputs of some
    task runs ("Invalid TaskInputResponse").
    """
    ui.goto(f"/artifacts/key/fashion-mnist-{key}")
    ui.locator("a[href*='/artifacts/artifact/']").first.click()


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("version", "Version 2: "),
        ("verdict", "p-value of McNemar's exact test against version 1"),
        ("per-class", "Ankle boot"),
        ("report", "report.html"),
        ("evaluation", "expected calibration error"),
        ("train-validation", "expect_column_pair_values_to_be_equal"),
    ],
)
def test_shows_an_artifact(ui: Page, key: str, text: str) -> None:
    _open_latest(ui, key)
    expect(ui.get_by_text(text).first).to_be_visible(timeout=TIMEOUT)


@pytest.mark.parametrize("key", ["train-validation", "verdict"])
def test_a_table_shows_bounds_and_results(ui: Page, key: str) -> None:
    _open_latest(ui, key)
    bound = ui.get_by_text(re.compile(r"^\s*[<>]= [\d.e-]+\s*$")).first  # Markdown would show it as a quotation
    expect(bound).to_be_visible(timeout=TIMEOUT)
    assert ui.locator("table blockquote, .artifact-data-table blockquote").count() == 0
    result = ui.get_by_text("met", exact=True).first.bounding_box()
    assert result is not None
    assert result["x"] + result["width"] < 1400


@pytest.mark.parametrize("key", ["confusion-matrix", "learning-curve"])
def test_shows_a_picture(ui: Page, key: str) -> None:
    _open_latest(ui, key)
    picture = ui.locator("img[src^='data:image/svg+xml']").first
    expect(picture).to_be_visible(timeout=TIMEOUT)
    assert picture.evaluate("image => image.naturalWidth") > 300
