"""The study of `fashion-ann tune`: what is tried, what is kept, and what a killed process leaves."""

import sys
from pathlib import Path

import pytest

from schemas.config import DEFAULT_SPACE, Range, TrainingConfig
from schemas.errors import ExtraNotInstalled, NoTrialCompleted, StoredArtifactError
from schemas.layout import STUDY_NAME
from schemas.references import PreparedData, StageRecord
from schemas.store import Epoch
from tasks.model.study import complete, open_search, prune, recipe_lines, require_optuna

SPACE = {"learning_rate": Range(low=1e-3, high=1e-2, log=True), "hidden_units": [128, [64, 32]]}


def prepared(digest: str = "d") -> PreparedData:
    record = StageRecord(stage="prepare", key="k", digest=digest, path=Path("p"), reused=False, seconds=0)
    rows = {"train_rows": 800, "validation_rows": 200, "test_rows": 0}
    return PreparedData(record=record, sha256=record.digest, dataset="digits", duplicates=None, **rows)


def epochs(*accuracies: float) -> list[Epoch]:
    rows = [{"loss": 1.0, "accuracy": 0.5, "val_loss": 1 - x, "val_accuracy": x, "seconds": 1.0} for x in accuracies]
    return [Epoch(**row) for row in rows]


def test_first_trial_is_the_base_recipe(tmp_path: Path) -> None:
    base = TrainingConfig(epochs=3)
    with open_search(tmp_path, prepared(), base, DEFAULT_SPACE, "cpu") as (search, _):
        assert search.ask()[1] == base
        assert search.ask()[1] != base


def test_trials_are_within_the_space(tmp_path: Path) -> None:
    base = TrainingConfig(epochs=3, hidden_units=5)  # not in the space, so no trial has it
    with open_search(tmp_path, prepared(), base, SPACE, "cpu") as (search, _):
        tried = [search.ask()[1] for _ in range(12)]
    assert all(1e-3 <= config.learning_rate <= 1e-2 and config.epochs == 3 for config in tried)
    assert {config.layer_units for config in tried} == {(128,), (64, 32)}


def test_range_of_whole_numbers_and_decay_by_optimizer(tmp_path: Path) -> None:
    space = {"hidden_units": Range(low=1, high=9), "optimizer": ["sgd", "adamw"]}
    with open_search(tmp_path, prepared(), TrainingConfig(), space, "cpu") as (search, _):
        tried = [search.ask()[1] for _ in range(12)]
    assert all(isinstance(config.hidden_units, int) and config.hidden_units < 10 for config in tried)
    assert {(config.optimizer, config.weight_decay) for config in tried} == {("sgd", 0.0), ("adamw", 0.15)}


def test_a_killed_trial_is_tried_again_first(tmp_path: Path) -> None:
    arguments = (tmp_path, prepared(), TrainingConfig(), SPACE, "cpu")
    with open_search(*arguments) as (search, _):
        trial, _ = search.ask()
        complete(search, trial, epochs(0.5))
        unfinished = search.ask()[1]
    with open_search(*arguments) as (search, _):
        assert [trial.number for trial in search.finished()] == [0]
        assert search.ask()[1] == unfinished
        # The sampler does not repeat itself after it was created again.
        assert search.ask()[1] not in (unfinished, TrainingConfig())


def test_best_trial_makes_the_recipe(tmp_path: Path) -> None:
    with open_search(tmp_path, prepared(), TrainingConfig(epochs=2), SPACE, "cpu") as (search, folder):
        for history in (epochs(0.7, 0.6), epochs(0.5, 0.8)):
            trial, config = search.ask()
            complete(search, trial, history)
        trial, _ = search.ask()
        trial.report(0.9, 1)
        prune(search, trial, "pruned")
        assert [(trial.number, trial.value) for trial in search.finished()] == [(1, 0.8), (0, 0.6), (2, 0.9)]
        assert search.recipe(search.best()) == config
        lines = list(recipe_lines(search, prepared()))
    assert "epochs = 2" in lines
    assert "Validation accuracy 0.8000 on 200 held-out" in lines[1]
    assert folder.parent == tmp_path


def test_early_stopping_counts_the_epoch_that_is_kept(tmp_path: Path) -> None:
    with open_search(tmp_path, prepared(), TrainingConfig(early_stopping=1), SPACE, "cpu") as (search, _):
        complete(search, search.ask()[0], epochs(0.7, 0.6))
        assert search.best().value == 0.7


def test_pruned_trials_alone_make_no_recipe(tmp_path: Path) -> None:
    with open_search(tmp_path, prepared(), TrainingConfig(), SPACE, "cpu") as (search, _):
        prune(search, search.ask()[0], "diverged")
        with pytest.raises(NoTrialCompleted, match="received 1 that ended early"):
            search.best()


@pytest.mark.parametrize(
    "other",
    [
        {"prepared": prepared("e")},
        {"base": TrainingConfig(epochs=3)},
        {"space": {"dropout": [0.1]}},
        {"device": "gpu"},
    ],
    ids=lambda other: next(iter(other)),
)
def test_other_inputs_are_another_study(tmp_path: Path, other: dict[str, object]) -> None:
    folders = set()
    for change in ({}, other):
        given = {"prepared": prepared(), "base": TrainingConfig(), "space": SPACE, "device": "cpu", **change}
        with open_search(tmp_path, **given) as (_, folder):
            folders.add(folder)
    assert len(folders) == 2


def test_damaged_study_is_reported(tmp_path: Path) -> None:
    arguments = (tmp_path / "a?b#c%20", prepared(), TrainingConfig(), SPACE, "cpu")
    with open_search(*arguments) as (_, folder):
        pass
    assert (folder / STUDY_NAME).stat().st_size > 0
    (folder / STUDY_NAME).write_bytes(b"damaged" * 1000)
    with (
        pytest.raises(StoredArtifactError, match=r"study\.db cannot be read .*Remove its folder"),
        open_search(*arguments),
    ):
        pass


def test_missing_optuna_is_reported_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ExtraNotInstalled, match=r"pip install --require-hashes -r .*/requirements/tune\.lock`"):
        require_optuna()
