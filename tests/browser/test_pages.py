"""report.html and the page of `compare` as a browser sees them, opened from disk."""

import json
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe

from tests.browser.conftest import Run

# One screen of a desk, one of a phone; both schemes.
SCREENS = [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")]


@pytest.mark.parametrize(("width", "scheme"), SCREENS)
def test_a_page_opens_without_an_error_or_a_request_and_is_no_wider_than_the_screen(
    opened: Any, page_file: Path, width: int, scheme: str
) -> None:
    page, told = opened(page_file, width, scheme)
    assert told.console == []
    assert [url for url in told.requests if not url.startswith("data:")] == [page_file.as_uri()]
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    # What is wider than the screen scrolls by itself; nothing else sticks out.
    sticking_out = page.evaluate(
        """width => [...document.querySelectorAll("main *")]
            .filter(e => !e.closest(".scroll") && e.getBoundingClientRect().right > width + 1).map(e => e.outerHTML)""",
        width,
    )
    assert sticking_out == []


def test_every_picture_is_there_and_has_words(opened: Any, page_file: Path, run: Run) -> None:
    page, _ = opened(page_file)
    pictures = page.evaluate("[...document.images].map(i => [i.naturalWidth, i.naturalHeight, i.alt])")
    assert all(width > 0 and height > 0 and alt for width, height, alt in pictures)
    metrics = json.loads((Path(run.versions[1]["path"]) / "metrics.json").read_bytes())
    if page_file.name == "report.html":
        assert len([alt for width, _, alt in pictures if width == 28]) == 25 + 8 * 10
        assert page.locator("#learning svg polyline").count() == 4
        assert page.locator("#calibration rect.hit title").count() == len(metrics["calibration"])
    else:
        assert pictures


def test_the_schemes_differ_and_text_stands_out_in_each(opened: Any, page_file: Path) -> None:
    grounds = []
    for scheme in ("light", "dark"):
        page, _ = opened(page_file, 1280, scheme)
        grounds.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    light, dark = (sum(map(int, ground.removeprefix("rgb(").rstrip(")").split(","))) for ground in grounds)
    assert light > 600 > 150 > dark


@pytest.mark.parametrize(("width", "scheme"), SCREENS)
def test_axe_finds_nothing(opened: Any, page_file: Path, width: int, scheme: str) -> None:
    page, _ = opened(page_file, width, scheme)
    found = Axe().run(page).response["violations"]
    assert [(rule["id"], rule["impact"], [node["target"] for node in rule["nodes"]][:3]) for rule in found] == []


def test_the_keyboard_reaches_every_link_table_and_fold(opened: Any, page_file: Path) -> None:
    page, _ = opened(page_file)
    expected = page.evaluate(
        """[...document.querySelectorAll("a, summary, [tabindex]")]
            .filter(e => !e.matches("details:not([open]) .scroll")).map((e, n) => (e.dataset.number = n, n))"""
    )
    reached = []
    for _ in expected:
        page.keyboard.press("Tab")
        reached.append(page.evaluate("Number(document.activeElement.dataset.number)"))
    assert reached == expected
    page.keyboard.press("Tab")  # nothing else takes the focus
    assert page.evaluate("document.activeElement.dataset.number ?? null") in (None, "0")


def test_the_fold_opens_by_keyboard(opened: Any, run: Run) -> None:
    page, _ = opened(Path(run.versions[1]["path"]) / "report.html")
    page.locator("summary").focus()
    page.keyboard.press("Enter")
    assert page.locator("details table").is_visible()


def test_a_page_prints_whole_on_paper(opened: Any, page_file: Path) -> None:
    page, _ = opened(page_file, 1280, "dark")
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.locator("nav").is_hidden()
    assert page.pdf().startswith(b"%PDF")


def test_links_to_the_other_files_lead_to_them(opened: Any, run: Run) -> None:
    page, _ = opened(Path(run.versions[0]["path"]) / "report.html")
    page.locator("a", has_text="verdict.json").click()
    assert json.loads(page.locator("body").inner_text())["outcome"] == "promoted"
