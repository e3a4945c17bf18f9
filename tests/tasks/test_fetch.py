from pathlib import Path

import pytest

from schemas.contract import DIGITS, FASHION_MNIST, SPLITS
from schemas.errors import DataUnavailable
from tasks.data.published_data import find_data
from tasks.fetch import fetch
from tasks.runtime.events import Event, StageFinished, StageStarted, subscribe


def test_returns_the_csvs_and_emits_the_events_of_a_stage(tmp_path: Path) -> None:
    assert (fetch.name, fetch.retries) == ("fetch", 0)
    events: list[Event] = []
    with subscribe(events.append):
        fetched = fetch.fn(DIGITS.name, tmp_path)
        assert fetch.fn(DIGITS.name, tmp_path) == fetched == find_data(DIGITS, tmp_path)
    started, first, _, second = events
    assert started == StageStarted("fetch", None)
    for event, reused in ((first, False), (second, True)):
        assert isinstance(event, StageFinished)
        assert (event.stage, event.split, event.reused) == ("fetch", None, reused)
        assert event.facts == dict.fromkeys(SPLITS, "fetched")


def test_without_download_missing_data_fails(tmp_path: Path) -> None:
    with pytest.raises(DataUnavailable, match=r"contains no CSV of fashion-mnist.*and downloads none"):
        fetch.fn(FASHION_MNIST.name, tmp_path, download=False)
    assert not list(tmp_path.glob("*.csv"))
