import time
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from tasks.runtime import prefect_artifacts as publish
from tasks.runtime.prefect_artifacts import publish_markdown, publish_png, publish_progress, publish_table


def test_outside_a_run_nothing_is_published(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("an artifact was made outside a run")

    for kind in ("image", "markdown", "progress", "table"):
        monkeypatch.setattr(f"tasks.runtime.prefect_artifacts.create_{kind}_artifact", refuse)
    publish_table("key", [{"a": 1}], "")
    publish_markdown("key", "text", "")
    publish_png("key", tmp_path / "none.png", "")
    with publish_progress("key", "") as show:
        show(0.5)


class _Server:
    """Stands in for Prefect's: takes what is sent, and fails while it is ``away``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sent: list[float] = []
        self.away = False
        monkeypatch.setattr(publish, "_inside_a_run", lambda: True)
        monkeypatch.setattr(publish, "_SECONDS_BETWEEN_MOVES", 0.02)
        monkeypatch.setattr(publish, "create_progress_artifact", self._create)
        monkeypatch.setattr(publish, "update_progress_artifact", self._update)

    def _create(self, progress: float, **_: Any) -> UUID:
        self._take(progress)
        return uuid4()

    def _update(self, progress: float, **_: Any) -> None:
        self._take(progress)

    def _take(self, progress: float) -> None:
        assert RUN.get() == "of this run"  # Prefect looks for the run and its API there
        if self.away:
            raise ConnectionError("nobody there")
        self.sent.append(progress)

    def wait(self, count: int) -> None:
        deadline = time.monotonic() + 30
        while len(self.sent) < count:
            assert time.monotonic() < deadline
            time.sleep(0.005)


RUN: ContextVar[str] = ContextVar("run", default="of nobody")


@pytest.fixture
def prefect_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[_Server]:
    token = RUN.set("of this run")
    yield _Server(monkeypatch)
    RUN.reset(token)


def test_progress_is_sent_again_while_there_is_no_news_and_its_last_word_is_the_end(prefect_server: _Server) -> None:
    with publish_progress("key", "") as show:
        prefect_server.wait(4)  # before the first step, as while the network is compiled
        assert set(prefect_server.sent) == {0.0}
        show(0.25)
        already = len(prefect_server.sent)
        prefect_server.wait(already + 4)
        assert prefect_server.sent[-2:] == [25.0, 25.0]
        show(1)
    assert prefect_server.sent[-1] == 100.0
    ended = len(prefect_server.sent)
    time.sleep(0.1)
    assert len(prefect_server.sent) == ended


def test_a_server_that_is_away_ends_no_training_and_is_told_of_again_when_it_is_back(
    prefect_server: _Server, caplog: pytest.LogCaptureFixture
) -> None:
    prefect_server.away = True
    with publish_progress("key", "") as show:
        show(0.5)
        time.sleep(0.1)
        assert prefect_server.sent == []
        prefect_server.away = False
        prefect_server.wait(2)
        assert prefect_server.sent[0] == 50.0
    assert [record.message for record in caplog.records] == [
        "the progress bar in Prefect stays where it is: nobody there"
    ]


def test_the_time_between_two_moves_is_less_than_two_seconds() -> None:
    assert publish._SECONDS_BETWEEN_MOVES <= 1.5


def test_an_error_in_the_block_ends_the_sending_and_passes_through(prefect_server: _Server) -> None:
    with pytest.raises(ZeroDivisionError), publish_progress("key", ""):
        raise ZeroDivisionError
    ended = len(prefect_server.sent)
    time.sleep(0.1)
    assert len(prefect_server.sent) == ended
