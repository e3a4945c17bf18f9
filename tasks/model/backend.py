"""Set up Keras's backend and describe its device.

Of the other modules only `tasks.model.epoch` imports a backend, and TensorFlow those of exports.
"""

import importlib
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from schemas.config import DeviceChoice
from schemas.errors import DeviceUnavailable, WrongUsage
from schemas.references import Device
from tasks.runtime.blocked_imports import blocked_imports
from tasks.runtime.fingerprint import installed_extra

logger = logging.getLogger(__name__)

# Created by NVIDIA's driver; the second under Windows (WSL).
_DRIVER_FILES = (Path("/dev/nvidiactl"), Path("/dev/dxg"))
_BACKENDS = ("tensorflow", "jax")
# Keras imports these if they are installed.
_UNUSED_PACKAGES = ("matplotlib", "pandas", "sklearn")

# The variables that Keras and its backends read. "Changes weights" was measured with one epoch on a CPU.
#
# | variable | decision | reason |
# |---|---|---|
# | KERAS_BACKEND | in key and manifest | changes weights: selects jax |
# | XLA_FLAGS | in key and manifest | changes weights with jax; with a GPU it may have to name CUDA's folder |
# | TF_NUM_INTRAOP_THREADS, TF_NUM_INTEROP_THREADS | in key and manifest | limit the load of a shared machine |
# | TF_CPP_*, TF_FORCE_GPU_ALLOW_GROWTH, TF_GPU_ALLOCATOR, XLA_PYTHON_CLIENT_* | kept | only logs and memory |
# | JAX_PLATFORMS, JAX_COMPILATION_CACHE_DIR, JAX_PERSISTENT_CACHE_* | kept | only speed, and the device in the key |
# | KERAS_HOME | set | its keras.json changes weights (floatx) or fails the import (epsilon) |
# | other KERAS_* | removed | KERAS_MAX_STEPS_PER_EPOCH changes weights, KERAS_MAX_EPOCHS the number of epochs |
# | TF_CLI_*, TF_VAR_* and others of Terraform | kept | TensorFlow does not read them |
# | other TF_*, TENSORFLOW_* | removed | TF_ENABLE_ONEDNN_OPTS and TF_XLA_FLAGS change weights |
# | other JAX_* | removed | JAX_ENABLE_X64, JAX_DISABLE_JIT and JAX_THREEFRY_PARTITIONABLE change weights |
# | ONEDNN_*, DNNL_* | removed | the *_MAX_CPU_ISA change weights |
# | NVIDIA_TF32_*, CUBLAS_*, CUDNN_* | removed | select the arithmetic of a GPU |
#
# OMP_NUM_THREADS, OPENBLAS_*, PYTHONHASHSEED and the number of cores change no weights. The model of the CPU or GPU
# does. The manifest has it as `device`; the key does not, so that another machine can reuse a model.
DEFAULT_ENVIRONMENT = {
    "KERAS_BACKEND": "tensorflow",
    "TF_NUM_INTRAOP_THREADS": "1",  # the operations of this network are too short to share
    "TF_NUM_INTEROP_THREADS": "",
    "XLA_FLAGS": "",
}
_KEPT = (
    *("TF_CPP_", "TF_FORCE_GPU_ALLOW_GROWTH", "TF_GPU_ALLOCATOR", "XLA_PYTHON_CLIENT_"),
    *("JAX_PLATFORMS", "JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_"),
    *("TF_CLI_", "TF_VAR_", "TF_LOG", "TF_INPUT", "TF_DATA_DIR", "TF_WORKSPACE", "TF_IN_AUTOMATION", "TF_TOKEN_"),
    *("TF_REGISTRY_", "TF_PLUGIN_CACHE_"),
)
_REMOVED = ("KERAS_", "TF_", "TENSORFLOW_", "XLA_", "JAX_", "ONEDNN_", "DNNL_", "NVIDIA_TF32_", "CUBLAS_", "CUDNN_")


