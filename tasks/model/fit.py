"""Fit the network with the training recipe, in plain Keras. The same seed gives the same weights, also after a kill.

Run as ``python -m tasks.model.fit`` this module is the worker process of `tasks.train`.
"""

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from schemas.config import TrainingConfig
from schemas.contract import DatasetContract, contract_of
from schemas.errors import TrainingDiverged
from schemas.layout import HISTORY_NAME, TOPOLOGY_NAME, WEIGHTS_NAME, images_name, labels_name
from tasks.model.backend import distribution_scope, import_backend, input_pipeline, set_up_backend
from tasks.model.checkpoint import EpochMetrics, TrainingState
from tasks.model.inference import write_golden
from tasks.model.network import build_network, evaluate_rows, topology_bytes
from tasks.model.warm_up import release_pages
from tasks.runtime.files import write_json
from tasks.runtime.worker_process import Emit, serve_job

# Not __name__, which is "__main__" under ``python -m``: only loggers below "tasks" are forwarded.
logger = logging.getLogger("tasks.model.fit")

# Images float32 (N, pixels), pixels scaled to [0, 1], and labels int32 (N,).
Split = tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]]

# Images converted at once: the float32 intermediates take four times the memory of the result.
_CONVERTED_IMAGES = 512


def main(job: dict[str, Any], emit: Emit) -> dict[str, Any]:
    """Fit to the splits in ``job["prepared"]`` and write the model to ``job["folder"]``.

    Emits the device first, then the metrics of each epoch and, twice per second, those of the current epoch so far.
    """
    contract, config = contract_of(job["dataset"]), TrainingConfig(**job["training"])
    folder, prepared = Path(job["folder"]), Path(job["prepared"])
    device = set_up_backend(config.seed, job["device"]).model_dump()
    emit({"device": device})
    train, validation = (
        tuple(np.load(prepared / name(split), mmap_mode="r") for name in (images_name, labels_name))
        for split in ("train", "validation")
    )
    rows = len(train[1])
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
    )
    save_model(model, contract, config, folder)
    write_golden(model, validation[0], folder)
    write_json(folder / HISTORY_NAME, history)
    seconds = round(sum(metrics["seconds"] for metrics in history), 3)
    return {"epochs_run": len(history), "seconds": seconds, "device": device}


