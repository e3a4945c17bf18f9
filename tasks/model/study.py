"""Search settings of the training with Optuna. The study is stored after each step, so that a killed one continues."""

import json
import logging
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from schemas.config import Range, TrainingConfig, config_lines, install_command, is_whole
from schemas.contract import contract_of
from schemas.errors import ExtraNotInstalled, NoTrialCompleted, StoredArtifactError
from schemas.layout import STUDY_LOCK_NAME, STUDY_NAME
from schemas.references import PreparedData
from schemas.store import Epoch
from tasks.data.windows import effective_settings
from tasks.runtime.files import digest_of
from tasks.runtime.fingerprint import code_and_lock
from tasks.runtime.locks import lock
from tasks.runtime.stages import TRAIN

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.trial import FrozenTrial

logger = logging.getLogger(__name__)

# The first trials are never pruned, and no trial in its first epoch and this share of its epochs: figures vary there.
_TRIALS_WITHOUT_PRUNING = 5
_EPOCHS_WITHOUT_PRUNING = 0.1


def require_optuna() -> None:
    """Raise `ExtraNotInstalled` unless Optuna can be imported."""
    try:
        import optuna
    except ImportError as error:
        raise ExtraNotInstalled(
            f"Optuna cannot be imported ({error}), and the search for a recipe needs it. Install it with "
            f"`{install_command('tune')}`."
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)


@dataclass(frozen=True)
class Search:
    """A study, the recipe that it starts from, and the values that it searches. Use `open_search`."""

    study: "Study"
    base: TrainingConfig
    space: Mapping[str, Range | list[Any]]

    def ask(self) -> "tuple[Trial, TrainingConfig]":
        """Start a trial; return it with the recipe to try. Settings that are not searched are those of ``base``."""
        trial = self.study.ask()
        settings = {key: _suggest(trial, key, values) for key, values in self.space.items()}
        return trial, self._recipe(settings)

    def finished(self) -> "list[FrozenTrial]":
        """Return completed and pruned trials, the best first. Pruned ones are last."""
        from optuna.trial import TrialState

        trials = self.study.get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED))
        return sorted(trials, key=lambda trial: (trial.state, -(trial.value or 0), trial.number))

    def best(self) -> "FrozenTrial":
        """Return the completed trial with the highest validation accuracy. Raises `NoTrialCompleted`."""
        trials = self.finished()
        if not trials or trials[0].value is None or is_pruned(trials[0]):
            raise NoTrialCompleted(
                f"No trial completed: expected at least one, received {len(trials)} that ended early. Run the same "
                "command again with a longer --timeout or more --trials; unfinished trials continue."
            )
        return trials[0]

    def recipe(self, trial: "FrozenTrial") -> TrainingConfig:
        """Return the recipe of a finished trial."""
        return self._recipe({key: _value(self.space[key], value) for key, value in trial.params.items()})

    def _recipe(self, settings: Mapping[str, Any]) -> TrainingConfig:
        # Without defaults, because that of weight_decay depends on the optimizer.
        return TrainingConfig(**{**self.base.model_dump(exclude_unset=True), **settings})


