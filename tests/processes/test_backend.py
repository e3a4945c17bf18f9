import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from schemas.config import TrainingConfig
from schemas.contract import FASHION_MNIST
from schemas.layout import TOPOLOGY_NAME, WEIGHTS_NAME
from schemas.references import PreparedData
from tasks.data.splits import open_split
from tasks.model.backend import set_up_backend
from tasks.model.checkpoint import EpochMetrics
from tasks.model.fit import fit_network
from tasks.model.inference import golden_difference
from tasks.model.network import build_network, load_network, topology_bytes


def test_backend_starts_silently_and_skips_unused_packages() -> None:
    program = (
        "import os, sys\n"
        "from schemas.errors import DeviceUnavailable\n"
        "from tasks.model.backend import set_up_backend\n"
        "try:\n    set_up_backend(0, 'gpu')\n"
        "except DeviceUnavailable as error:\n    print(error)\n"
        "print(set_up_backend(0).model_dump_json())\n"
        "print({'jax', 'matplotlib', 'pandas', 'scipy', 'sklearn'} & set(sys.modules))\n"
        "os.write(2, b'after')"
    )
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment)
    assert done.stderr == "after"  # stderr is restored
    message, device, unused = done.stdout.splitlines()
    for part in ("A GPU was requested", "tensorflow", "nvidia-smi", "ACCELERATOR=gpu", '"auto"'):
        assert part in message
    assert unused == "set()"
    described = json.loads(device)
    assert described.pop("name") in message
    assert described == {
        **{"kind": "cpu", "count": 1, "backend": "tensorflow", "driver": None, "cuda": None, "dtype_policy": "float32"},
        **{"mixed_precision": False, "tensor_float_32": None, "memory_growth": None},
    }


def _fit_elsewhere(
    prepared: PreparedData, out: Path, devices: int, config: TrainingConfig, backend: str, windows: int = 1
) -> Any:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "tests.processes.fit_elsewhere"),
            *(str(prepared.record.path), str(out), str(devices), str(windows), config.model_dump_json()),
        ],
        env={
            **os.environ,
            "KERAS_BACKEND": backend,
            # jax mostly compiles here, and the process trains the same network twice.
            "JAX_COMPILATION_CACHE_DIR": str(out / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads((out / "facts.json").read_text())


def test_changing_the_number_of_devices_keeps_the_result(sample_prepared: PreparedData, tmp_path: Path) -> None:
    # Batches of 31 and a last one of a single image cannot be halved. No dropout, because its masks differ.
    config = TrainingConfig(epochs=3, batch_size=31, dropout=0, seed=7)
    train, validation = (open_split(sample_prepared.record.path, name) for name in ("train", "validation"))

    def fit(checkpoint: Path, on_epoch: Callable[[int, EpochMetrics], None]) -> tuple[Any, list[EpochMetrics]]:
        set_up_backend(config.seed)
        return fit_network(FASHION_MNIST, config, train, validation, checkpoint=checkpoint, on_epoch=on_epoch)

    def keep_first_checkpoint(epoch: int, _: EpochMetrics) -> None:
        if epoch == 1:
            shutil.copyfile(tmp_path / "one.npz", tmp_path / "checkpoint.npz")

    one, history = fit(tmp_path / "one.npz", keep_first_checkpoint)
    facts = _fit_elsewhere(sample_prepared, tmp_path, 2, config, "tensorflow")
    assert sample_prepared.train_rows % config.batch_size == 1
    assert not (tmp_path / "after-1.npz").exists()  # it resumed after the first epoch
    epochs: list[int] = []
    two = load_network(tmp_path / "topology.json", tmp_path / "model.weights.h5")
    three, _ = fit(tmp_path / "after-2.npz", lambda epoch, _: epochs.append(epoch))
    assert epochs == [3]
    for other in (two, three):
        for ours, theirs in zip(other.get_weights(), one.get_weights(), strict=True):
            np.testing.assert_allclose(ours, theirs, atol=2e-5)
    for ours, theirs in zip(facts["history"], history, strict=True):
        for name in ("val_loss", "val_accuracy"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-4)
        for name in ("loss", "accuracy"):  # the padded single image counts twice here
            assert ours[name] == pytest.approx(theirs[name], rel=1e-2)
    # The returned model gives each prediction once, not once per device.
    assert golden_difference(load_network(tmp_path / TOPOLOGY_NAME, tmp_path / WEIGHTS_NAME), tmp_path) < 1e-5


@pytest.fixture(scope="module")
def on_jax(
    sample_prepared: PreparedData, small_config: TrainingConfig, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Any]:
    """The output folder of a training without TensorFlow, and its facts."""
    folder = tmp_path_factory.mktemp("jax")
    return folder, _fit_elsewhere(sample_prepared, folder, 1, small_config, "jax")


@pytest.mark.parametrize(
    ("devices", "backend"), [pytest.param(1, "jax", id="jax"), pytest.param(2, "tensorflow", id="two devices")]
)
def test_windows_give_the_same_result(
    devices: int, backend: str, sample_prepared: PreparedData, tmp_path: Path
) -> None:
    # No dropout, because its masks differ. Windows of 129 rows and more have batches of 22 and 21 rows.
    config = TrainingConfig(epochs=2, batch_size=22, dropout=0, seed=7)
    train, validation = (open_split(sample_prepared.record.path, name) for name in ("train", "validation"))
    set_up_backend(config.seed)
    ours, history = fit_network(FASHION_MNIST, config, train, validation, windows=7)
    facts = _fit_elsewhere(sample_prepared, tmp_path, devices, config, backend, windows=7)
    if backend == "jax":  # its first weights are other ones
        assert facts["resumed_equals_uninterrupted"]
        assert facts["history"][-1]["val_loss"] == pytest.approx(history[-1]["val_loss"], rel=0.1)
        return
    theirs = load_network(tmp_path / TOPOLOGY_NAME, tmp_path / WEIGHTS_NAME)
    for one, other in zip(ours.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)


def test_tensorflow_loads_a_model_trained_by_jax(on_jax: tuple[Path, Any]) -> None:
    folder, facts = on_jax
    assert (facts["device"]["kind"], facts["device"]["backend"]) == ("cpu", "jax")
    history = facts["history"]
    assert len(history) == 3
    assert history[-1]["val_loss"] < history[0]["val_loss"] < 2.3  # the loss of a guess is ln 10, 2.3
    assert history[-1]["val_accuracy"] > 0.5
    assert facts["resumed_equals_uninterrupted"]
    assert golden_difference(load_network(folder / TOPOLOGY_NAME, folder / WEIGHTS_NAME), folder) < 1e-5


def test_topology_is_equal_across_processes_and_backends(
    on_jax: tuple[Path, Any], small_config: TrainingConfig
) -> None:
    folder, _ = on_jax
    for _ in range(2):  # regardless of networks built before
        assert (folder / TOPOLOGY_NAME).read_bytes() == topology_bytes(build_network(FASHION_MNIST, small_config))