def fit_network(
    contract: DatasetContract,
    config: TrainingConfig,
    train_split: Split,
    validation_split: Split,
    *,
    checkpoint: Path | None = None,
    on_epoch: Callable[[int, EpochMetrics], None] = lambda epoch, metrics: None,
    on_steps: Callable[[float, Mapping[str, float]], None] = lambda done, metrics: None,
    devices: Sequence[str] = (),
) -> tuple[Any, list[EpochMetrics]]:
    """Train a new network; return the `keras.Model`, compiled for evaluation, and the metrics of each epoch.

    Call `tasks.model.backend.set_up_backend` for the seed first. Raises ValueError for scaled pixels that are not on
    the contract's levels. Raises `TrainingDiverged` after an epoch whose loss is not finite; no checkpoint remains.

    checkpoint: file for the state after each epoch: weights, optimizer, generator of dropout. If it exists, training
        resumes from it and gives the same result as an uninterrupted one.
    on_epoch: called after each epoch with its number and metrics.
    on_steps: called within an epoch with the epochs done, a fraction, and with loss and accuracy so far.
    devices: used instead of all GPUs, see `tasks.model.backend.distribution_scope`. The returned model is on one.

    AdamW: Loshchilov and Hutter, "Decoupled Weight Decay Regularization", ICLR 2019. Warm-up and cosine: Loshchilov
    and Hutter, "SGDR", ICLR 2017; Goyal et al., "Accurate, Large Minibatch SGD", 2017.
    """
    import keras

    images, labels = train_split
    batches = row_batches(labels, config)
    steps = len(batches)
    with distribution_scope(devices) as device_count:
        network = build_network(contract, config.dropout)
        trainer = _with_image_table(network, images, contract)
        trainer.compile(
            optimizer=keras.optimizers.AdamW(learning_rate_schedule(config, steps), weight_decay=config.weight_decay),
            loss="sparse_categorical_crossentropy",
            weighted_metrics=[_accuracy()],
            # A step takes less time than the Python code around it. On several devices Keras fails with more than one
            # step per execution: keras-team/keras issue 19246.
            steps_per_execution=min(50, steps) if device_count == 1 else 1,
        )
        trainer.optimizer.build(trainer.trainable_variables)
    # Evaluate on a single-device copy: a distributed model returns each prediction once per device.
    evaluation_copy = build_network(contract, config.dropout)
    evaluation_copy.compile(loss="sparse_categorical_crossentropy", metrics=[_accuracy()])
    state = TrainingState(network.variables, trainer.optimizer.variables, checkpoint)
    state.restore()

    class EndOfEpoch(keras.callbacks.Callback):  # type: ignore[misc]  # Keras ships no types
        """Shuffle before each epoch; evaluate, save and report after it."""

        def on_epoch_begin(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
            batches.shuffle(epoch)
            self.started = time.perf_counter()

        def on_train_batch_end(self, batch: int, logs: Mapping[str, float] | None = None) -> None:
            if batch + 1 < steps:  # `on_epoch` reports the last step
                on_steps(len(state.history) + (batch + 1) / steps, logs or {})

        def on_epoch_end(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
            evaluation_copy.set_weights(network.get_weights())
            validation = evaluate_rows(evaluation_copy, *validation_split)
            release_pages(validation_split[0])
            metrics = {**(logs or {}), **{f"val_{name}": value for name, value in validation.items()}}
            metrics["seconds"] = time.perf_counter() - self.started
            if not np.isfinite([metrics["loss"], metrics["val_loss"]]).all():
                state.discard()  # the same seed would diverge again
                raise TrainingDiverged(
                    f"Training diverged in epoch {epoch + 1}: finite losses were expected, received loss "
                    f"{metrics['loss']} and val_loss {metrics['val_loss']}. Nothing was stored. Train with a learning "
                    f"rate below {config.learning_rate:g}, or with other data."
                )
            state.save_epoch({name: float(value) for name, value in metrics.items()})
            on_epoch(epoch + 1, state.history[-1])
            if state.should_stop(config.early_stopping):
                self.model.stop_training = True

    if len(state.history) < config.epochs and not state.should_stop(config.early_stopping):
        trainer.fit(
            input_pipeline(batches, device_count),
            epochs=config.epochs,
            initial_epoch=len(state.history),
            callbacks=[EndOfEpoch()],
            shuffle=False,  # `batches` shuffles: Keras's own order could not be resumed
            verbose=0,
        )
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


def _accuracy() -> Any:
    """Return the metric as an object. Keras builds a metric given by name in the first step, which traces it twice."""
    import keras

    return keras.metrics.SparseCategoricalAccuracy("accuracy")


def save_model(model: Any, contract: DatasetContract, config: TrainingConfig, folder: Path) -> None:
    """Write topology and weights of an uncompiled copy of ``model``: compiling changes both files."""
    uncompiled = build_network(contract, config.dropout)
    uncompiled.set_weights(model.get_weights())
    (folder / TOPOLOGY_NAME).write_bytes(topology_bytes(uncompiled))
    uncompiled.save_weights(folder / WEIGHTS_NAME)


def _with_image_table(network: Any, images: npt.NDArray[np.float32], contract: DatasetContract) -> Any:
    """Return a model on ``network`` that takes row numbers int32 (N,) of ``images`` and returns probabilities.

    The images move to the device once: batches made in Python would cost more than the network's arithmetic.
    """
    import keras

    levels = contract.pixel_max - contract.pixel_min
    # The layer pops it: an initializer that kept the array would hold a second copy.
    pixels = [images_to_bytes(images, levels)]

    class Images(keras.layers.Layer):  # type: ignore[misc]  # Keras ships no types
        def __init__(self) -> None:
            super().__init__(trainable=False)
            self.table = self.add_weight(
                shape=images.shape, dtype="uint8", initializer=lambda shape, dtype: pixels.pop(), trainable=False
            )

        def call(self, rows: Any) -> Any:
            return keras.ops.cast(keras.ops.take(self.table, rows, axis=0), "float32") / levels  # (batch, pixels)

    rows = keras.Input((), dtype="int32")
    return keras.Model(rows, network(Images()(rows)))


def images_to_bytes(images: npt.NDArray[np.float32], levels: int) -> npt.NDArray[np.uint8]:
    """Convert images float32 (N, pixels) with values 0/levels to levels/levels to uint8 0 to levels.

    Raises ValueError for any other value: the conversion must be exact.
    """
    pixels = np.empty(images.shape, np.uint8)
    for start in range(0, len(images), _CONVERTED_IMAGES):
        rows = slice(start, start + _CONVERTED_IMAGES)
        pixels[rows] = np.rint(images[rows] * np.float32(levels))
        if not np.array_equal(pixels[rows] / np.float32(levels), images[rows]):
            raise ValueError(f"Expected pixels on {levels + 1} levels from 0 to 1; images from row {start} on differ.")
        release_pages(images)
    return pixels


def row_batches(labels: npt.NDArray[np.int32], config: TrainingConfig) -> Any:
    """Return a `keras.utils.PyDataset` with batches of row numbers and labels, int32 (batch,) each.

    ``shuffle(epoch)`` sets the order of rows. It depends on seed and epoch alone, so training can resume at any epoch.
    """
    import keras

    class RowBatches(keras.utils.PyDataset):  # type: ignore[misc]  # Keras ships no types
        def __init__(self) -> None:
            super().__init__()
            self.labels = labels
            self.batch_size = batch_size_for(len(labels), config)
            self.shuffle(0)

        def shuffle(self, epoch: int) -> None:
            self.order = np.random.default_rng([config.seed, epoch]).permutation(len(labels)).astype(np.int32)

        def __len__(self) -> int:
            return math.ceil(len(labels) / self.batch_size)

        def __getitem__(self, index: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
            rows = self.order[index * self.batch_size : (index + 1) * self.batch_size]
            return rows, labels[rows]

    return RowBatches()


if __name__ == "__main__":
    serve_job(main, import_backend)
