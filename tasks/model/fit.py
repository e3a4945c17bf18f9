"""Fit the network: a recipe in plain Keras, a checkpoint every epoch, and the same numbers after a kill.

Run as ``python -m tasks.model.fit`` it is the process that `tasks.train` has train. Nothing of Prefect is imported here.
"""

import json
import logging
import math
import mmap
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from schemas.config import TrainingConfig
from schemas.contract import DatasetContract, contract_of
from schemas.layout import HISTORY_NAME, TOPOLOGY_NAME, WEIGHTS_NAME, images_name, labels_name
from tasks.model.backend import feed, import_backend, on_every_gpu, set_up_backend
from tasks.model.inference import write_golden
from tasks.model.network import build_network, evaluate_rows, topology_bytes
from tasks.runtime.files import atomic_write, write_json
from tasks.runtime.worker_process import Emit, serve_job

# Not __name__, which is "__main__" under ``python -m``: only loggers below "tasks" are forwarded.
logger = logging.getLogger("tasks.model.fit")


# Steps that one call of the backend runs; a step of this network is shorter than the Python around it.
_STEPS_PER_EXECUTION = 50
# A small train split has too few steps at the usual batch size to learn much: there a step takes fewer images.
_LEAST_STEPS_AN_EPOCH = 25
_LEAST_IMAGES_A_STEP = 16
# Images that are turned into bytes in one go; what lies between takes memory, too.
_CONVERTED_AT_ONCE = 512
_SECONDS_BETWEEN_NEWS = 0.5
# Where the warm-up starts, as a share of the peak.
_WARM_UP_FROM = 0.1

# One epoch's figures: loss, accuracy, val_loss, val_accuracy, seconds.
EpochMetrics = dict[str, float]


def main(job: dict[str, Any], emit: Emit) -> dict[str, Any]:
    """Fit to the prepared splits in ``job["prepared"]`` and write the model into ``job["folder"]``; see `tasks.train`.

    Tells the device first, then the figures of each epoch and, twice a second, those so far within one. Returns
    epochs_run and seconds.
    """
    contract, config = contract_of(job["dataset"]), TrainingConfig(**job["training"])
    folder, checkpoint = Path(job["folder"]), Path(job["checkpoint"])
    emit({"device": set_up_backend(config.seed, job["device"]).model_dump()})
    prepared = Path(job["prepared"])
    train, validation = (
        tuple(np.load(prepared / name(split), mmap_mode="r") for name in (images_name, labels_name))
        for split in ("train", "validation")
    )
    rows = len(train[1])
    step = batch_size_for(rows, config)
    if step < config.batch_size:
        logger.warning(
            "batch_size %d leaves too few steps for %d images: %d a step",
            *(config.batch_size, rows, step),
        )
    told = 0.0

    def on_steps(done: float, figures: Mapping[str, float]) -> None:
        nonlocal told
        if time.monotonic() - told > _SECONDS_BETWEEN_NEWS:
            told = time.monotonic()
            emit({"done": done, "figures": {name: float(value) for name, value in figures.items()}})

    model, history = fit_network(
        contract,
        config,
        train,
        validation,
        checkpoint=checkpoint,
        on_epoch=lambda epoch, figures: emit({"done": epoch, "epoch": epoch, "figures": figures}),
        on_steps=on_steps,
    )
    save_model(model, contract, config, folder)
    write_golden(model, validation[0], folder)
    write_json(folder / HISTORY_NAME, history)
    return {"epochs_run": len(history), "seconds": round(sum(figures["seconds"] for figures in history), 3)}


