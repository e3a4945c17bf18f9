"""The one place that knows a backend by name: sets it up, feeds it, asks what it runs on. The rest is plain Keras."""

import logging
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from schemas.config import DeviceChoice
from schemas.errors import DeviceUnavailable, WrongUsage
from schemas.references import Device
from tasks.runtime.fingerprint import installed_extra

logger = logging.getLogger(__name__)

# What NVIDIA's driver puts there; the second under Windows.
_SIGNS_OF_A_GPU = (Path("/dev/nvidiactl"), Path("/dev/dxg"))
_PATIENCE_SECONDS = 30
_BACKENDS = ("tensorflow", "jax")
# Keras imports them where they are installed.
_OF_NO_USE = ("matplotlib", "pandas", "sklearn")


class Batches(Protocol):
    """A `keras.utils.PyDataset` of row numbers and labels, int32 (batch,) each, in an order that is set each epoch."""

    order: npt.NDArray[np.int32]
    labels: npt.NDArray[np.int32]
    batch_size: int


def backend_name() -> str:
    """Keras's backend in this process: KERAS_BACKEND, else TensorFlow, whatever the user's keras.json says.

    Raises `WrongUsage` for one that is not known here.
    """
    name = os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    if name not in _BACKENDS:
        raise WrongUsage(
            f"KERAS_BACKEND was expected to be one of {', '.join(_BACKENDS)}, received {name!r}. Unset it to train "
            "with TensorFlow."
        )
    return name


def gpu_driver_present(signs: Sequence[Path] = _SIGNS_OF_A_GPU) -> bool:
    """Whether it is worth asking the backend for a GPU, found out in no time; it may still have no use for it."""
    if backend_name() == "tensorflow" and installed_extra() == "cpu":
        return False
    return any(sign.exists() for sign in signs)


def set_up_backend(seed: int, device: DeviceChoice = "auto") -> Device:
    """Import the backend, make it deterministic for ``seed``, and say what it computes on.

    With TensorFlow (the default) the operations are deterministic, too; the same seed then gives the same weights in
    every process on the same kind of CPU. One operation is computed by one thread, unless TF_NUM_INTRAOP_THREADS says
    otherwise: those of this network are so short that handing them out costs more than it saves.

    A backend starts once in a process: what the first call chose holds, and "auto" keeps to it. Raises
    `DeviceUnavailable` when ``device`` cannot be had.
    """
    import_backend()
    with _start_up_words_logged(), _kept_out(*_OF_NO_USE):
        if backend_name() == "tensorflow":
            _start_tensorflow(device)
        else:
            _start_jax(device)
        import keras
    keras.utils.set_random_seed(seed)
    found = _device(backend_name())
    if device != "auto" and found.kind != device:
        raise DeviceUnavailable(_cannot_be_had(device, found))
    return found


def import_backend() -> None:
    """What takes most seconds of `set_up_backend`, and asks for neither seed nor device: it may come before."""
    os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")  # TensorFlow reads it when it starts
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # so does jax, which would take 3/4 of the memory
    with _start_up_words_logged():
        if backend_name() == "tensorflow":
            with _kept_out("jax", "scipy", *_OF_NO_USE):  # also of Keras, which TensorFlow imports
                import tensorflow  # noqa: F401
        else:
            with _kept_out(*_OF_NO_USE):
                import jax  # noqa: F401


def _start_tensorflow(device: DeviceChoice) -> None:
    import tensorflow as tf

    tf.config.experimental.enable_op_determinism()
    # 10 bits of a float32 would make a GPU's probabilities differ from a CPU's by more than golden predictions may.
    tf.config.experimental.enable_tensor_float_32_execution(False)
    try:
        if device == "cpu":
            tf.config.set_visible_devices([], "GPU")
        for gpu in tf.config.get_visible_devices("GPU"):
            tf.config.experimental.set_memory_growth(gpu, True)
    except RuntimeError as error:
        # Someone started it before us; what it computes on is looked at afterwards.
        logger.warning("TensorFlow runs already in this process and stays as it is: %s", error)


def _start_jax(device: DeviceChoice) -> None:
    import jax

    if device == "cpu":
        jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_default_matmul_precision", "highest")  # as for TensorFlow: no TensorFloat-32


def _cannot_be_had(device: DeviceChoice, found: Device) -> str:
    if device == "cpu":
        return (
            f"The CPU was demanded, and {found.backend} runs on {found.name} in this process already. Start a new "
            "process, or hide the GPU from it: CUDA_VISIBLE_DEVICES=-1."
        )
    return (
        f"A GPU was demanded, and {found.backend} found none that it can use: it would train on {found.name}. "
        "`nvidia-smi` must list the GPU (else install NVIDIA's driver, or hand the GPU to this container), and the gpu "
        "extra must be installed (`make run ACCELERATOR=gpu`); `fashion-ann doctor` looks at both. To train without "
        'one, set device to "auto" or "cpu".'
    )


