"""What Prefect's own UI shows of a real run, in a browser."""

from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser.conftest import Run

PATIENCE = 30_000  # milliseconds; the UI asks the server for everything that it shows


@pytest.fixture
def ui(browser: Browser, run: Run) -> Any:
    context = browser.new_context(viewport={"width": 1400, "height": 1000}, base_url=run.ui)
    context.set_default_timeout(PATIENCE)
    yield context.new_page()
    context.close()


def test_runs_are_called_by_version_and_seed_and_tagged(ui: Page) -> None:
    ui.goto("/runs")
    for text in ("fashion-mnist v0001 seed 0", "fashion-mnist v0002 seed 3"):
        expect(ui.get_by_text(text).first).to_be_visible(timeout=PATIENCE)
    expect(ui.get_by_text("v0002", exact=True).first).to_be_visible(timeout=PATIENCE)


def _open_latest(ui: Page, key: str) -> None:
    """As people come to it, from the page of the key.

    Opened by its address the page of an artifact may stay blank: this UI of Prefect 3.8.8 stumbles over the inputs of
    some task runs ("Invalid TaskInputResponse").
    """
    ui.goto(f"/artifacts/key/fashion-mnist-{key}")
    ui.locator("a[href*='/artifacts/artifact/']").first.click()


@pytest.mark.parametrize(
    ("key", "shows"),
    [
        ("version", "Version 2: "),
        ("verdict", "McNemar's exact test against version 1, p"),
        ("per-class", "Ankle boot"),
        ("report", "report.html"),
        ("evaluation", "expected calibration error"),
        ("train-validation", "expect_every_column_to_be"),
    ],
)
def test_an_artifact_of_the_latest_run_is_shown(ui: Page, key: str, shows: str) -> None:
    _open_latest(ui, key)
    expect(ui.get_by_text(shows).first).to_be_visible(timeout=PATIENCE)


@pytest.mark.parametrize("key", ["confusion-matrix", "learning-curve"])
def test_a_picture_of_the_latest_run_is_shown(ui: Page, key: str) -> None:
    _open_latest(ui, key)
    picture = ui.locator("img[src^='data:image/png']").first
    expect(picture).to_be_visible(timeout=PATIENCE)
    assert picture.evaluate("image => image.naturalWidth") > 300