def environment() -> dict[str, str]:
    """Return the variables that may change a result, with their defaults. They are part of cache key and manifest."""
    return {name: os.environ.get(name) or default for name, default in DEFAULT_ENVIRONMENT.items()}


def ignored_variables() -> list[str]:
    """Return the names of the variables of this process that `import_backend` removes."""
    return sorted(
        name
        for name in os.environ
        if name.startswith(_REMOVED) and not name.startswith(_KEPT) and name not in (*DEFAULT_ENVIRONMENT, "KERAS_HOME")
    )


def _pin_environment() -> None:
    for name in ignored_variables():
        del os.environ[name]
    # No keras.json can be read or written below a file. Without it Keras uses ~/.keras, or a /tmp/.keras of any user.
    os.environ["KERAS_HOME"] = os.devnull
    os.environ.update({name: value for name, value in environment().items() if value})


def backend_name() -> str:
    """Return KERAS_BACKEND or else "tensorflow". A keras.json is ignored. Raises `WrongUsage` for another backend."""
    name = environment()["KERAS_BACKEND"]
    if name not in _BACKENDS:
        raise WrongUsage(
            f"KERAS_BACKEND was expected to be one of {', '.join(_BACKENDS)}, received {name!r}. Unset it to train "
            "with TensorFlow."
        )
    return name


def gpu_driver_present(driver_files: Sequence[Path] = _DRIVER_FILES) -> bool:
    """Return True if a GPU driver is installed and this backend supports GPUs. The GPU itself is not checked."""
    if backend_name() == "tensorflow" and installed_extra() == "cpu":
        return False
    return any(file.exists() for file in driver_files)


def set_up_backend(seed: int, device: DeviceChoice = "auto") -> Device:
    """Import the backend, make it deterministic for ``seed`` and return the device that it computes on.

    With TensorFlow the same seed gives the same weights in every process on the same kind of CPU. Each operation runs
    in one thread unless TF_NUM_INTRAOP_THREADS is set: the operations of this network are too short to share. Other
    settings of Keras and the backend are pinned, in this process's environment and in Keras's configuration.

    A backend starts once per process, so the first ``device`` remains in use and "auto" accepts it. Raises
    `DeviceUnavailable` if ``device`` cannot be used.
    """
    import_backend()
    with _stderr_to_debug_log(), blocked_imports(*_UNUSED_PACKAGES):
        if backend_name() == "tensorflow":
            _start_tensorflow(device)
        else:
            import jax

            jax.config.update("jax_default_matmul_precision", "highest")  # no TensorFloat-32, as with TensorFlow
            if device == "cpu":
                jax.config.update("jax_platforms", "cpu")
        import keras
    # Keras may have been imported before, with other settings.
    keras.config.set_floatx("float32")
    keras.config.set_epsilon(1e-7)
    keras.config.set_image_data_format("channels_last")
    keras.config.set_dtype_policy("float32")
    keras.config.set_max_epochs(None)
    keras.config.set_max_steps_per_epoch(None)
    keras.utils.set_random_seed(seed)
    actual = _describe_device()
    if device != "auto" and actual.kind != device:
        raise DeviceUnavailable(_unavailable_message(device, actual))
    return actual


def import_backend() -> None:
    """Import the backend: the slowest part of `set_up_backend`, which a process can do before it receives its job."""
    _pin_environment()
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # else jax allocates 3/4 of the GPU's memory
    name = backend_name()
    unused = ("jax", "scipy", *_UNUSED_PACKAGES) if name == "tensorflow" else _UNUSED_PACKAGES
    with _stderr_to_debug_log(), blocked_imports(*unused):
        importlib.import_module(name)  # TensorFlow also imports Keras


