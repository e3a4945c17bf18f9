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
from tasks.model.backend import set_up_backend
from tasks.model.fit import EpochMetrics, fit_network
from tasks.model.inference import golden_difference_of
from tasks.model.network import build_network, load_network, topology_bytes


def test_the_backend_starts_without_a_word_and_without_what_it_has_no_use_for() -> None:
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
    assert done.stderr == "after"  # which also says that stderr works again
    refused, device, of_no_use = done.stdout.splitlines()
    for word in ("A GPU was demanded", "tensorflow", "nvidia-smi", "ACCELERATOR=gpu", '"auto"'):
        assert word in refused
    assert of_no_use == "set()"
    described = json.loads(device)
    assert described.pop("name") in refused
    assert described == {
        **{"kind": "cpu", "count": 1, "backend": "tensorflow", "driver": None, "cuda": None, "dtype_policy": "float32"},
        **{"mixed_precision": False, "tensor_float_32": None, "memory_growth": None},
    }


def _fit_elsewhere(prepared: PreparedData, out: Path, devices: int, config: TrainingConfig, backend: str) -> Any:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "tests.processes.fit_elsewhere"),
            *(str(prepared.record.path), str(out), str(devices), config.model_dump_json()),
        ],
        env={
            **os.environ,
            "KERAS_BACKEND": backend,
            # Compiling is most of what jax does here, and the process trains the same network twice.
            "JAX_COMPILATION_CACHE_DIR": str(out / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads((out / "facts.json").read_text())


def test_one_device_then_two_then_one_train_to_what_one_does(sample_prepared: PreparedData, tmp_path: Path) -> None:
    # Neither the batches of 31 nor the last one, of a single image, have equal shares. No dropout: its masks differ.
    config = TrainingConfig(epochs=3, batch_size=31, dropout=0, seed=7)
    folder = sample_prepared.record.path
    train, validation = (
        (np.load(folder / f"{name}_images.npy"), np.load(folder / f"{name}_labels.npy"))
        for name in ("train", "validation")
    )

    def fit(checkpoint: Path, on_epoch: Callable[[int, EpochMetrics], None]) -> tuple[Any, list[EpochMetrics]]:
        set_up_backend(config.seed)
        return fit_network(FASHION_MNIST, config, train, validation, checkpoint=checkpoint, on_epoch=on_epoch)

    def keep_the_first(epoch: int, _: EpochMetrics) -> None:
        if epoch == 1:
            shutil.copyfile(tmp_path / "one.npz", tmp_path / "checkpoint.npz")

    one, history = fit(tmp_path / "one.npz", keep_the_first)
    facts = _fit_elsewhere(sample_prepared, tmp_path, 2, config, "tensorflow")
    assert sample_prepared.train_rows % config.batch_size == 1
    assert not (tmp_path / "after-1.npz").exists()  # it went on from the first
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
        for name in ("loss", "accuracy"):  # here that single image counts twice
            assert ours[name] == pytest.approx(theirs[name], rel=1e-2)
    # The model that came back answers as one network does, and not once for each device.
    assert golden_difference_of(load_network(tmp_path / TOPOLOGY_NAME, tmp_path / WEIGHTS_NAME), tmp_path) < 1e-5


@pytest.fixture(scope="module")
def on_jax(
    sample_prepared: PreparedData, small_config: TrainingConfig, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Any]:
    """What a process without TensorFlow leaves in a folder, and its facts."""
    folder = tmp_path_factory.mktemp("jax")
    return folder, _fit_elsewhere(sample_prepared, folder, 1, small_config, "jax")


def test_the_training_code_runs_on_jax_without_tensorflow_which_loads_what_it_made(on_jax: tuple[Path, Any]) -> None:
    folder, facts = on_jax
    assert (facts["device"]["kind"], facts["device"]["backend"]) == ("cpu", "jax")
    history = facts["history"]
    assert len(history) == 3
    assert history[-1]["val_loss"] < history[0]["val_loss"] < 2.3  # 2.3 is the loss of a guess: ln 10
    assert history[-1]["val_accuracy"] > 0.5
    assert facts["resumed_as_if_never_stopped"]
    assert golden_difference_of(load_network(folder / TOPOLOGY_NAME, folder / WEIGHTS_NAME), folder) < 1e-5


def test_the_topology_is_the_same_in_every_process_on_every_backend(
    on_jax: tuple[Path, Any], small_config: TrainingConfig
) -> None:
    folder, _ = on_jax
    for _ in range(2):  # however many networks were built before
        assert (folder / TOPOLOGY_NAME).read_bytes() == topology_bytes(
            build_network(FASHION_MNIST, small_config.dropout)
        )
