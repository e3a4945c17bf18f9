"""Train a network for one epoch: in a graph of TensorFlow on one device, else by `keras.Model.fit`.

The layers, the loss, the accuracy and the optimizer are Keras's in both. What the graph saves:

| trick | without it |
|---|---|
| one call runs a block of steps | `fit` runs callbacks, metrics and an input pipeline around them |
| on the CPU the halves of a batch run at the same time | a core waits, because an operation is too short to share |
| a block of images is collected as bytes | a batch in float32 takes four times the memory |
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from schemas.contract import PixelScale
from tasks.data.splits import PreparedSplit
from tasks.data.windows import RowNumbers, read_windows
from tasks.model.backend import backend_name

# Called within an epoch with the share that is done, and with loss and accuracy so far.
OnSteps = Callable[[float, Mapping[str, float]], None]
# Trains on the rows of each window of an order, and returns loss and accuracy, each the mean over all rows.
RunEpoch = Callable[[Sequence[RowNumbers], OnSteps], dict[str, float]]

# Steps per call of the graph: at batch 256 their images take 13 MB.
_BLOCK_STEPS = 64


def epoch_runner(
    network: Any,
    optimizer: Any,
    split: PreparedSplit,
    batch_size: int,
    devices: int,
    label_smoothing: float = 0,
    windows: int = 1,
) -> RunEpoch:
    """Return the function that trains ``network`` with ``optimizer``, both of Keras, on the images of ``split``.

    Call it in the `tasks.model.backend.distribution_scope` that yielded ``devices``. Batches have at most
    ``batch_size`` rows of a window, see `steps_per_epoch`. Orders have this number of ``windows``.
    """
    if backend_name() == "tensorflow" and devices == 1:
        return _graph_epoch(network, optimizer, split, batch_size, label_smoothing)
    return _fit_epoch(network, optimizer, split, batch_size, devices, label_smoothing, windows)


def _graph_epoch(
    network: Any, optimizer: Any, split: PreparedSplit, batch_size: int, label_smoothing: float
) -> RunEpoch:
    import keras
    import tensorflow as tf

    parts = 1 if tf.config.list_logical_devices("GPU") else 2
    variables = network.trainable_variables
    optimizer.build(variables)

    def measure(images: Any, labels: Any, rows: Any) -> tuple[Any, Any, list[Any]]:
        """Return the sum of losses, the number of correct rows and the share of the batch's gradients."""
        with tf.GradientTape() as tape:
            probabilities = network(_normalized(images, split.scale), training=True)
            loss = tf.reduce_sum(_losses(labels, probabilities, label_smoothing))
            share = loss / rows
        correct = tf.reduce_sum(keras.metrics.sparse_categorical_accuracy(labels, probabilities))
        return loss, correct, tape.gradient(share, [variable.value for variable in variables])

    @tf.function(  # type: ignore[untyped-decorator]  # TensorFlow ships no types
        input_signature=(
            tf.TensorSpec((None, None, split.images.shape[1]), tf.uint8),
            tf.TensorSpec((None, None), tf.int32),
        ),
        autograph=False,  # it would rewrite the source of each function first: 0.2 s
    )
    def run_block(images: Any, labels: Any) -> tuple[Any, Any]:
        """Train on images (steps, batch, pixels) and labels (steps, batch)."""
        rows = tf.shape(labels)[1]
        sizes = [(rows + part) // parts for part in range(parts)]

        def step(number: Any, loss: Any, correct: Any) -> tuple[Any, Any, Any]:
            halves = zip(tf.split(images[number], sizes), tf.split(labels[number], sizes), strict=True)
            losses, hits, gradients = zip(*(measure(*half, tf.cast(rows, tf.float32)) for half in halves), strict=True)
            optimizer.apply([tf.add_n(parts) for parts in zip(*gradients, strict=True)], variables)
            return number + 1, loss + tf.add_n(losses), correct + tf.add_n(hits)

        _, loss, correct = tf.while_loop(
            lambda number, *_: number < tf.shape(labels)[0], step, (0, 0.0, 0.0), parallel_iterations=1
        )
        return loss, correct

    def run(order: Sequence[RowNumbers], on_steps: OnSteps) -> dict[str, float]:
        loss = correct = 0.0
        done, total = 0, sum(map(len, order))
        for window, rows in read_windows(split, order):
            for block, steps in _blocks(len(rows), batch_size):
                chosen = rows[block]
                images = window.images[chosen].reshape(steps, -1, split.images.shape[1])
                sums = run_block(images, window.labels[chosen].reshape(steps, -1))
                loss, correct, done = loss + float(sums[0]), correct + float(sums[1]), done + len(chosen)
                on_steps(done / total, {"loss": loss / done, "accuracy": correct / done})
        return {"loss": loss / total, "accuracy": correct / total}

    return run


def _normalized(images: Any, scale: PixelScale) -> Any:
    """Do in the backend what `tasks.data.splits.scale_pixels` does in NumPy."""
    import keras

    return (keras.ops.cast(images, "float32") - scale.minimum) / (scale.maximum - scale.minimum)


def _losses(labels: Any, probabilities: Any, label_smoothing: float) -> Any:
    """Return the loss of each row."""
    import keras

    if not label_smoothing:
        return keras.losses.sparse_categorical_crossentropy(labels, probabilities)
    shares = keras.ops.one_hot(labels, probabilities.shape[-1])
    return keras.losses.categorical_crossentropy(shares, probabilities, label_smoothing=label_smoothing)


def steps_per_epoch(rows: int, batch_size: int, windows: int = 1) -> int:
    """Return the number of batches of an epoch. Their sizes differ by at most one row in each of the ``windows``.

    With whole batches and a rest, a rest of few rows would move the weights as far as a whole batch does.
    """
    smaller, longer = divmod(rows, windows)
    return longer * math.ceil((smaller + 1) / batch_size) + (windows - longer) * math.ceil(smaller / batch_size)


def _blocks(rows: int, batch_size: int) -> Iterator[tuple[slice, int]]:
    """Yield the rows of each block and its number of steps. All batches of a block have the same size."""
    batches = steps_per_epoch(rows, batch_size)
    smaller, longer = divmod(rows, batches)
    first = 0
    for size, count in ((smaller + 1, longer), (smaller, batches - longer)):
        for done in range(0, count, _BLOCK_STEPS):
            steps = min(_BLOCK_STEPS, count - done)
            yield slice(first, first + steps * size), steps
            first += steps * size


def _fit_epoch(
    network: Any,
    optimizer: Any,
    split: PreparedSplit,
    batch_size: int,
    devices: int,
    label_smoothing: float,
    windows: int,
) -> RunEpoch:
    import keras

    total_steps = steps_per_epoch(len(split.labels), batch_size, windows)
    table, trainer = _with_image_table(network, split, windows)
    trainer.compile(
        optimizer=optimizer,
        loss=lambda labels, probabilities: _losses(labels, probabilities, label_smoothing),
        # As an object: Keras builds a metric given by name in the first step, which traces it twice.
        weighted_metrics=[keras.metrics.SparseCategoricalAccuracy("accuracy")],
        # A step takes less time than the Python code around it. On several devices Keras fails with more than one step
        # per execution: keras-team/keras issue 19246.
        steps_per_execution=min(50, total_steps // windows) if devices == 1 else 1,
    )
    optimizer.build(trainer.trainable_variables)

    def run(order: Sequence[RowNumbers], on_steps: OnSteps) -> dict[str, float]:
        means: Counter[str] = Counter()
        steps, total = 0, sum(map(len, order))

        class Progress(keras.callbacks.Callback):  # type: ignore[misc]  # Keras ships no types
            def on_train_batch_end(self, batch: int, logs: Mapping[str, float] | None = None) -> None:
                on_steps((steps + batch + 1) / total_steps, logs or {})

        for window, rows in read_windows(split, order):
            if len(order) > 1:
                images = window.images[:]
                table.assign(np.pad(images, ((0, table.shape[0] - len(images)), (0, 0))))
            batches = row_batches(rows, window.labels, batch_size, devices)
            # Keras's own order could not be resumed.
            history = trainer.fit(batches, callbacks=[Progress()], shuffle=False, verbose=0).history
            steps += len(batches)
            means.update({name: float(values[-1]) * len(rows) / total for name, values in history.items()})
        return dict(means)

    return run


def row_batches(order: RowNumbers, labels: npt.NDArray[np.int32], batch_size: int, devices: int) -> Any:
    """Return a `keras.utils.PyDataset` with batches of row numbers and labels, int32 (batch,) each.

    For several ``devices`` each batch is padded with repeated rows to equal shares. Padding has sample weight 0 and the
    other rows are scaled up, so the mean over shares is the mean over the batch. An epoch's loss and accuracy weight a
    batch by its padded size.
    """
    import keras

    parts = np.array_split(order, steps_per_epoch(len(order), batch_size))

    class RowBatches(keras.utils.PyDataset):  # type: ignore[misc]  # Keras ships no types
        def __len__(self) -> int:
            return len(parts)

        def __getitem__(self, index: int) -> tuple[npt.NDArray[Any], ...]:
            rows = parts[index]
            if devices == 1:
                return rows, labels[rows]
            padded = np.resize(rows, -(-len(rows) // devices) * devices)
            weights = np.where(np.arange(len(padded)) < len(rows), len(padded) / len(rows), 0).astype(np.float32)
            return padded, labels[padded], weights

    return RowBatches()


def _with_image_table(network: Any, split: PreparedSplit, windows: int) -> tuple[Any, Any]:
    """Return a table of images, and a model on ``network`` that takes row numbers of the table, int32 (N,).

    The table has all images of ``split``, or those of one of several ``windows`` at a time. The model returns
    probabilities. Images move to the device once: batches made in Python would cost more than the network's arithmetic.
    """
    import keras

    rows, pixels = split.images.shape
    shape = (-(-rows // windows), pixels)

    def first(shape: Any, dtype: Any) -> Any:
        return split.images[:] if windows == 1 else keras.ops.zeros(shape, dtype)

    class Images(keras.layers.Layer):  # type: ignore[misc]  # Keras ships no types
        def __init__(self) -> None:
            super().__init__(trainable=False)
            self.table = self.add_weight(shape=shape, dtype="uint8", initializer=first, trainable=False)

        def call(self, rows: Any) -> Any:
            return _normalized(keras.ops.take(self.table, rows, axis=0), split.scale)  # (batch, pixels)

    images, numbers = Images(), keras.Input((), dtype="int32")
    return images.table, keras.Model(numbers, network(images(numbers)))