def _start_tensorflow(device: DeviceChoice) -> None:
    import tensorflow as tf

    tf.config.experimental.enable_op_determinism()
    # With float32 rounded to 10 bits, GPU and CPU would differ by more than the tolerance of golden predictions.
    tf.config.experimental.enable_tensor_float_32_execution(False)
    try:
        if device == "cpu":
            tf.config.set_visible_devices([], "GPU")
        for gpu in tf.config.get_visible_devices("GPU"):
            tf.config.experimental.set_memory_growth(gpu, True)
    except RuntimeError as error:
        # TensorFlow started earlier in this process; `set_up_backend` checks the device that it uses.
        logger.warning("TensorFlow already runs in this process and keeps its settings: %s", error)


def _unavailable_message(device: DeviceChoice, actual: Device) -> str:
    if device == "cpu":
        return (
            f"The CPU was requested, but {actual.backend} already runs on {actual.name} in this process. Start a new "
            "process, or hide the GPU: CUDA_VISIBLE_DEVICES=-1."
        )
    return (
        f"A GPU was requested, but {actual.backend} has no usable one and would train on {actual.name}. Check that "
        "`nvidia-smi` lists the GPU and that the gpu extra is installed (`make run ACCELERATOR=gpu`); `fashion-ann "
        'doctor` checks both. To train without a GPU, set device to "auto" or "cpu".'
    )


@contextmanager
def distribution_scope(devices: Sequence[str] = ()) -> Iterator[int]:
    """Distribute the training of a model built in the block over all GPUs; yield the number of devices.

    devices: TensorFlow's names of the devices to use instead. Fewer than two need no distribution, and other backends
    than TensorFlow train on one.
    """
    scope: AbstractContextManager[Any] = nullcontext()
    names = list(devices)
    if backend_name() == "tensorflow":
        import tensorflow as tf

        names = names or [gpu.name for gpu in tf.config.list_logical_devices("GPU")]
        if len(names) > 1:
            scope = tf.distribute.MirroredStrategy(names).scope()
    with scope:
        yield max(len(names), 1)


@contextmanager
def _stderr_to_debug_log() -> Iterator[None]:
    """Write stderr to the debug log: TensorFlow's C++ code prints there before any log level applies."""
    # Read at the import. Below 3 TensorFlow logs its own graph optimization as an error; real errors are raised.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with tempfile.TemporaryFile() as output:
        sys.stderr.flush()
        terminal = os.dup(2)
        os.dup2(output.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)
            output.seek(0)
            logger.debug("%s", output.read().decode(errors="replace"))


def _describe_device() -> Device:
    """Return the device where the backend places an array, which may not be the best one installed."""
    import keras

    backend, policy = backend_name(), keras.config.dtype_policy()
    gpu = _tensorflow_gpu() if backend == "tensorflow" else _jax_gpu()
    return Device(
        backend=backend,
        dtype_policy=policy.name,
        mixed_precision=policy.compute_dtype != policy.variable_dtype,
        **(gpu or {"kind": "cpu", "name": cpu_name()}),
    )


def _tensorflow_gpu() -> dict[str, Any] | None:
    import tensorflow as tf

    if "GPU" not in tf.zeros((1,)).device:
        return None
    gpus = tf.config.get_visible_devices("GPU")
    return {
        "kind": "gpu",
        "driver": nvidia_driver_version(),
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
        "kind": "gpu",
        "driver": nvidia_driver_version(),
        "name": first.device_kind,
        "cuda": " ".join(get_backend().platform_version.split()),
        "tensor_float_32": jax.config.jax_default_matmul_precision != "highest",
        "memory_growth": os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] == "false",
    }


def nvidia_driver_version() -> str | None:
    """Return the version of NVIDIA's driver as `nvidia-smi` reports it, or None if it reports none."""
    try:
        done = subprocess.run(
            ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],  # noqa: S607  # installed with the driver
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return next(iter(done.stdout.split()), None)


def cpu_name() -> str:
    """Return the model of the CPU and its number of cores."""
    import platform

    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return f"{model or platform.processor() or platform.machine()}, {os.cpu_count()} cores"
