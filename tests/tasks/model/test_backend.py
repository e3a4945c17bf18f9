from pathlib import Path

import pytest

from schemas.errors import WrongUsage
from tasks.model.backend import (
    backend_name,
    distribution_scope,
    environment,
    gpu_driver_present,
    ignored_variables,
    nvidia_driver_version,
    set_up_backend,
)
from tasks.runtime.fingerprint import installed_extra
from tests.field_faults import field_fault

pytestmark = pytest.mark.usefixtures("backend")


def test_rejects_an_unknown_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERAS_BACKEND", "abacus")
    with pytest.raises(WrongUsage, match="tensorflow, jax, received 'abacus'"):
        backend_name()


def test_gpu_driver_counts_if_the_backend_can_use_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    present, absent = [tmp_path], [tmp_path / "nvidiactl"]
    assert gpu_driver_present(present) == (installed_extra() == "gpu")
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    assert gpu_driver_present(present)
    assert not gpu_driver_present(absent)


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        pytest.param("echo 570.86.15; echo 570.86.15", "570.86.15", id="two GPUs"),
        pytest.param("echo 'NVIDIA-SMI has failed'; exit 9", None, id="no driver"),
        pytest.param("true", None, id="no GPU"),
        pytest.param(None, None, id="not installed"),
    ],
)
def test_driver_version_comes_from_nvidia_smi(
    script: str | None, expected: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if script is not None:
        program = tmp_path / "nvidia-smi"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert nvidia_driver_version() == expected


@pytest.mark.parametrize("devices", [[], ["CPU:0"]])
def test_one_device_needs_no_distribution(devices: list[str]) -> None:
    import tensorflow as tf

    set_up_backend(0)
    with distribution_scope(devices) as count:
        assert count == 1
        assert not tf.distribute.has_strategy()


@pytest.mark.parametrize(
    ("name", "fate"),
    [
        *((name, "ignored") for name in ("KERAS_MAX_EPOCHS", "KERAS_MAX_STEPS_PER_EPOCH", "KERAS_NNX_ENABLED")),
        *((name, "ignored") for name in ("TF_ENABLE_ONEDNN_OPTS", "TF_DETERMINISTIC_OPS", "TF_XLA_FLAGS")),
        *((name, "ignored") for name in ("JAX_ENABLE_X64", "JAX_DEFAULT_MATMUL_PRECISION", "JAX_DISABLE_JIT")),
        *((name, "ignored") for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "NVIDIA_TF32_OVERRIDE")),
        *((name, "ignored") for name in ("TENSORFLOW_USE_CUSTOM_CONTRACTION_KERNEL", "XLA_OTHER")),
        *((name, "ignored") for name in ("CUBLAS_WORKSPACE_CONFIG", "CUDNN_CONV_WSCAP_DBG")),
        *((name, "recorded") for name in ("KERAS_BACKEND", "XLA_FLAGS")),
        *((name, "recorded") for name in ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS")),
        *((name, "kept") for name in ("TF_CPP_MIN_LOG_LEVEL", "XLA_PYTHON_CLIENT_PREALLOCATE", "JAX_PLATFORMS")),
        *((name, "kept") for name in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "TF_CLI_CONFIG_FILE")),
    ],
)
def test_each_variable_is_ignored_recorded_or_kept(name: str, fate: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(name, raising=False)
    default = environment()
    monkeypatch.setenv(name, "other")
    assert ignored_variables() == ([name] if fate == "ignored" else [])
    assert environment() == ({**default, name: "other"} if fate == "recorded" else default)


@field_fault(
    "hidden input of a cached result",
    "A program sets Keras to float16 and then loads a version",
    "The settings of Keras that change predictions are pinned again",
)
def test_settings_of_an_imported_keras_are_pinned() -> None:
    import keras

    keras.config.set_floatx("float16")
    keras.config.set_epsilon(1)
    keras.config.set_image_data_format("channels_first")
    keras.config.set_dtype_policy("float64")
    keras.config.set_max_epochs(1)
    keras.config.set_max_steps_per_epoch(1)
    assert set_up_backend(0).dtype_policy == "float32"
    settings = keras.config.floatx(), keras.config.epsilon(), keras.config.image_data_format()
    assert settings == ("float32", 1e-7, "channels_last")
    assert (keras.config.max_epochs(), keras.config.max_steps_per_epoch()) == (None, None)
