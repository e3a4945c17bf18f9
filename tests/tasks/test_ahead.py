"""When the processes of stages to come are begun; how a process is begun is test_own_process's."""

import pytest

from tasks import ahead
from tasks.progress import Begun, Ended, Trained, tell


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Modules whose process was begun, in order."""
    modules: list[str] = []
    monkeypatch.setattr(ahead, "begin", modules.append)
    return modules


def ended(stage: str, *, reused: bool) -> Ended:
    return Ended(stage, "train", reused, 1.0, {})


def test_training_is_begun_with_the_first_stage_that_makes_something_anew_and_not_before(begun: list[str]) -> None:
    with ahead.begun_ahead(train_here=True):
        for event in (Begun("ingest", "train"), ended("ingest", reused=True), ended("validate", reused=True)):
            tell(event)
        assert begun == []
        for stage in ("prepare", "train", "evaluate"):
            tell(ended(stage, reused=False))
        assert begun == ["tasks.fit"]
    tell(ended("ingest", reused=False))
    assert begun == ["tasks.fit"]


def test_after_training_nothing_that_trains_is_begun(begun: list[str]) -> None:
    with ahead.begun_ahead(train_here=True):
        tell(ended("train", reused=True))
        tell(ended("evaluate", reused=False))
    assert begun == []


def test_a_machine_that_can_begin_no_process_goes_on_without(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(module: str) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(ahead, "begin", full)
    with ahead.begun_ahead(train_here=True):
        tell(ended("ingest", reused=False))


def test_what_trains_elsewhere_is_not_begun_here(begun: list[str]) -> None:
    with ahead.begun_ahead(train_here=False):
        tell(ended("ingest", reused=False))
    assert begun == []


def test_judging_is_begun_once_and_with_the_last_epoch(begun: list[str]) -> None:
    with ahead.begun_ahead(train_here=True):
        for done in (1, 2, 2.9):
            tell(Trained(done, 3, {}))
        assert begun == []
        for _ in range(2):
            tell(Trained(3, 3, {}))
        assert begun == ["tasks.judge"]
