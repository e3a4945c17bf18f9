import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from schemas.config import TrainingConfig
from schemas.contract import FASHION_MNIST, DatasetContract
from schemas.errors import TrainingDiverged
from schemas.references import PreparedData
from tasks.data.splits import open_split
from tasks.data.windows import epoch_order
from tasks.model.backend import set_up_backend
from tasks.model.checkpoint import EpochMetrics
from tasks.model.fit import batch_size_for, fit_network, learning_rate_schedule, main
from tasks.model.network import build_network, evaluate_rows
from tests.field_faults import field_fault

pytestmark = pytest.mark.usefixtures("backend")

Fitted = tuple[Any, list[EpochMetrics]]

# A learning rate that soon overshoots on 900 images.
STOPS_EARLY = TrainingConfig(
    epochs=60, batch_size=64, learning_rate=0.03, weight_decay=0, dropout=0.1, early_stopping=2, seed=7
)


@pytest.fixture(scope="module")
def fit(sample_prepared: PreparedData) -> Callable[..., Fitted]:
    def run(config: TrainingConfig, **options: Any) -> Fitted:
        set_up_backend(config.seed)
        splits = (open_split(sample_prepared.record.path, name) for name in ("train", "validation"))
        return fit_network(FASHION_MNIST, config, *splits, **options)

    return run


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the checkpoint after each epoch of `stopped_early`, as a killed run leaves it."""
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="module")
def stopped_early(fit: Callable[..., Fitted], checkpoints: Path) -> Fitted:
    checkpoint = checkpoints / "checkpoint.npz"
    return fit(
        STOPS_EARLY,
        checkpoint=checkpoint,
        on_epoch=lambda epoch, _: shutil.copy(checkpoint, checkpoints / f"{epoch}.npz"),
    )


def _weights(model: Any) -> list[bytes]:
    return [array.tobytes() for array in model.get_weights()]


class _Stopped(Exception):
    pass


def test_memorizes_32_images(sample_prepared: PreparedData) -> None:
    train = open_split(sample_prepared.record.path, "train")
    few = train.select(np.arange(0, 900, 28)[:32])
    repeated = few.select(np.tile(np.arange(32), 20))
    config = TrainingConfig(epochs=3, batch_size=16, learning_rate=5e-3, weight_decay=0, dropout=0)
    set_up_backend(config.seed)
    _, history = fit_network(FASHION_MNIST, config, repeated, few)
    assert history[-1]["val_accuracy"] == 1.0
    assert history[-1]["val_loss"] < 0.05


def test_seed_and_epoch_change_weights_and_order() -> None:
    weights, orders = [], []
    for seed in (7, 9):
        set_up_backend(seed)
        weights.append(_weights(build_network(FASHION_MNIST, TrainingConfig(dropout=0))))
        orders += [tuple(epoch_order(100, seed, epoch)[0]) for epoch in range(2)]
    assert weights[0] != weights[1]
    assert len(set(orders)) == 4
    assert {tuple(sorted(order)) for order in orders} == {tuple(range(100))}


def test_worker_uses_the_seed_and_device_of_its_job(
    sample_prepared: PreparedData, small_config: TrainingConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    received: list[tuple[int, str]] = []

    def record(seed: int, device: str) -> None:
        received.append((seed, device))
        raise _Stopped

    monkeypatch.setattr("tasks.model.fit.set_up_backend", record)
    paths = {"folder": tmp_path, "checkpoint": tmp_path / "checkpoint.npz", "prepared": sample_prepared.record.path}
    job = {"dataset": "fashion-mnist", "training": small_config.model_dump(), "windows": 1, "device": "cpu", **paths}
    with pytest.raises(_Stopped):
        main(job, lambda event: None)
    assert received == [(7, "cpu")]


def test_early_stopping_restores_the_best_epoch(stopped_early: Fitted, sample_prepared: PreparedData) -> None:
    model, history = stopped_early
    losses = [metrics["val_loss"] for metrics in history]
    assert len(history) < 60
    assert len(losses) - 1 - losses.index(min(losses)) == 2
    validation = open_split(sample_prepared.record.path, "validation")
    loss, _ = model.evaluate(validation.scaled(slice(None)), validation.labels, batch_size=1_000, verbose=0)
    assert loss == pytest.approx(min(losses), rel=1e-5)


def test_resumed_training_equals_an_uninterrupted_one(
    fit: Callable[..., Fitted],
    stopped_early: Fitted,
    checkpoints: Path,
    tmp_path: Path,
) -> None:
    uninterrupted, expected = stopped_early
    last = len(expected)
    epochs: list[int] = []
    # Killed one epoch before the last. That is the last one, because the best epoch is two before it.
    checkpoint = tmp_path / "checkpoint.npz"
    shutil.copy(checkpoints / f"{last - 1}.npz", checkpoint)
    resumed, history = fit(STOPS_EARLY, checkpoint=checkpoint, on_epoch=lambda epoch, _: epochs.append(epoch))
    assert epochs == [last]
    assert _weights(resumed) == _weights(uninterrupted)
    assert [{**metrics, "seconds": 0} for metrics in history] == [{**metrics, "seconds": 0} for metrics in expected]
    # Killed after the last epoch and before the output was written: no epoch is left.
    finished, same_history = fit(STOPS_EARLY, checkpoint=checkpoint)
    assert same_history == history
    assert _weights(finished) == _weights(uninterrupted)


def test_a_larger_recipe_resumes_to_the_same_weights(fit: Callable[..., Fitted], tmp_path: Path) -> None:
    config = TrainingConfig(epochs=2, hidden_units=[1_024, 512], optimizer="sgd", label_smoothing=0.1, seed=7)
    checkpoint = tmp_path / "checkpoint.npz"

    def stop(epoch: int, metrics: EpochMetrics) -> None:
        raise _Stopped

    with pytest.raises(_Stopped):
        fit(config, checkpoint=checkpoint, on_epoch=stop)
    epochs: list[int] = []
    resumed, _ = fit(config, checkpoint=checkpoint, on_epoch=lambda epoch, _: epochs.append(epoch))
    assert epochs == [2]
    assert _weights(resumed) == _weights(fit(config)[0])


def test_windows_resume_to_the_same_weights(fit: Callable[..., Fitted], tmp_path: Path) -> None:
    config = TrainingConfig(epochs=3, batch_size=64, seed=7)
    copy = tmp_path / "after-2.npz"

    def keep(epoch: int, _: EpochMetrics) -> None:
        if epoch == 2:
            shutil.copyfile(tmp_path / "checkpoint.npz", copy)

    shares: list[float] = []
    windows = {"windows": 3, "on_steps": lambda done, _: shares.append(done)}
    uninterrupted, history = fit(config, checkpoint=tmp_path / "checkpoint.npz", on_epoch=keep, **windows)
    assert shares == sorted(shares)
    assert (len(shares), shares[-1]) == (3 * 3 * 2, 3)  # two batch sizes per window
    resumed, _ = fit(config, checkpoint=copy, windows=3)
    assert _weights(resumed) == _weights(uninterrupted)
    whole, whole_history = fit(config)
    assert _weights(whole) != _weights(uninterrupted)
    assert history[-1]["loss"] == pytest.approx(whole_history[-1]["loss"], rel=0.05)


@pytest.mark.parametrize("epochs_done", [0, 1])
@field_fault(
    "stray files and bad values",
    "The loss becomes NaN or infinite in an epoch",
    "Training ends in that epoch with 'diverged in epoch N', no checkpoint of it remains, and another rate trains",
)
def test_a_diverging_training_ends_without_a_checkpoint(
    epochs_done: int, fit: Callable[..., Fitted], stopped_early: Fitted, checkpoints: Path, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "checkpoint.npz"
    if epochs_done:
        shutil.copy(checkpoints / f"{epochs_done}.npz", checkpoint)
    reported: list[int] = []
    with pytest.raises(TrainingDiverged, match=rf"diverged in epoch {epochs_done + 1}: .*nan.* learning rate below"):
        fit(
            STOPS_EARLY.model_copy(update={"learning_rate": 1e38}),
            checkpoint=checkpoint,
            on_epoch=lambda epoch, _: reported.append(epoch),
        )
    assert reported == list(tmp_path.iterdir()) == []
    fit(STOPS_EARLY.model_copy(update={"epochs": 1}), checkpoint=checkpoint)
    assert checkpoint.exists()


@pytest.mark.parametrize(
    ("name", "optimizer_class"), [("adamw", "AdamW"), ("adam", "Adam"), ("sgd", "SGD"), ("rmsprop", "RMSprop")]
)
def test_network_and_optimizer_follow_the_config(
    name: str,
    optimizer_class: str,
    fit: Callable[..., Fitted],
    small_config: TrainingConfig,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import keras

    config = small_config.model_copy(update={"optimizer": name, "weight_decay": 0.25, "dropout": 0.3})
    built: list[TrainingConfig] = []

    def build(contract: DatasetContract, config: TrainingConfig) -> Any:
        built.append(config)
        return build_network(contract, config)

    def optimizer(schedule: Any, weight_decay: float, **settings: float) -> None:
        assert settings == ({"beta_2": 0.95} if name == "adamw" else {})
        assert schedule.get_config() == learning_rate_schedule(config, steps=25).get_config()  # 900 rows, 36 per step
        assert weight_decay == 0.25
        raise _Stopped

    monkeypatch.setattr("tasks.model.fit.build_network", build)
    monkeypatch.setattr(keras.optimizers, optimizer_class, optimizer)
    with pytest.raises(_Stopped):
        fit(config)
    assert built == [config]


def test_validation_metrics_equal_those_of_keras(stopped_early: Fitted, sample_prepared: PreparedData) -> None:
    network, _ = stopped_early
    validation = open_split(sample_prepared.record.path, "validation")
    split = validation.select(np.arange(1_040) % 100)  # a block of 1,000 and one of 40
    expected = network.evaluate(split.scaled(slice(None)), split.labels, verbose=0, return_dict=True)
    assert evaluate_rows(network, split) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("epochs", "rates"),
    [
        pytest.param(5, {0: 0.001, 10: 0.01, 30: 0.005, 50: 0.0}, id="warm-up, then decay to zero"),
        pytest.param(1, {0: 0.01, 5: 0.005, 10: 0.0}, id="one epoch starts at the peak"),
    ],
)
def test_learning_rate_schedule(epochs: int, rates: dict[int, float]) -> None:
    schedule = learning_rate_schedule(TrainingConfig(epochs=epochs, learning_rate=0.01), steps=10)
    assert {step: float(schedule(step)) for step in rates} == pytest.approx(rates, abs=1e-6)


@pytest.mark.parametrize(
    ("rows", "batch_size", "expected"),
    [
        pytest.param(55_000, 256, 256, id="many rows: as configured"),
        pytest.param(6_400, 256, 256, id="exactly 25 steps"),
        pytest.param(6_399, 256, 255, id="one row less"),
        pytest.param(800, 256, 32, id="few rows: 25 steps"),
        pytest.param(100, 256, 16, id="at least 16 images"),
        pytest.param(100, 8, 8, id="never more than configured"),
    ],
)
def test_small_splits_get_smaller_batches(rows: int, batch_size: int, expected: int) -> None:
    assert batch_size_for(rows, TrainingConfig(batch_size=batch_size)) == expected
