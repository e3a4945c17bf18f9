"""Fit the network with the training recipe, in Keras. The same seed gives the same weights, also after a kill."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from schemas.config import TrainingConfig
from schemas.contract import DatasetContract, contract_of
from schemas.errors import TrainingDiverged
from schemas.layout import HISTORY_NAME, TOPOLOGY_NAME, WEIGHTS_NAME
from tasks.data.splits import PreparedSplit, open_split
from tasks.data.windows import epoch_order
from tasks.model.backend import distribution_scope, set_up_backend
from tasks.model.checkpoint import EpochMetrics, TrainingState
from tasks.model.epoch import OnSteps, epoch_runner, steps_per_epoch
from tasks.model.inference import write_golden
from tasks.model.network import build_network, evaluate_rows, topology_bytes
from tasks.runtime.files import write_json
from tasks.runtime.worker_process import Emit

logger = logging.getLogger(__name__)

# The classes in keras.optimizers.
_OPTIMIZERS = {"adamw": "AdamW", "adam": "Adam", "sgd": "SGD", "rmsprop": "RMSprop"}
# AdamW's running mean of squared gradients covers 20 steps, not 1,000: see docs/recipe.md.
_OPTIMIZER_SETTINGS: dict[str, dict[str, float]] = {"adamw": {"beta_2": 0.95}}


def main(job: dict[str, Any], emit: Emit) -> dict[str, Any]:
    """Fit to the splits in ``job["prepared"]`` and write the model to ``job["folder"]``.

    Emits the device first, then the metrics of each epoch and, twice per second, those of the current epoch so far.
    """
    contract, config = contract_of(job["dataset"]), TrainingConfig(**job["training"])
    folder, prepared = Path(job["folder"]), Path(job["prepared"])
    device = set_up_backend(config.seed, job["device"]).model_dump()
    emit({"device": device})
    train, validation = (open_split(prepared, split) for split in ("train", "validation"))
    rows = len(train.labels)
    if (used := batch_size_for(rows, config)) < config.batch_size:
        logger.warning("batch_size %d leaves too few steps for %d images; using %d", config.batch_size, rows, used)
    last_report = 0.0

    def on_steps(done: float, metrics: Mapping[str, float]) -> None:
        nonlocal last_report
        if time.monotonic() - last_report > 0.5:
            last_report = time.monotonic()
            emit({"done": done, "metrics": {name: float(value) for name, value in metrics.items()}})

    model, history = fit_network(
        contract,
        config,
        train,
        validation,
        checkpoint=Path(job["checkpoint"]),
        on_epoch=lambda epoch, metrics: emit({"done": epoch, "metrics": metrics}),
        on_steps=on_steps,
        windows=job["windows"],
    )
    save_model(model, contract, config, folder)
    write_golden(model, validation, folder)
    write_json(folder / HISTORY_NAME, history)
    seconds = round(sum(metrics["seconds"] for metrics in history), 3)
    return {"epochs_run": len(history), "seconds": seconds, "device": device}


def fit_network(
    contract: DatasetContract,
    config: TrainingConfig,
    train: PreparedSplit,
    validation: PreparedSplit,
    *,
    checkpoint: Path | None = None,
    on_epoch: Callable[[int, EpochMetrics], None] = lambda epoch, metrics: None,
    on_steps: OnSteps = lambda done, metrics: None,
    devices: Sequence[str] = (),
    windows: int = 1,
) -> tuple[Any, list[EpochMetrics]]:
    """Train a new network; return the `keras.Model`, compiled for evaluation, and the metrics of each epoch.

    Call `tasks.model.backend.set_up_backend` for the seed first. Raises `TrainingDiverged` after an epoch whose loss is
    not finite; no checkpoint remains.

    checkpoint: file for the state after each epoch: weights, optimizer, generator of dropout. If it exists, training
        resumes from it and gives the same result as an uninterrupted one.
    on_epoch: called after each epoch with its number and metrics.
    on_steps: called within an epoch with the epochs done, a fraction, and with loss and accuracy so far.
    devices: used instead of all GPUs, see `tasks.model.backend.distribution_scope`. The returned model is on one.
    windows: parts of an epoch that are shuffled and read one after the other, see `tasks.data.windows`.

    AdamW: Loshchilov and Hutter, "Decoupled Weight Decay Regularization", ICLR 2019. Warm-up and cosine: Loshchilov
    and Hutter, "SGDR", ICLR 2017; Goyal et al., "Accurate, Large Minibatch SGD", 2017.
    """
    import keras

    rows = len(train.labels)
    batch_size = batch_size_for(rows, config)
    with distribution_scope(devices) as device_count:
        network = build_network(contract, config)
        schedule = learning_rate_schedule(config, steps_per_epoch(rows, batch_size, windows))
        optimizer = getattr(keras.optimizers, _OPTIMIZERS[config.optimizer])(
            schedule, weight_decay=config.weight_decay, **_OPTIMIZER_SETTINGS.get(config.optimizer, {})
        )
        run_epoch = epoch_runner(network, optimizer, train, batch_size, device_count, config.label_smoothing, windows)
    # Evaluate on a single-device copy: a distributed model returns each prediction once per device.
    evaluation_copy = build_network(contract, config)
    evaluation_copy.compile(
        loss="sparse_categorical_crossentropy", metrics=[keras.metrics.SparseCategoricalAccuracy("accuracy")]
    )
    state = TrainingState(network.variables, optimizer.variables, checkpoint)
    state.restore()
    while len(state.history) < config.epochs and not state.should_stop(config.early_stopping):
        started, epoch = time.perf_counter(), len(state.history)
        order = epoch_order(rows, config.seed, epoch, windows)
        metrics = run_epoch(order, lambda done, seen: on_steps(len(state.history) + done, seen))
        evaluation_copy.set_weights(network.get_weights())
        metrics |= {f"val_{name}": float(value) for name, value in evaluate_rows(evaluation_copy, validation).items()}
        metrics["seconds"] = time.perf_counter() - started
        if not np.isfinite([metrics["loss"], metrics["val_loss"]]).all():
            state.discard()  # the same seed would diverge again
            raise TrainingDiverged(
                f"Training diverged in epoch {epoch + 1}: finite losses were expected, received loss "
                f"{metrics['loss']} and val_loss {metrics['val_loss']}. Nothing was stored. Train with a learning "
                f"rate below {config.learning_rate:g}, or with other data."
            )
        state.save_epoch(metrics)
        on_epoch(epoch + 1, metrics)
    if config.early_stopping is not None:
        state.restore_best()
    evaluation_copy.set_weights(network.get_weights())
    return evaluation_copy, state.history


def batch_size_for(rows: int, config: TrainingConfig) -> int:
    """Return the configured batch size, reduced for few ``rows`` to 25 steps per epoch, but not below 16 images."""
    return min(config.batch_size, max(16, rows // 25))


def learning_rate_schedule(config: TrainingConfig, steps: int) -> Any:
    """Return the `keras` schedule: linear warm-up in the first epoch of ``steps`` steps, then cosine decay to 0.

    A training of one epoch has no warm-up.
    """
    import keras

    warm_up = steps if config.epochs > 1 else 0
    return keras.optimizers.schedules.CosineDecay(
        # The warm-up starts at a tenth of the peak, which is warmup_target.
        initial_learning_rate=config.learning_rate * (0.1 if warm_up else 1),
        decay_steps=steps * config.epochs - warm_up,
        warmup_target=config.learning_rate if warm_up else None,
        warmup_steps=warm_up,
    )


def save_model(model: Any, contract: DatasetContract, config: TrainingConfig, folder: Path) -> None:
    """Write topology and weights of an uncompiled copy of ``model``: compiling changes both files."""
    uncompiled = build_network(contract, config)
    uncompiled.set_weights(model.get_weights())
    (folder / TOPOLOGY_NAME).write_bytes(topology_bytes(uncompiled))
    uncompiled.save_weights(folder / WEIGHTS_NAME)