@contextmanager
def open_search(
    folder: Path, prepared: PreparedData, base: TrainingConfig, space: Mapping[str, Range | list[Any]], device: str
) -> "Iterator[tuple[Search, Path]]":
    """Open the study of these inputs below ``folder``, or create it; yield it with its folder. Others wait meanwhile.

    Its first trial is ``base``, if ``space`` has its values. A trial that a killed process left unfinished is tried
    again first: its training continues from the checkpoint.

    Raises `StoredArtifactError` if the stored study is damaged.
    """
    import optuna
    from optuna.exceptions import StorageInternalError
    from optuna.trial import TrialState
    from sqlalchemy.exc import SQLAlchemyError
    from sqlalchemy.pool import NullPool

    values = {key: value.model_dump() if isinstance(value, Range) else value for key, value in space.items()}
    settings = effective_settings(base, prepared.train_rows, contract_of(prepared.dataset).pixels)
    inputs = {"prepared": prepared.sha256, "base": settings, "space": values, "device": device}
    key = digest_of({**inputs, **code_and_lock(*TRAIN.core)})
    own = folder / f"{prepared.dataset}-{key[:16]}"
    own.mkdir(parents=True, exist_ok=True)
    with lock(own / STUDY_LOCK_NAME, waiting=f"{own}: waiting for another search of the same recipe"):
        path = own / STUDY_NAME
        try:
            storage = optuna.storages.RDBStorage(
                # The path could have characters with a meaning in a URL.
                "sqlite://",
                engine_kwargs={"creator": lambda: sqlite3.connect(path, timeout=60), "poolclass": NullPool},
            )
            study = optuna.create_study(
                storage=storage, study_name=prepared.dataset, direction="maximize", load_if_exists=True
            )
            existing = study.get_trials(deepcopy=False)
            # Another seed for the rest of a study: with the same one it would repeat its first trials.
            study.sampler = optuna.samplers.TPESampler(seed=(base.seed + len(existing)) % 2**32)
            study.pruner = optuna.pruners.MedianPruner(
                n_startup_trials=_TRIALS_WITHOUT_PRUNING, n_warmup_steps=2 + int(base.epochs * _EPOCHS_WITHOUT_PRUNING)
            )
            if not existing and all(_contains(space[key], getattr(base, key)) for key in space):
                study.enqueue_trial({key: _parameter(space[key], getattr(base, key)) for key in space})
            for trial in existing:
                if trial.state == TrialState.RUNNING:
                    study.enqueue_trial(trial.params)
                    study.tell(trial.number, state=TrialState.FAIL)
        except (SQLAlchemyError, StorageInternalError) as error:
            raise StoredArtifactError(
                f"{path} cannot be read ({error.__cause__ or error!s:.200}). Expected a study of Optuna. Remove its "
                "folder to start again; trained models are reused."
            ) from error
        try:
            yield Search(study, base, space), own
        finally:
            storage.engine.dispose()


def complete(search: Search, trial: "Trial", history: list[Epoch]) -> None:
    """Store the result of a trial: the accuracy of the epoch whose weights the model has."""
    early = search.base.early_stopping is not None
    kept = min(history, key=lambda epoch: epoch.val_loss) if early else history[-1]
    trial.set_user_attr("val_loss", kept.val_loss)
    trial.set_user_attr("epochs", len(history))
    search.study.tell(trial, kept.val_accuracy)


def prune(search: Search, trial: "Trial", reason: str) -> None:
    """Store that a trial ended early because of its own figures."""
    from optuna.trial import TrialState

    trial.set_user_attr("reason", reason)
    search.study.tell(trial, state=TrialState.PRUNED)


def is_pruned(trial: "FrozenTrial") -> bool:
    from optuna.trial import TrialState

    return trial.state == TrialState.PRUNED


def recipe_lines(search: Search, prepared: PreparedData) -> Iterator[str]:
    """Yield the lines of the TOML file with the recipe of the best trial."""
    best = search.best()
    yield f"# Best of {len(search.finished())} trials of `fashion-ann tune` on {prepared.dataset}."
    yield f"# Validation accuracy {best.value:.4f} on {prepared.validation_rows} held-out train rows."
    yield from config_lines(search.recipe(best))


def _suggest(trial: "Trial", key: str, values: Range | list[Any]) -> Any:
    if isinstance(values, list):
        return _value(values, trial.suggest_categorical(key, [json.dumps(value) for value in values]))
    if is_whole(key):
        return trial.suggest_int(key, int(values.low), int(values.high), log=values.log)
    return trial.suggest_float(key, values.low, values.high, log=values.log)


def _value(values: Range | list[Any], parameter: Any) -> Any:
    """Return the setting for a parameter of Optuna, which stores values of a list as JSON: they may be lists."""
    return json.loads(parameter) if isinstance(values, list) else parameter


def _parameter(values: Range | list[Any], value: Any) -> Any:
    return json.dumps(value) if isinstance(values, list) else value


def _contains(values: Range | list[Any], value: Any) -> bool:
    if isinstance(values, list):
        return value in values
    return isinstance(value, int | float) and values.low <= value <= values.high
