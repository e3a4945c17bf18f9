"""The one place that knows a backend by name: sets it up, feeds it, asks what it runs on. The rest is plain Keras."""

import logging
import math
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from schemas.references import Device

logger = logging.getLogger(__name__)


class Batches(Protocol):
    """A `keras.utils.PyDataset` of row numbers and labels, int32 (batch,) each, in an order that is set each epoch."""

    order: npt.NDArray[np.int32]
    labels: npt.NDArray[np.int32]
    batch_size: int


def set_up_backend(seed: int) -> Device:
    """Import the backend, make it deterministic for ``seed``, and say what it computes on.

    With TensorFlow (the default) the operations are deterministic, too; the same seed then gives the same weights in
    every process on the same kind of CPU. One operation is computed by one thread, unless TF_NUM_INTRAOP_THREADS says
    otherwise: those of this network are so short that handing them out costs more than it saves.
    """
    os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")  # TensorFlow reads it when it starts
    with _start_up_words_logged():
        import keras

        backend = keras.backend.backend()
        if backend == "tensorflow":
            import tensorflow as tf

            tf.config.experimental.enable_op_determinism()
    keras.utils.set_random_seed(seed)
    return _device(backend)


def feed(batches: Batches) -> Any:
    """What `keras.Model.fit` is given for ``batches``: the same ones, at less cost where the backend has a way.

    With TensorFlow it is a pipeline that asks Python for the order once an epoch, when the epoch starts, and cuts it
    by itself; a batch that Python cuts costs more than half of the step that it feeds.
    """
    import keras

    if keras.backend.backend() != "tensorflow":
        return batches
    import tensorflow as tf

    labels = tf.constant(batches.labels)

    def epoch(_: Any) -> Any:
        order = tf.numpy_function(lambda: batches.order, [], tf.int32, stateful=True)
        order.set_shape(labels.shape)
        return tf.data.Dataset.from_tensor_slices((order, tf.gather(labels, order))).batch(batches.batch_size)

    steps = math.ceil(len(batches.labels) / batches.batch_size)
    return tf.data.Dataset.range(1).flat_map(epoch).apply(tf.data.experimental.assert_cardinality(steps))


@contextmanager
def _start_up_words_logged() -> Iterator[None]:
    """TensorFlow greets on stderr, from C++ and before any log level applies; its words go to the debug log."""
    # Read at the import. Below 3 TensorFlow calls its own rewriting of graphs an error; what goes wrong is raised.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with tempfile.TemporaryFile() as words:
        sys.stderr.flush()
        terminal = os.dup(2)
        os.dup2(words.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)
            words.seek(0)
            logger.debug("%s", words.read().decode(errors="replace"))


def _device(backend: str) -> Device:
    import keras

    # Where the backend really puts an array, not what is plugged in.
    placed = keras.ops.zeros((1,))
    if backend == "tensorflow":
        import tensorflow as tf

        kind = "gpu" if "GPU" in placed.device.upper() else "cpu"
        if kind == "cpu":
            return Device(kind="cpu", name=_processor(), backend=backend)
        details = tf.config.experimental.get_device_details(tf.config.list_physical_devices("GPU")[0])
        return Device(kind="gpu", name=details.get("device_name", placed.device), backend=backend)
    name = str(getattr(placed, "device", "cpu"))
    kind = "gpu" if any(mark in name.lower() for mark in ("cuda", "gpu")) else "cpu"
    return Device(kind=kind, name=_processor() if kind == "cpu" else name, backend=backend)


def _processor() -> str:
    import platform
    from pathlib import Path

    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return f"{model or platform.processor() or platform.machine()}, {os.cpu_count()} cores"
