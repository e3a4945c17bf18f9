import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from schemas.config import TrainingConfig
from schemas.errors import DeviceUnavailable
from schemas.references import PreparedData, TrainedModel
from tasks.data.splits import open_split
from tasks.model.backend import gpu_driver_present
from tasks.model.network import load_network
from tasks.runtime.files import sha256_file
from tasks.runtime.materialize import materialize
from tasks.train import is_trained, train
from tests.field_faults import field_fault

pytestmark = pytest.mark.usefixtures("in_this_process")
without_a_gpu = pytest.mark.skipif(gpu_driver_present(), reason="expects a machine without a GPU")


@without_a_gpu
def test_writes_topology_weights_and_history(
    sample_trained: TrainedModel, sample_prepared: PreparedData, small_config: TrainingConfig, sample_artifacts: Path
) -> None:
    folder = sample_trained.record.path
    assert sha256_file(folder / "topology.json") == sample_trained.topology_sha256
    assert sha256_file(folder / "model.weights.h5") == sample_trained.weights_sha256
    assert (sample_trained.device.kind, sample_trained.device.backend) == ("cpu", "tensorflow")
    history = json.loads((folder / "history.json").read_bytes())
    assert len(history) == sample_trained.epochs_run == 3
    assert history[-1]["val_loss"] < history[0]["val_loss"] < 2.3  # the loss of a guess is ln 10, 2.3
    model = load_network(folder / "topology.json", folder / "model.weights.h5")
    assert model.count_params() == 101_770
    validation = open_split(sample_prepared.record.path, "validation")
    predicted = model.predict(validation.scaled(slice(None)), verbose=0).argmax(axis=1)
    accuracy = (predicted == validation.labels).mean()
    assert history[-1]["val_accuracy"] == pytest.approx(accuracy)
    assert not list((sample_artifacts / "checkpoints").glob(f"*{sample_trained.record.key}*"))
    assert train.fn(sample_prepared, small_config, sample_artifacts).record.reused


@without_a_gpu
@pytest.mark.usefixtures("sample_trained")
def test_is_trained_depends_on_all_inputs(
    sample_prepared: PreparedData, small_config: TrainingConfig, sample_artifacts: Path
) -> None:
    assert is_trained(sample_prepared, small_config, sample_artifacts)
    assert is_trained(sample_prepared, small_config, sample_artifacts, "cpu")
    assert not is_trained(sample_prepared, small_config, sample_artifacts, "gpu")
    assert not is_trained(sample_prepared, small_config.model_copy(update={"seed": 77}), sample_artifacts, "cpu")
    changed = sample_prepared.model_copy(update={"sha256": "0" * 64})
    assert not is_trained(changed, small_config, sample_artifacts, "cpu")
    assert not is_trained(sample_prepared, small_config, sample_artifacts / "elsewhere", "cpu")


@without_a_gpu
def test_a_budget_below_the_images_trains_in_windows(
    sample_trained: TrainedModel, sample_prepared: PreparedData, small_config: TrainingConfig, tmp_path: Path
) -> None:
    # 900 images of 784 bytes are three windows, and two of them fit into 500 kB.
    trained = train.fn(sample_prepared, small_config.model_copy(update={"memory_budget": "500kB"}), tmp_path)
    assert trained.memory_budget == 500_000
    assert trained.weights_sha256 != sample_trained.weights_sha256
    same = small_config.model_copy(update={"memory_budget": "500.5kB"})
    assert train.fn(sample_prepared, same, tmp_path).record.reused
    assert is_trained(sample_prepared, small_config.model_copy(update={"memory_budget": "1MB"}), tmp_path) is False
    shutil.copytree(sample_trained.record.path, tmp_path / "trained" / sample_trained.record.path.name)
    assert is_trained(sample_prepared, small_config.model_copy(update={"memory_budget": "1MB"}), tmp_path)