@contextmanager
def on_every_gpu(devices: Sequence[str] = ()) -> Iterator[int]:
    """A model that is built inside is trained by all GPUs of this process together; yields how many devices those are.

    devices: TensorFlow's names of others to train on. With less than two nothing is done, and other backends than
    TensorFlow train on one.
    """
    if backend_name() != "tensorflow":
        yield 1
        return
    import tensorflow as tf

    names = list(devices) or [gpu.name for gpu in tf.config.list_logical_devices("GPU")]
    if len(names) < 2:
        yield 1
        return
    with tf.distribute.MirroredStrategy(names).scope():
        yield len(names)


def feed(batches: Batches, devices: int = 1) -> Any:
    """What `keras.Model.fit` is given for ``batches``: the same ones, at less cost where the backend has a way.

    With TensorFlow it is a pipeline that asks Python for the order once an epoch, when the epoch starts, and cuts it
    by itself; a batch that Python cuts costs more than half of the step that it feeds.

    Several ``devices`` are given equal shares of a batch, which some rows are repeated for. Those weigh nothing and the
    others as much more, so that the mean over the shares is the mean over the batch; an epoch's loss and accuracy count
    such a batch for as many rows as were shared.
    """
    if backend_name() != "tensorflow":
        return batches
    import tensorflow as tf

    labels = tf.constant(batches.labels)
    whole = len(batches.labels) // batches.batch_size * batches.batch_size

    def epoch(_: Any) -> Any:
        order = tf.numpy_function(lambda: batches.order, [], tf.int32, stateful=True)
        order.set_shape(labels.shape)
        columns = (order, tf.gather(labels, order))
        # Batches are sliced, not collected row by row, which takes an eighth of an epoch.
        cut = tuple(tf.reshape(column[:whole], (-1, batches.batch_size)) for column in columns)
        rest = tuple(column[whole:] for column in columns)
        fed = tf.data.Dataset.from_tensor_slices(cut)
        return fed if whole == len(batches.labels) else fed.concatenate(tf.data.Dataset.from_tensors(rest))

    def in_equal_shares(rows: Any, labels: Any) -> tuple[Any, Any, Any]:
        size = tf.size(rows)
        shared = -(-size // devices) * devices
        places = tf.range(shared)
        weights = tf.where(places < size, tf.cast(shared / size, tf.float32), 0.0)
        return tf.gather(rows, places % size), tf.gather(labels, places % size), weights

    steps = math.ceil(len(batches.labels) / batches.batch_size)
    fed = tf.data.Dataset.range(1).flat_map(epoch).apply(tf.data.experimental.assert_cardinality(steps))
    fed = fed.map(in_equal_shares) if devices > 1 else fed
    untuned = tf.data.Options()
    # There is nothing to tune, and the thread that would makes a third of the epochs wait 0.2 s for it at their start.
    untuned.autotune.enabled = False
    return fed.with_options(untuned)


@contextmanager
def _kept_out(*packages: str) -> Iterator[None]:
    """Packages that Keras and the backend do without, and import where they are installed: 0.3 s and 60 MB.

    TensorFlow imports jax for its converter for phones: another second and 140 MB.
    """
    absent = [package for package in packages if package not in sys.modules]
    for package in absent:
        sys.modules[package] = None  # type: ignore[assignment]  # how Python spells that an import has to fail
    try:
        yield
    finally:
        for package in absent:
            del sys.modules[package]


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
    """Where the backend really puts an array, not what is plugged in."""
    import keras

    policy = keras.config.dtype_policy()
    gpu = _tensorflow_gpu() if backend == "tensorflow" else _jax_gpu()
    return Device(
        backend=backend,
        dtype_policy=policy.name,
        mixed_precision=policy.compute_dtype != policy.variable_dtype,
        **({"kind": "cpu", "name": _processor()} if gpu is None else {"kind": "gpu", "driver": nvidia_driver(), **gpu}),
    )


def _tensorflow_gpu() -> dict[str, Any] | None:
    import tensorflow as tf

    if "GPU" not in tf.zeros((1,)).device:
        return None
    gpus = tf.config.get_visible_devices("GPU")
    return {
        "name": tf.config.experimental.get_device_details(gpus[0]).get("device_name", gpus[0].name),
        "count": len(gpus),
        "cuda": tf.sysconfig.get_build_info().get("cuda_version"),
        "tensor_float_32": tf.config.experimental.tensor_float_32_execution_enabled(),
        "memory_growth": all(tf.config.experimental.get_memory_growth(gpu) for gpu in gpus),
    }


def _jax_gpu() -> dict[str, Any] | None:
    import jax
    from jax.extend.backend import get_backend

    first = jax.devices()[0]
    if first.platform != "gpu":
        return None
    return {
        "name": first.device_kind,
        "cuda": " ".join(get_backend().platform_version.split()),
        "tensor_float_32": jax.config.jax_default_matmul_precision != "highest",
        "memory_growth": os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] == "false",
    }


def nvidia_driver() -> str | None:
    """Version of NVIDIA's driver, as `nvidia-smi` tells it; None where that says nothing."""
    try:
        done = subprocess.run(
            ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],  # noqa: S607  # lies where the driver is
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_PATIENCE_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return next(iter(done.stdout.split()), None)


def _processor() -> str:
    import platform

    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return f"{model or platform.processor() or platform.machine()}, {os.cpu_count()} cores"
