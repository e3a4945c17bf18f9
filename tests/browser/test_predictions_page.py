"""Open predictions.html in a browser, from disk."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe

from schemas.contract import FASHION_MNIST
from tasks.registry.watched_predictions import watched_days
from tasks.reports.predictions_page import write_predictions_page
from tests.watched import Simulation

SCREENS = [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")]  # the widths of a desktop and a phone
START = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def predictions_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty quiet days, an inverted one, and a shadow."""
    simulation = Simulation(tmp_path_factory.mktemp("watched"))
    for number in range(20):
        simulation.predict(START + timedelta(days=number))
    last = START + timedelta(days=20)
    simulation.predict(last, change=lambda images: 255 - images)
    simulation.predict(last, version=simulation.add_version(), shadow_of=1)
    days = watched_days(simulation.artifacts, simulation.store, FASHION_MNIST, last, 90)
    return write_predictions_page(simulation.artifacts, FASHION_MNIST, days, last)


@pytest.mark.parametrize(("width", "scheme"), SCREENS)
def test_page_of_predictions_is_accessible_and_offline(
    opened: Any, predictions_page: Path, width: int, scheme: str
) -> None:
    page, log = opened(predictions_page, width, scheme)
    assert log.console == []
    assert log.requests == [predictions_page.as_uri()]
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("#alarms li").count() == 1
    assert page.locator("#drift circle").count() == 21
    assert page.locator("#drift circle.beyond").count() == 1
    assert page.locator("#shadows tbody tr").count() == 1
    violations = Axe().run(page).response["violations"]
    assert [(rule["id"], [node["target"] for node in rule["nodes"]][:3]) for rule in violations] == []
