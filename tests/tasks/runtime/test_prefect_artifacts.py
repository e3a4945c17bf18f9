import time
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any
from uuid import UUID, uuid4

import pytest
from prefect.context import FlowRunContext

from tasks.runtime import prefect_artifacts
from tasks.runtime.prefect_artifacts import plain_cell, publish_markdown, publish_progress, publish_svg, publish_table


def test_publishes_nothing_outside_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise AssertionError("an artifact was published outside a run")

    for kind in ("image", "markdown", "progress", "table"):
        monkeypatch.setattr(prefect_artifacts, f"create_{kind}_artifact", fail)
    publish_table("key", [{"a": 1}], "")
    publish_markdown("key", "text", "")
    publish_svg("key", "<svg/>", "")
    with publish_progress("key", "") as show:
        show(0.5)


@pytest.mark.parametrize(
    ("cell", "shown"),
    [
        (">= 0.1", "\\>= 0.1"),
        ("# heading", "\\# heading"),
        ("- item", "\\- item"),
        ("12. item", "12\\. item"),
        ("_a_ *b* `c` <d> [e](f)", "\\_a\\_ \\*b\\* \\`c\\` \\<d\\> \\[e\\](f)"),
        ("a\\b", "a\\\\b"),
        ("expect_column_to_exist 0.5 at 2.5", "expect_column_to_exist 0.5 at 2.5"),
        (0.5, 0.5),
        (None, None),
    ],
)
def test_a_cell_contains_no_markdown(cell: object, shown: object) -> None:
    assert plain_cell(cell) == shown


class _Server:
    """Record the progress that is sent to Prefect, and fail while ``available`` is False."""

    def __init__(self) -> None:
        self.sent: list[float] = []
        self.available = True

    def create(self, progress: float, **_: Any) -> UUID:
        self.update(progress)
        return uuid4()

    def update(self, progress: float, **_: Any) -> None:
        assert RUN.get() == "this run"  # Prefect finds the run and its API in context variables
        if not self.available:
            raise ConnectionError("no server")
        self.sent.append(progress)

    def wait(self, count: int) -> None:
        deadline = time.monotonic() + 30
        while len(self.sent) < count:
            assert time.monotonic() < deadline
            time.sleep(0.005)


RUN: ContextVar[str] = ContextVar("run", default="no run")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[_Server]:
    server = _Server()
    monkeypatch.setattr(FlowRunContext, "get", lambda: "a run")
    monkeypatch.setattr(prefect_artifacts, "UPDATE_SECONDS", 0.02)
    monkeypatch.setattr(prefect_artifacts, "create_progress_artifact", server.create)
    monkeypatch.setattr(prefect_artifacts, "update_progress_artifact", server.update)
    token = RUN.set("this run")
    yield server
    RUN.reset(token)


def test_sends_unchanged_progress_and_the_final_share(server: _Server) -> None:
    with publish_progress("key", "") as show:
        server.wait(4)  # before the first step, as while the network is compiled
        assert set(server.sent) == {0.0}
        show(0.25)
        server.wait(len(server.sent) + 4)
        assert server.sent[-2:] == [25.0, 25.0]
        show(1)
    assert server.sent[-1] == 100.0
    count = len(server.sent)
    time.sleep(0.1)
    assert len(server.sent) == count


def test_continues_without_a_server_and_warns_once(server: _Server, caplog: pytest.LogCaptureFixture) -> None:
    server.available = False
    with publish_progress("key", "") as show:
        show(0.5)
        time.sleep(0.1)
        assert server.sent == []
        server.available = True
        server.wait(2)
        assert server.sent[0] == 50.0
    assert [record.message for record in caplog.records] == ["the progress bar in Prefect is not updated: no server"]


def test_updates_are_less_than_two_seconds_apart() -> None:
    assert prefect_artifacts.UPDATE_SECONDS <= 1.5


def test_an_error_in_the_block_stops_the_updates(server: _Server) -> None:
    with pytest.raises(ZeroDivisionError), publish_progress("key", ""):
        raise ZeroDivisionError
    count = len(server.sent)
    time.sleep(0.1)
    assert len(server.sent) == count
