"""Open report.html, the page of `compare` and that of all versions in a browser, from disk."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page

from schemas.contract import FASHION_MNIST
from schemas.references import PreparedData
from tasks.data.splits import open_split
from tasks.reports.comparison import write_comparison
from tasks.reports.version_report import write_report
from tasks.runtime.files import write_json
from tests.browser.conftest import Run
from tests.tasks.reports.predicted_versions import add_predicted, compare_versions

PAPER, PAPER_HEIGHT = 688, 1017  # pixels of A4 within margins of 14 mm
SCREENS = [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")]  # the widths of a desktop and a phone


@pytest.mark.parametrize(("width", "scheme"), SCREENS)
def test_page_fits_the_screen_and_requests_nothing(opened: Any, page_file: Path, width: int, scheme: str) -> None:
    page, log = opened(page_file, width, scheme)
    assert log.console == []
    assert [url for url in log.requests if not url.startswith("data:")] == [page_file.as_uri()]
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert _too_wide(page, "main", width, except_in=".scroll") == []


@pytest.mark.parametrize("width", [1280, 390])
def test_report_breaks_long_words(
    opened: Any, sample_version: Path, sample_prepared: PreparedData, tmp_path: Path, width: int
) -> None:
    folder = tmp_path / "models" / "fashion-mnist" / "versions" / "0001"
    shutil.copytree(sample_version, folder)
    fault = f"{'/a_folder_of_some_name' * 8}/model.weights.h5: expected sha256 {'0123456789abcdef' * 4}."
    manifest = json.loads((folder / "manifest.json").read_bytes())
    manifest["verdict"]["reason"] = f"Kept: version 1, the champion, cannot be measured. {fault}"
    manifest["data"]["test"]["warnings"] = [fault]
    verdict = json.loads((folder / "verdict.json").read_bytes())
    rule = {"rule": "the champion can be measured", "figure": fault, "bound": "loaded", "holds": False}
    verdict |= {"champion": 1, "champion_fault": fault, "rules": [*verdict["rules"], rule]}
    write_json(folder / "verdict.json", verdict)
    images = open_split(sample_prepared.record.path, "test").images
    write_report(folder, 1, manifest, images, FASHION_MNIST)
    page, _ = opened(folder / "report.html", width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert _too_wide(page, "body", width, except_in=".scroll") == []
    # Tables scroll and do not break words.
    heads = page.locator("#classes th[scope=row]").evaluate_all("all => all.map(e => e.getClientRects().length)")
    assert set(heads) == {1}


def test_comparison_breaks_long_words(opened: Any, tmp_path: Path) -> None:
    artifacts = tmp_path / ("a_folder_of_some_name" * 8)
    add_predicted(artifacts, [0, 1, 2], [0, 9, 2])
    add_predicted(artifacts, [0, 1, 2], [0, 1, 9])
    write_comparison(compare_versions(artifacts), tmp_path / "page.html")
    page, _ = opened(tmp_path / "page.html", 390)
    assert page.locator("[role=note]").inner_text().count("a_folder_of_some_name") >= 8
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert _too_wide(page, "body", 390, except_in=".scroll") == []


def _too_wide(page: Page, inside: str, width: int, except_in: str = "none") -> list[str]:
    """Return the elements beyond the right edge, except those in ``except_in``."""
    elements: list[str] = page.evaluate(
        """([inside, width, except_in]) => [...document.querySelectorAll(`${inside} *`)]
            .filter(e => !e.closest(except_in) && e.getBoundingClientRect().right > width + 1).map(e => e.outerHTML)""",
        [inside, width, except_in],
    )
    return elements


def test_every_image_loads_and_has_a_text(opened: Any, page_file: Path, run: Run) -> None:
    page, _ = opened(page_file)
    pictures = page.evaluate("[...document.images].map(i => [i.naturalWidth, i.naturalHeight, i.alt])")
    assert all(width > 0 and height > 0 and alt for width, height, alt in pictures)
    metrics = json.loads((Path(run.versions[1]["path"]) / "metrics.json").read_bytes())
    if page_file.name == "report.html":
        assert len([alt for width, _, alt in pictures if width == 28]) == 25 + 8 * 10
        assert page.locator("#learning svg polyline").count() == 4
        assert page.locator("#calibration rect.hit title").count() == len(metrics["calibration"])
    elif page_file.name == "index.html":
        assert pictures == []
        assert page.locator("#accuracy circle title").count() == 2
    else:
        assert pictures


def test_background_is_light_or_dark(opened: Any, page_file: Path) -> None:
    grounds = []
    for scheme in ("light", "dark"):
        page, _ = opened(page_file, 1280, scheme)
        grounds.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    light, dark = (sum(map(int, ground.removeprefix("rgb(").rstrip(")").split(","))) for ground in grounds)
    assert light > 600 > 150 > dark


@pytest.mark.parametrize(("width", "scheme"), SCREENS)
def test_axe_reports_no_violation(opened: Any, page_file: Path, width: int, scheme: str) -> None:
    page, _ = opened(page_file, width, scheme)
    violations = Axe().run(page).response["violations"]
    assert [(rule["id"], [node["target"] for node in rule["nodes"]][:3]) for rule in violations] == []


def test_keyboard_reaches_every_link_and_table(opened: Any, page_file: Path) -> None:
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
    page.keyboard.press("Tab")  # nothing else is focusable
    assert page.evaluate("document.activeElement.dataset.number ?? null") in (None, "0")


def test_keyboard_opens_the_calibration_table(opened: Any, run: Run) -> None:
    page, _ = opened(Path(run.versions[1]["path"]) / "report.html")
    page.locator("summary").focus()
    page.keyboard.press("Enter")
    assert page.locator("details table").is_visible()


def test_prints_completely(opened: Any, page_file: Path) -> None:
    page, _ = opened(page_file, PAPER, "dark")
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.locator("nav").is_hidden()
    assert _too_wide(page, "main", PAPER) == []  # paper does not scroll
    height = page.evaluate("document.documentElement.scrollHeight")
    sheets = len(re.findall(rb"/Type ?/Page\b", page.pdf(format="A4", prefer_css_page_size=True)))
    assert height / PAPER_HEIGHT <= sheets <= height / PAPER_HEIGHT * 1.6 + 1
    # The calibration table is printed unfolded. A hidden table has a height too, but its parent is then lower.
    assert page.locator("details").count() == (page_file.name == "report.html")
    for details in page.locator("details").all():
        table = details.locator("table").evaluate("e => e.offsetHeight")
        assert details.evaluate("e => e.offsetHeight") > table > 0


@pytest.mark.parametrize(
    ("link", "title"), [("report", "version 2: test"), ("compared with 1", "compared with version 1")]
)
def test_the_page_of_all_versions_links_to_the_other_pages(opened: Any, run: Run, link: str, title: str) -> None:
    page, _ = opened(run.pages["versions"])
    page.locator("#v2 a", has_text=link).click()
    assert title in page.title()


def test_links_open_the_other_files(opened: Any, run: Run) -> None:
    page, _ = opened(Path(run.versions[0]["path"]) / "report.html")
    page.locator("a", has_text="verdict.json").click()
    assert json.loads(page.locator("body").inner_text())["outcome"] == "promoted"
