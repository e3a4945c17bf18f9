"""Run one trial of a study: train, report each epoch, and end early if it is pruned."""

import logging
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from prefect import State, task
from prefect.cache_policies import NO_CACHE
from prefect.states import Completed

from schemas.config import TrainingConfig
from schemas.errors import TrainingDiverged, TrainingStopped
from schemas.layout import HISTORY_NAME
from schemas.references import TrainedModel
from schemas.store import EPOCHS
from tasks.model.study import Search, complete, prune
from tasks.runtime.events import Event, TrainingProgress, subscribe
from tasks.runtime.stored_file import read_json

if TYPE_CHECKING:
    from optuna import Trial

logger = logging.getLogger(__name__)


@task(name="trial", task_run_name="trial {trial.number}", cache_policy=NO_CACHE)
def run_trial(
    search: Search,
    trial: "Trial",
    config: TrainingConfig,
    fit: Callable[[TrainingConfig], object],
    stop: threading.Event,
) -> State[Any] | None:
    """Train with ``config`` and store the result of ``trial``.

    fit: trains in this thread, or returns a model that was trained before.
    stop: once it is set, the trial ends within an epoch. Its training continues when the study is opened again.
    """
    thread, reason = threading.get_ident(), ""

    def on_event(event: Event) -> None:
        nonlocal reason
        if not isinstance(event, TrainingProgress) or threading.get_ident() != thread:
            return  # of a trial in another thread
        if "val_accuracy" in event.figures:
            trial.report(event.figures["val_accuracy"], int(event.done))
            if trial.should_prune():
                reason = f"pruned after epoch {int(event.done)} of {config.epochs}"
        if reason or stop.is_set():
            raise TrainingStopped(f"Trial {trial.number}: {reason or 'stopped'}.")

    try:
        with subscribe(on_event):
            trained = fit(config)
    except TrainingDiverged as error:
        reason = str(error)
    if reason:
        prune(search, trial, reason)
        logger.info("trial %d: %s", trial.number, reason)
        return Completed(name="Pruned", message=reason)
    if not isinstance(trained, TrainedModel):  # the state of a training that was stopped
        return Completed(name="Stopped", message="The training continues when the study is opened again.")
    history = EPOCHS.validate_python(read_json(trained.record.path / HISTORY_NAME))
    complete(search, trial, history)
    best = search.best()
    message = "trial %d: val_accuracy %.4f after %d epochs; best so far %.4f of trial %d"
    logger.info(message, trial.number, history[-1].val_accuracy, len(history), best.value, best.number)
    return None