def fit_network(
    contract: DatasetContract,
    config: TrainingConfig,
    train_split: tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]],
    validation_split: tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]],
    *,
    checkpoint: Path | None = None,
    on_epoch: Callable[[int, EpochMetrics], None] = lambda epoch, figures: None,
    on_steps: Callable[[float, Mapping[str, float]], None] = lambda done, figures: None,
    devices: Sequence[str] = (),
) -> tuple[Any, list[EpochMetrics]]:
    """Train a new network; returns the `keras.Model`, compiled to be evaluated, and one `EpochMetrics` an epoch.

    The splits are images float32 (N, pixels), pixels of the contract scaled to [0, 1], and labels int32 (N,); any other
    value raises ValueError. The backend was set up for the seed
    before (`tasks.model.backend.set_up_backend`). With a ``checkpoint`` the state after each epoch is kept there, and training
    goes on from it when it is there already: weights, optimizer, dropout's generator; the order of batches comes from
    seed and epoch alone. The result is that of a run which was never stopped.

    Between the ends of epochs ``on_steps`` is told the epochs done, with a fraction, and loss and accuracy so far.

    Every GPU takes a share of each batch, or each of ``devices`` (`tasks.model.backend.on_every_gpu`); the model that comes
    back is on one.

    AdamW: Loshchilov and Hutter, "Decoupled Weight Decay Regularization", ICLR 2019. Warm-up and cosine: Loshchilov
    and Hutter, "SGDR", ICLR 2017; Goyal et al., "Accurate, Large Minibatch SGD", 2017.
    """
    import keras

    images, labels = train_split
    batches = row_batches(labels, config)
    steps = len(batches)
    with on_every_gpu(devices) as shared_by:
        network = build_network(contract, config.dropout)
        trainer = _trainer(network, images, contract)
        trainer.compile(
            optimizer=keras.optimizers.AdamW(learning_rate_schedule(config, steps), weight_decay=config.weight_decay),
            loss="sparse_categorical_crossentropy",
            weighted_metrics=[_accuracy()],
            # Several at once fail on several devices, in Keras itself: keras-team/keras issue 19246.
            steps_per_execution=min(_STEPS_PER_EXECUTION, steps) if shared_by == 1 else 1,
        )
        trainer.optimizer.build(trainer.trainable_variables)
    # What is judged and handed out: a network that was built for several devices gives each answer as often.
    judged = build_network(contract, config.dropout)
    judged.compile(loss="sparse_categorical_crossentropy", metrics=[_accuracy()])
    state = _State(network, trainer.optimizer, checkpoint)
    state.restore()

    class Keep(keras.callbacks.Callback):  # type: ignore[misc]  # Keras ships no types
        def on_epoch_begin(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
            batches.shuffle(epoch)
            self.started = time.perf_counter()

        def on_train_batch_end(self, batch: int, logs: Mapping[str, float] | None = None) -> None:
            if batch + 1 < steps:  # the last ones are told with the epoch
                on_steps(len(state.history) + (batch + 1) / steps, logs or {})

        def on_epoch_end(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
            judged.set_weights(network.get_weights())
            validation = evaluate_rows(judged, *validation_split)
            _forget(validation_split[0])
            figures = {**(logs or {}), **{f"val_{name}": value for name, value in validation.items()}}
            figures["seconds"] = time.perf_counter() - self.started
            state.advance({name: float(value) for name, value in figures.items()})
            on_epoch(epoch + 1, state.history[-1])
            if state.should_stop(config.early_stopping):
                self.model.stop_training = True

    if len(state.history) < config.epochs and not state.should_stop(config.early_stopping):
        trainer.fit(
            feed(batches, shared_by),
            epochs=config.epochs,
            initial_epoch=len(state.history),
            callbacks=[Keep()],
            shuffle=False,  # `batches` does it; Keras's own order of batches could not be resumed
            verbose=0,
        )
    if config.early_stopping is not None:
        state.restore_best()
    judged.set_weights(network.get_weights())
    return judged, state.history


def batch_size_for(rows: int, config: TrainingConfig) -> int:
    """The batch size for ``rows`` images: the configured one, or less where an epoch would have less than 25 steps.

    Never less than 16 for that reason.
    """
    return min(config.batch_size, max(_LEAST_IMAGES_A_STEP, rows // _LEAST_STEPS_AN_EPOCH))


def learning_rate_schedule(config: TrainingConfig, steps: int) -> Any:
    """The `keras` schedule, ``steps`` steps an epoch: up to the peak in the first epoch, then to 0 along a cosine."""
    import keras

    warm_up = steps if config.epochs > 1 else 0
    return keras.optimizers.schedules.CosineDecay(
        # With a warm-up this is where the warm-up starts, and the target is the peak.
        initial_learning_rate=config.learning_rate * (_WARM_UP_FROM if warm_up else 1),
        decay_steps=steps * config.epochs - warm_up,
        warmup_target=config.learning_rate if warm_up else None,
        warmup_steps=warm_up,
    )


def _accuracy() -> Any:
    """The metric with its variables. By its name alone Keras makes them in the first step, which is traced twice."""
    import keras

    return keras.metrics.SparseCategoricalAccuracy("accuracy")


def save_model(model: Any, contract: DatasetContract, config: TrainingConfig, folder: Path) -> None:
    """Write topology and weights of the uncompiled model: compiling changes both files."""
    bare = build_network(contract, config.dropout)
    bare.set_weights(model.get_weights())
    (folder / TOPOLOGY_NAME).write_bytes(topology_bytes(bare))
    bare.save_weights(folder / WEIGHTS_NAME)


def _trainer(network: Any, images: npt.NDArray[np.float32], contract: DatasetContract) -> Any:
    """The network behind a table of its images: row numbers int32 (N,) in, probabilities out.

    The images go to the device once and a step is fed row numbers. Batches of images made in Python cost more than the
    network's own arithmetic does, and on a GPU every one would cross the bus.
    """
    import keras

    levels = contract.pixel_max - contract.pixel_min
    # Taken out by the layer: what an initializer holds on to stays as a second copy as long as the layer does.
    pixels = [_as_bytes(images, levels)]

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


def _as_bytes(images: npt.NDArray[np.float32], levels: int) -> npt.NDArray[np.uint8]:
    """Images float32 (N, pixels), each value one of 0/levels .. levels/levels, as 0 .. levels: a quarter of the memory.

    Raises ValueError for any other value, which a byte would not hold.
    """
    pixels = np.empty(images.shape, np.uint8)
    for start in range(0, len(images), _CONVERTED_AT_ONCE):
        rows = slice(start, start + _CONVERTED_AT_ONCE)
        pixels[rows] = np.rint(images[rows] * np.float32(levels))
        if not np.array_equal(pixels[rows] / np.float32(levels), images[rows]):
            raise ValueError(f"images of {levels + 1} levels from 0 to 1 were expected, as tasks.prepare scales them")
        _forget(images)
    return pixels


def _forget(images: npt.NDArray[np.float32]) -> None:
    """Give back the memory of what was read of a mapped file, which was opened read-only: it can be read again."""
    file: object = images.base
    if isinstance(file, mmap.mmap):
        file.madvise(mmap.MADV_DONTNEED)


def row_batches(labels: npt.NDArray[np.int32], config: TrainingConfig) -> Any:
    """The `tasks.model.backend.Batches` of an epoch, which `shuffle` chooses: the first, until it is called.

    The order of rows depends on seed and epoch alone, so that it can be resumed.
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


class _State:
    """All that an epoch leaves behind: variables and history, in one file that is replaced whole."""

    def __init__(self, network: Any, optimizer: Any, checkpoint: Path | None) -> None:
        self.network = network
        self.optimizer = optimizer
        self.checkpoint = checkpoint
        self.history: list[EpochMetrics] = []
        self.best: dict[str, npt.NDArray[Any]] = {}

    def _variables(self) -> dict[str, Any]:
        variables = [*self.network.variables, *self.optimizer.variables]
        # By place: Keras counts some names up within a process, and the one that resumes is another.
        return {f"{place:02d}": variable for place, variable in enumerate(variables)}

    def advance(self, figures: EpochMetrics) -> None:
        self.history.append(figures)
        values = {name: np.asarray(variable) for name, variable in self._variables().items()}
        if self._best_epoch() == len(self.history) - 1:
            self.best = {name: values[name].copy() for name in list(values)[: len(self.network.variables)]}
        if self.checkpoint is None:
            return
        history = np.frombuffer(json.dumps(self.history).encode(), dtype=np.uint8)
        with atomic_write(self.checkpoint) as temporary, temporary.open("wb") as file:
            arrays = {"history": history, **values, **{f"best.{name}": value for name, value in self.best.items()}}
            np.savez(file, allow_pickle=False, **arrays)

    def restore(self) -> None:
        """Go on from the checkpoint; one that cannot be read is said and left out."""
        if self.checkpoint is None or not self.checkpoint.exists():
            return
        try:
            with np.load(self.checkpoint, allow_pickle=False) as saved:
                history = [dict(figures) for figures in json.loads(saved["history"].tobytes())]
                values = {name: saved[name] for name in self._variables()}
                best = {name.removeprefix("best."): saved[name] for name in saved.files if name.startswith("best.")}
            for name, variable in self._variables().items():
                if values[name].shape != tuple(variable.shape):
                    raise ValueError(f"{variable.path} has the shape {values[name].shape}")
        except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
            logger.warning("the checkpoint %s is damaged, training starts anew (%s)", self.checkpoint, error)
            return
        for name, variable in self._variables().items():
            variable.assign(values[name])
        self.history, self.best = history, best
        logger.info("resuming after epoch %d from %s", len(history), self.checkpoint)

    def restore_best(self) -> None:
        for name, variable in self._variables().items():
            if name in self.best:
                variable.assign(self.best[name])

    def should_stop(self, patience: int | None) -> bool:
        return patience is not None and bool(self.history) and len(self.history) - 1 - self._best_epoch() >= patience

    def _best_epoch(self) -> int:
        return min(range(len(self.history)), key=lambda epoch: self.history[epoch]["val_loss"])


if __name__ == "__main__":
    serve_job(main, import_backend)
