"""When worker processes are prestarted. How they are started is tested in tests/processes/test_worker_process.py."""

import sys
from pathlib import Path
from queue import Queue

import pytest

from tasks.model import warm_up, worker
from tasks.model.warm_up import WORKER, pipeline_session
from tasks.runtime.blocked_imports import blocked_imports
from tasks.runtime.events import Event, StageFinished, StageMissed, StageStarted, TrainingProgress, emit
from tasks.runtime.locks import artifacts_lock


def finished(stage: str, *, reused: bool) -> StageFinished:
    return StageFinished(stage, "train", reused, 1.0, {})


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Modules whose worker was prestarted, in order."""
    modules: list[str] = []
    monkeypatch.setattr(warm_up, "prestart", modules.append)
    return modules


def test_the_worker_has_the_name_of_its_module() -> None:
    assert worker.__name__ == WORKER


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        pytest.param([StageStarted("ingest", "train"), finished("ingest", reused=True)], [], id="reused data"),
        pytest.param([StageMissed("prepare", None)], [WORKER], id="data to rebuild"),
        pytest.param([finished("train", reused=True), StageMissed("evaluate", None)], [], id="after training"),
    ],
)
def test_events_prestart_workers(events: list[Event], expected: list[str], started: list[str], tmp_path: Path) -> None:
    with pipeline_session(tmp_path, prestart_trainer=True):
        for event in events:
            emit(event)
        assert started == expected
    emit(StageMissed("ingest", "train"))  # the session is over
    assert started == expected


def test_the_trainer_is_not_prestarted_for_a_gpu_worker(started: list[str], tmp_path: Path) -> None:
    with pipeline_session(tmp_path, prestart_trainer=False):
        emit(StageMissed("ingest", "train"))
    assert started == []


def test_a_failed_prestart_is_ignored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(module: str) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(warm_up, "prestart", fail)
    with pipeline_session(tmp_path, prestart_trainer=True):
        emit(StageMissed("ingest", "train"))


def test_work_for_later_stages_is_done_once_while_training(tmp_path: Path) -> None:
    called: Queue[str] = Queue()
    with pipeline_session(tmp_path, prestart_trainer=True, while_training=(lambda: called.put("here"),)):
        emit(finished("prepare", reused=True))
        assert called.empty()
        for done in (0.5, 1):
            emit(TrainingProgress(done, 3, {}))
        assert called.get(timeout=60) == "here"
    assert called.empty()


def test_garbage_collection_waits_for_the_session(tmp_path: Path) -> None:
    with pipeline_session(tmp_path, prestart_trainer=True), artifacts_lock(tmp_path, exclusive=True) as held:
        assert not held
    with artifacts_lock(tmp_path, exclusive=True) as held:
        assert held


def test_blocked_imports_spare_loaded_modules() -> None:
    sys.modules.pop("this", None)
    with blocked_imports("json", "this"):
        import json  # noqa: F401

        with pytest.raises(ImportError):
            import this  # noqa: F401
    assert "this" not in sys.modules
