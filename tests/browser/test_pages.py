"""report.html and the page of `compare` as a browser sees them, opened from disk."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page

from schemas.contract import FASHION_MNIST
from schemas.references import PreparedData
from tasks.reports.comparison import write_comparison
from tasks.reports.version_report import write_report
from tasks.runtime.files import write_json
from tests.browser.conftest import Run
from tests.tasks.reports.test_comparison import _add, _compare

# One screen of a desk, one of a phone; both schemes.
PAPER, PAPER_HEIGHT = 688, 1017  # pixels of A4 within the margins of 14 mm
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
    assert _sticking_out(page, "main", width, but=".scroll") == []


@pytest.mark.parametrize("width", [1280, 390])
def test_a_reason_that_no_space_breaks_is_no_wider_than_the_screen(
    opened: Any, sample_version: Path, sample_prepared: PreparedData, tmp_path: Path, width: int
) -> None:
    folder = tmp_path / "models" / "fashion-mnist" / "versions" / "0001"
    shutil.copytree(sample_version, folder)
    fault = f"{'/a_folder_of_some_name' * 8}/model.weights.h5: expected sha256 {'0123456789abcdef' * 4}."
    stated = json.loads((folder / "manifest.json").read_bytes())
    stated["verdict"]["reason"] = f"Kept: version 1, the champion, cannot be measured. {fault}"
    stated["data"]["test"]["warnings"] = [fault]
    verdict = json.loads((folder / "verdict.json").read_bytes())
    rule = {"rule": "the champion can be measured", "figure": fault, "bound": "loaded", "holds": False}
    verdict |= {"champion": 1, "champion_fault": fault, "rules": [*verdict["rules"], rule]}
    write_json(folder / "verdict.json", verdict)
    images = np.load(sample_prepared.record.path / "test_images.npy")
    write_report(folder, 1, stated, images, FASHION_MNIST)
    page, _ = opened(folder / "report.html", width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert _sticking_out(page, "body", width, but=".scroll") == []
    # A table scrolls rather than break its words.
    heads = page.locator("#classes th[scope=row]").evaluate_all("all => all.map(e => e.getClientRects().length)")
    assert set(heads) == {1}


def test_a_note_with_a_long_path_is_no_wider_than_the_screen(opened: Any, tmp_path: Path) -> None:
    artifacts = tmp_path / ("a_folder_of_some_name" * 8)
    _add(artifacts, [0, 1, 2], [0, 9, 2])
    _add(artifacts, [0, 1, 2], [0, 1, 9])
    write_comparison(_compare(artifacts), tmp_path / "page.html")
    page, _ = opened(tmp_path / "page.html", 390)
    assert page.locator("[role=note]").inner_text().count("a_folder_of_some_name") >= 8
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert _sticking_out(page, "body", 390, but=".scroll") == []


def _sticking_out(page: Page, inside: str, width: int, but: str = "none") -> list[str]:
    """Elements that reach past the right edge, those in ``but`` aside."""
    found: list[str] = page.evaluate(
        """([inside, width, but]) => [...document.querySelectorAll(`${inside} *`)]
            .filter(e => !e.closest(but) && e.getBoundingClientRect().right > width + 1).map(e => e.outerHTML)""",
        [inside, width, but],
    )
    return found


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
    _demand_that_it_prints_whole(opened, page_file)


def test_the_report_prints_whole_on_paper_with_its_fold_open(opened: Any, sample_version: Path) -> None:
    page = _demand_that_it_prints_whole(opened, sample_version / "report.html")
    # Nobody can unfold paper. The height of the fold tells: a table that it hides has one of its own all the same.
    fold, table = (
        page.locator(f"#calibration {name}").evaluate("e => e.offsetHeight") for name in ("details", "details table")
    )
    assert fold > table > 0


def _demand_that_it_prints_whole(opened: Any, file: Path) -> Page:
    page, _ = opened(file, PAPER, "dark")
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.locator("nav").is_hidden()
    # Paper does not scroll: what sticks out is cut off, also of a table.
    assert _sticking_out(page, "main", PAPER) == []
    height = page.evaluate("document.documentElement.scrollHeight")
    sheets = len(re.findall(rb"/Type ?/Page\b", page.pdf(format="A4", prefer_css_page_size=True)))
    assert height / PAPER_HEIGHT <= sheets <= height / PAPER_HEIGHT * 1.6 + 1
    return page


def test_links_to_the_other_files_lead_to_them(opened: Any, run: Run) -> None:
    page, _ = opened(Path(run.versions[0]["path"]) / "report.html")
    page.locator("a", has_text="verdict.json").click()
    assert json.loads(page.locator("body").inner_text())["outcome"] == "promoted"