@without_a_gpu
@pytest.mark.parametrize("name", ["XLA_FLAGS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"])
@field_fault(
    "hidden input of a cached result",
    "XLA_FLAGS or TensorFlow's thread counts are set for one run",
    "The model is trained again: they are part of the cache key, the manifest and the list of `reproduce`",
)
def test_variables_that_may_vary_are_part_of_the_key(
    name: str,
    sample_trained: TrainedModel,
    sample_prepared: PreparedData,
    small_config: TrainingConfig,
    sample_artifacts: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert name in sample_trained.environment
    monkeypatch.setenv(name, "2")
    assert not is_trained(sample_prepared, small_config, sample_artifacts, "cpu")


@without_a_gpu
@pytest.mark.usefixtures("sample_trained")
@field_fault(
    "hidden input of a cached result",
    "KERAS_MAX_EPOCHS, TF_ENABLE_ONEDNN_OPTS or the like is set for one run",
    "The run reuses the model of other runs, and one warning names the variable that it ignores",
)
def test_ignored_variables_are_named(
    sample_prepared: PreparedData,
    small_config: TrainingConfig,
    sample_artifacts: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("KERAS_MAX_EPOCHS", "1")
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "0")
    assert train.fn(sample_prepared, small_config, sample_artifacts).record.reused
    assert "KERAS_MAX_EPOCHS, TF_ENABLE_ONEDNN_OPTS" in caplog.text


@without_a_gpu
@pytest.mark.parametrize("driver", [False, True], ids=["no driver", "driver without a GPU"])
def test_auto_reuses_the_cpu_model_without_a_usable_gpu(
    driver: bool,
    sample_trained: TrainedModel,
    sample_prepared: PreparedData,
    small_config: TrainingConfig,
    sample_artifacts: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("tasks.train.gpu_driver_present", lambda: driver)
    record = train.fn(sample_prepared, small_config, sample_artifacts).record
    assert (record.key, record.reused) == (sample_trained.record.key, True)
    assert ("A GPU was requested" in caplog.text) == driver


@without_a_gpu
def test_a_requested_gpu_is_never_replaced_by_the_cpu(
    sample_trained: TrainedModel, sample_prepared: PreparedData, small_config: TrainingConfig, tmp_path: Path
) -> None:
    cpu_output = sample_trained.record.path
    shutil.copytree(cpu_output, tmp_path / "trained" / cpu_output.name)
    assert train.fn(sample_prepared, small_config, tmp_path, "cpu").record.reused
    with pytest.raises(DeviceUnavailable, match="nvidia-smi"):
        train.fn(sample_prepared, small_config, tmp_path, "gpu")
    assert [path.name for path in (tmp_path / "trained").iterdir() if path.suffix != ".lock"] == [cpu_output.name]
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_shows_progress_before_the_worker_starts(
    sample_prepared: PreparedData, small_config: TrainingConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker imports the backend and compiles the network for seconds."""
    calls: list[str] = []

    @contextmanager
    def progress(key: str, description: str) -> Iterator[Callable[[float], None]]:
        calls.append(key)
        yield lambda share: None

    def worker(module: str, job: dict[str, Any], host: str) -> None:
        calls.append(module)
        raise DeviceUnavailable("for this test")

    monkeypatch.setattr("tasks.train.publish_progress", progress)
    monkeypatch.setattr("tasks.train.run_worker", worker)
    with pytest.raises(DeviceUnavailable):
        train.fn(sample_prepared, small_config, tmp_path, "cpu")
    assert calls == ["fashion-mnist-training", "tasks.model.fit"]


def test_a_worker_that_shares_only_the_remote_trains_in_its_own_folder(
    sample_trained: TrainedModel,
    sample_prepared: PreparedData,
    small_config: TrainingConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FASHION_ANN_REMOTE", f"file://{tmp_path}/remote")
    monkeypatch.setenv("FASHION_ANN_ARTIFACTS_DIR", str(tmp_path / "worker"))
    trained = train.fn(sample_prepared, small_config, None)
    assert trained.record.path.parent == tmp_path / "worker" / "trained"
    assert trained.weights_sha256 == sample_trained.weights_sha256
    shutil.rmtree(tmp_path / "worker")  # the run is on another machine
    here = materialize(trained, tmp_path / "run")
    assert sha256_file(here.record.path / "model.weights.h5") == trained.weights_sha256
