"""When worker processes are prestarted. How they are started is tested in tests/processes/test_worker_process.py."""

import sys
from pathlib import Path

import pytest

from tasks.model import fit, inference, warm_up
from tasks.model.warm_up import EVALUATOR, TRAINER, blocked_imports, pipeline_session
from tasks.runtime.events import Event, StageFinished, StageStarted, TrainingProgress, emit
from tasks.runtime.locks import artifacts_lock


def finished(stage: str, *, reused: bool) -> StageFinished:
    return StageFinished(stage, "train", reused, 1.0, {})


def epochs(done: float) -> TrainingProgress:
    return TrainingProgress(done, 3, {})


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Modules whose worker was prestarted, in order."""
    modules: list[str] = []
    monkeypatch.setattr(warm_up, "prestart", modules.append)
    return modules


def test_the_workers_are_the_modules_of_their_stages() -> None:
    assert (fit.__name__, inference.__name__) == (TRAINER, EVALUATOR)


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        pytest.param([StageStarted("ingest", "train"), finished("ingest", reused=True)], [], id="reused data"),
        pytest.param([finished("prepare", reused=False)], [TRAINER], id="rebuilt data"),
        pytest.param([finished("train", reused=True), finished("evaluate", reused=False)], [], id="after training"),
        pytest.param([epochs(1), epochs(2), epochs(2.9)], [], id="before the last epoch"),
        pytest.param([epochs(3)], [EVALUATOR], id="last epoch"),
    ],
)
def test_events_prestart_workers(events: list[Event], expected: list[str], started: list[str], tmp_path: Path) -> None:
    with pipeline_session(tmp_path, prestart_trainer=True):
        for event in events:
            emit(event)
        assert started == expected
    emit(finished("ingest", reused=False))  # the session is over
    assert started == expected


def test_the_trainer_is_not_prestarted_for_a_gpu_worker(started: list[str], tmp_path: Path) -> None:
    with pipeline_session(tmp_path, prestart_trainer=False):
        emit(finished("ingest", reused=False))
    assert started == []


def test_a_failed_prestart_is_ignored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(module: str) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(warm_up, "prestart", fail)
    with pipeline_session(tmp_path, prestart_trainer=True):
        emit(finished("ingest", reused=False))


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
