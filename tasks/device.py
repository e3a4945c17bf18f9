"""The one place that sets a backend up and asks it what it runs on. All other modelling code is plain Keras."""

import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from schemas.references import Device

logger = logging.getLogger(__name__)


def set_up_backend(seed: int) -> Device:
    """Import the backend, make it deterministic for ``seed``, and say what it computes on.

    With TensorFlow (the default) the operations are deterministic, too; the same seed then gives the same weights in
    every process on the same kind of CPU.
    """
    with _start_up_words_logged():
        import keras

        backend = keras.backend.backend()
        if backend == "tensorflow":
            import tensorflow as tf

            tf.config.experimental.enable_op_determinism()
    keras.utils.set_random_seed(seed)
    return _device(backend)


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
