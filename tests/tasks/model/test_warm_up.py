"""When the processes of stages to come are begun; how a process is begun is test_own_process's."""

import pytest

from tasks.model import warm_up as ahead
from tasks.runtime.events import StageFinished, StageStarted, TrainingProgress, emit


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Modules whose process was begun, in order."""
    modules: list[str] = []
    monkeypatch.setattr(ahead, "prestart", modules.append)
    return modules


def ended(stage: str, *, reused: bool) -> StageFinished:
    return StageFinished(stage, "train", reused, 1.0, {})


def test_training_is_begun_with_the_first_stage_that_makes_something_anew_and_not_before(begun: list[str]) -> None:
    with ahead.prestart_workers(train_here=True):
        for event in (StageStarted("ingest", "train"), ended("ingest", reused=True), ended("validate", reused=True)):
            emit(event)
        assert begun == []
        for stage in ("prepare", "train", "evaluate"):
            emit(ended(stage, reused=False))
        assert begun == ["tasks.model.fit"]
    emit(ended("ingest", reused=False))
    assert begun == ["tasks.model.fit"]


def test_after_training_nothing_that_trains_is_begun(begun: list[str]) -> None:
    with ahead.prestart_workers(train_here=True):
        emit(ended("train", reused=True))
        emit(ended("evaluate", reused=False))
    assert begun == []


def test_a_machine_that_can_begin_no_process_goes_on_without(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(module: str) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(ahead, "prestart", full)
    with ahead.prestart_workers(train_here=True):
        emit(ended("ingest", reused=False))


def test_what_trains_elsewhere_is_not_begun_here(begun: list[str]) -> None:
    with ahead.prestart_workers(train_here=False):
        emit(ended("ingest", reused=False))
    assert begun == []


def test_judging_is_begun_once_and_with_the_last_epoch(begun: list[str]) -> None:
    with ahead.prestart_workers(train_here=True):
        for done in (1, 2, 2.9):
            emit(TrainingProgress(done, 3, {}))
        assert begun == []
        for _ in range(2):
            emit(TrainingProgress(3, 3, {}))
        assert begun == ["tasks.model.inference"]
