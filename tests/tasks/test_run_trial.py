"""One trial: it reports epochs, and ends early when it is pruned, stopped, or diverges."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prefect import State

from schemas.config import Range, TrainingConfig
from schemas.errors import TrainingDiverged, TrainingStopped
from schemas.references import PreparedData, TrainedModel
from tasks.model.study import Search, complete, is_pruned, open_search
from tasks.run_trial import run_trial
from tasks.runtime.events import TrainingProgress, emit, subscribe
from tasks.train import train
from tests.tasks.model.test_study import epochs, prepared

Fit = Callable[[TrainingConfig], object]


@pytest.fixture
def search(tmp_path: Path) -> Iterator[Search]:
    """A study with five completed trials of 20 epochs, all of accuracy 0.9."""
    space = {"learning_rate": Range(low=1e-3, high=1e-2)}
    with open_search(tmp_path, prepared(), TrainingConfig(epochs=20), space, "cpu") as (search, _):
        for _ in range(5):
            trial, _ = search.ask()
            for epoch in range(1, 21):
                trial.report(0.9, epoch)
            complete(search, trial, epochs(0.9))
        yield search


def run(search: Search, fit: Fit, *, stopped: bool = False) -> str | None:
    """Run a trial, and return the name of its state."""
    trial, config = search.ask()
    stop = threading.Event()
    if stopped:
        stop.set()
    state = run_trial.fn(search, trial, config, fit, stop)
    return state.name if isinstance(state, State) else None


def fit_with(accuracy: float, seen: list[float]) -> Fit:
    """Return a training that reports this accuracy in each of 20 epochs, and what a stopped `train` returns."""

    def fit(config: TrainingConfig) -> object:
        try:
            for done in range(1, 21):
                emit(TrainingProgress(done - 0.5, 20, {"accuracy": 0.1}))
                emit(TrainingProgress(done, 20, {"val_accuracy": accuracy}))
                seen.append(done)
        except TrainingStopped:
            return None
        raise AssertionError("the training was expected to be stopped")

    return fit


def test_a_bad_trial_is_pruned_within_its_first_epochs(search: Search) -> None:
    seen: list[float] = []
    assert run(search, fit_with(0.1, seen)) == "Pruned"
    assert seen == [1, 2, 3]
    last = search.finished()[-1]
    assert is_pruned(last)
    assert last.user_attrs["reason"] == "pruned after epoch 4 of 20"


def test_a_stopped_trial_stays_unfinished(search: Search) -> None:
    seen: list[float] = []
    assert run(search, fit_with(0.95, seen), stopped=True) == "Stopped"
    assert (seen, len(search.finished())) == ([], 5)


def test_epochs_of_other_threads_do_not_count(search: Search) -> None:
    def fit(config: TrainingConfig) -> object:
        other = threading.Thread(target=lambda: [emit(TrainingProgress(n, 20, {"val_accuracy": 0.0})) for n in (9, 10)])
        other.start()
        other.join()
        raise TrainingDiverged("Training diverged in epoch 1.")

    assert run(search, fit) == "Pruned"
    last = search.finished()[-1]
    assert (last.intermediate_values, last.user_attrs["reason"]) == ({}, "Training diverged in epoch 1.")


def test_an_error_of_a_trial_is_raised(search: Search) -> None:
    def fit(config: TrainingConfig) -> object:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        run(search, fit)
    assert len(search.finished()) == 5


@pytest.mark.usefixtures("in_this_process")
def test_a_stopped_training_continues_from_its_checkpoint(
    search: Search, sample_prepared: PreparedData, small_config: TrainingConfig, tmp_path: Path
) -> None:
    done: list[float] = []

    def fit(config: TrainingConfig) -> object:
        return train.fn(sample_prepared, small_config, tmp_path)

    def stop_after_two(event: object) -> None:
        if isinstance(event, TrainingProgress) and "val_accuracy" in event.figures:
            done.append(event.done)
            if len(done) == 2:
                raise TrainingStopped("stopped")

    with subscribe(stop_after_two):
        assert run(search, fit) == "Stopped"
    assert not list((tmp_path / "trained").glob("[!.]*"))
    with subscribe(stop_after_two):
        assert run(search, fit) is None
    assert done == [1, 2, 3]
    assert isinstance(fit(small_config), TrainedModel)
    assert len(search.finished()) == 6
