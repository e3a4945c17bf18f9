import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from schemas.config import TrainingConfig
from schemas.contract import FASHION_MNIST, DatasetContract
from schemas.errors import DeviceUnavailable
from schemas.references import PreparedData, TrainedModel
from tasks.model.backend import gpu_driver_present, set_up_backend
from tasks.model.fit import (
    EpochMetrics,
    _as_bytes,
    _State,
    batch_size_for,
    fit_network,
    learning_rate_schedule,
    main,
    row_batches,
)
from tasks.model.network import build_network, evaluate_rows, load_network
from tasks.runtime.files import sha256_file
from tasks.train import is_trained, train

pytestmark = pytest.mark.usefixtures("in_this_process")
without_a_gpu = pytest.mark.skipif(gpu_driver_present(), reason="says what a machine without a GPU does")

Arrays = tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]]


def _split(prepared: PreparedData, name: str) -> Arrays:
    return np.load(prepared.record.path / f"{name}_images.npy"), np.load(prepared.record.path / f"{name}_labels.npy")


@pytest.fixture(scope="module")
def fit(sample_prepared: PreparedData, small_config: TrainingConfig) -> Callable[..., tuple[Any, list[EpochMetrics]]]:
    def run(config: TrainingConfig = small_config, **options: Any) -> tuple[Any, list[EpochMetrics]]:
        set_up_backend(config.seed)
        return fit_network(
            FASHION_MNIST, config, _split(sample_prepared, "train"), _split(sample_prepared, "validation"), **options
        )

    return run


# A learning rate that soon overshoots on 900 images.
STOPS_EARLY = TrainingConfig(
    epochs=60, batch_size=64, learning_rate=0.03, weight_decay=0, dropout=0.1, early_stopping=2, seed=7
)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of each epoch of `stopped_early`, under its number: what a run that is killed then leaves."""
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="module")
def stopped_early(
    fit: Callable[..., tuple[Any, list[EpochMetrics]]], checkpoints: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Any, list[EpochMetrics]]:
    checkpoint = tmp_path_factory.mktemp("checkpoint") / "checkpoint.npz"

    def keep(epoch: int, _: EpochMetrics) -> None:
        shutil.copy(checkpoint, checkpoints / f"{epoch}.npz")

    return fit(STOPS_EARLY, checkpoint=checkpoint, on_epoch=keep)


def _weights(model: Any) -> list[bytes]:
    return [array.tobytes() for array in model.get_weights()]


def test_32_images_are_learned_by_heart(sample_prepared: PreparedData) -> None:
    images, labels = _split(sample_prepared, "train")
    few = images[::28][:32], labels[::28][:32]
    many_times = np.tile(few[0], (20, 1)), np.tile(few[1], 20)
    config = TrainingConfig(epochs=3, batch_size=16, learning_rate=5e-3, weight_decay=0, dropout=0)
    set_up_backend(config.seed)
    _, history = fit_network(FASHION_MNIST, config, many_times, few)
    assert history[-1]["val_accuracy"] == 1.0
    assert history[-1]["val_loss"] < 0.05


def test_training_lowers_the_loss(sample_trained: TrainedModel) -> None:
    history = json.loads((sample_trained.record.path / "history.json").read_bytes())
    assert len(history) == 3
    assert history[-1]["val_loss"] < history[0]["val_loss"] < 2.3  # 2.3 is the loss of a guess: ln 10


def _empty(path: Path) -> None:
    path.touch()


def _cut_off(path: Path) -> None:
    path.write_bytes(b"PK\x03\x04 cut off")


def _of_another_network(path: Path) -> None:
    """Whole, with what belongs to this network first and a variable of another shape last."""
    network = build_network(FASHION_MNIST, dropout=0)
    values = [np.ones(variable.shape, np.float32) for variable in network.variables]
    arrays = {f"{place:02d}": value for place, value in enumerate([*values, np.ones(3, np.float32)])}
    history = json.dumps([{"val_loss": 1.0}]).encode()
    np.savez(path, **arrays, **{"best.00": values[0], "history": np.frombuffer(history, np.uint8)})


@pytest.mark.parametrize("damage", [_empty, _cut_off, _of_another_network])
def test_of_a_damaged_checkpoint_nothing_is_taken(
    damage: Callable[[Path], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint = tmp_path / "checkpoint.npz"
    damage(checkpoint)
    network, other = (build_network(FASHION_MNIST, dropout=0) for _ in range(2))
    # A variable stands for the optimizer's.
    state = _State(network, SimpleNamespace(variables=other.variables[:1]), checkpoint)
    before = [np.array(variable) for variable in state._variables().values()]
    state.restore()
    assert f"{checkpoint} is damaged, training starts anew" in caplog.text
    assert (state.history, state.best) == ([], {})
    for value, was in zip(state._variables().values(), before, strict=True):
        np.testing.assert_array_equal(value, was)


class _Stopped(Exception):
    pass


def test_another_seed_gives_other_first_weights_and_another_order_of_each_epoch() -> None:
    weights, orders = [], []
    for seed in (7, 9):
        set_up_backend(seed)
        weights.append(_weights(build_network(FASHION_MNIST, dropout=0)))
        batches = row_batches(np.zeros(100, np.int32), TrainingConfig(seed=seed))
        for epoch in range(2):
            batches.shuffle(epoch)
            orders.append(tuple(batches.order))
    assert weights[0] != weights[1]
    assert len(set(orders)) == 4


def test_the_process_that_trains_is_set_up_for_the_seed_and_the_device_of_its_job(
    sample_prepared: PreparedData, small_config: TrainingConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[tuple[int, str]] = []

    def told(seed: int, device: str) -> None:
        given.append((seed, device))
        raise _Stopped

    monkeypatch.setattr("tasks.model.fit.set_up_backend", told)
    places = {"folder": tmp_path, "checkpoint": tmp_path / "checkpoint.npz", "prepared": sample_prepared.record.path}
    job = {"dataset": "fashion-mnist", "training": small_config.model_dump(), "device": "cpu", **places}
    with pytest.raises(_Stopped):
        main(job, lambda event: None)
    assert given == [(7, "cpu")]


def test_early_stopping_keeps_the_best_epoch(
    stopped_early: tuple[Any, list[EpochMetrics]], sample_prepared: PreparedData
) -> None:
    model, history = stopped_early
    losses = [figures["val_loss"] for figures in history]
    assert len(history) < 60
    assert len(losses) - 1 - losses.index(min(losses)) == 2
    images, labels = _split(sample_prepared, "validation")
    assert model.evaluate(images, labels, batch_size=1_000, verbose=0)[0] == pytest.approx(min(losses), rel=1e-5)


def test_training_resumed_from_its_checkpoint_is_that_of_a_run_that_was_never_stopped(
    fit: Callable[..., tuple[Any, list[EpochMetrics]]],
    stopped_early: tuple[Any, list[EpochMetrics]],
    checkpoints: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    uninterrupted, figures = stopped_early
    last = len(figures)
    epochs: list[int] = []
    orders: list[int] = []

    def watched(labels: npt.NDArray[np.int32], config: TrainingConfig) -> Any:
        batches = row_batches(labels, config)
        shuffle = batches.shuffle

        def note(epoch: int) -> None:
            orders.append(epoch)
            shuffle(epoch)

        batches.shuffle = note
        return batches

    monkeypatch.setattr("tasks.model.fit.row_batches", watched)
    # Stopped one epoch before the last: the best one is two before it, so it is over.
    checkpoint = tmp_path / "checkpoint.npz"
    shutil.copy(checkpoints / f"{last - 1}.npz", checkpoint)
    resumed, history = fit(STOPS_EARLY, checkpoint=checkpoint, on_epoch=lambda epoch, _: epochs.append(epoch))
    assert (epochs, orders) == ([last], [last - 1])  # the epoch's own order, whoever trains it
    assert _weights(resumed) == _weights(uninterrupted)
    assert [{**one, "seconds": 0} for one in history] == [{**one, "seconds": 0} for one in figures]
    # Stopped after the last epoch and before the stage was written: nothing is left to train.
    over, once_more = fit(STOPS_EARLY, checkpoint=checkpoint)
    assert once_more == history
    assert _weights(over) == _weights(uninterrupted)


def test_network_and_optimizer_are_made_as_configured(
    fit: Callable[..., tuple[Any, list[EpochMetrics]]], small_config: TrainingConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    import keras

    config = small_config.model_copy(update={"weight_decay": 0.25, "dropout": 0.3})
    rates: list[float] = []

    def built(contract: DatasetContract, dropout: float) -> Any:
        rates.append(dropout)
        return build_network(contract, dropout)

    def told(schedule: Any, weight_decay: float) -> None:
        assert schedule.get_config() == learning_rate_schedule(config, steps=25).get_config()  # 900 rows, 36 each
        assert weight_decay == 0.25
        raise _Stopped

    monkeypatch.setattr("tasks.model.fit.build_network", built)
    monkeypatch.setattr(keras.optimizers, "AdamW", told)
    with pytest.raises(_Stopped):
        fit(config)
    assert rates == [0.3]


def test_validation_figures_are_those_of_keras_over_all_rows(
    stopped_early: tuple[Any, list[EpochMetrics]], sample_prepared: PreparedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.model.network._ROWS_AT_ONCE", 64)  # of 100 rows: two calls of unlike size
    network, _ = stopped_early
    images, labels = _split(sample_prepared, "validation")
    expected = network.evaluate(images, labels, verbose=0, return_dict=True)
    assert evaluate_rows(network, images, labels) == pytest.approx(expected, abs=1e-5)


def test_images_become_bytes_and_back_without_a_difference() -> None:
    images = np.arange(256, dtype=np.uint8).reshape(4, 64)
    scaled = images / np.float32(255)
    assert scaled.dtype == np.float32
    assert np.array_equal(_as_bytes(scaled, 255), images)
    scaled[2, 5] += 1e-4
    with pytest.raises(ValueError, match="256 levels"):
        _as_bytes(scaled, 255)


def test_of_a_mapped_file_nothing_stays_in_memory_once_it_is_bytes(tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", np.ones((4_000, 784), np.float32))

    def mapped() -> int:
        """KB of the file that are in memory."""
        entry = Path("/proc/self/smaps").read_text().partition("images.npy\n")[2]
        return int(entry.partition("Rss:")[2].split()[0])

    images = np.load(tmp_path / "images.npy", mmap_mode="r")
    assert images.sum() == images.size
    assert mapped() > 10_000
    assert _as_bytes(images, 255).min() == 255
    assert mapped() < 1_000


def test_the_learning_rate_warms_up_and_falls_to_zero() -> None:
    config = TrainingConfig(epochs=5, learning_rate=0.01)
    schedule = learning_rate_schedule(config, 10)
    rates = [float(schedule(step)) for step in (0, 10, 30, 50)]
    assert rates == pytest.approx([0.001, 0.01, 0.005, 0.0], abs=1e-6)


def test_one_epoch_starts_at_the_peak() -> None:
    schedule = learning_rate_schedule(TrainingConfig(epochs=1, learning_rate=0.01), 10)
    assert float(schedule(0)) == pytest.approx(0.01)


@without_a_gpu
def test_the_stage_keeps_topology_weights_and_history(
    sample_trained: TrainedModel, sample_prepared: PreparedData, small_config: TrainingConfig, sample_artifacts: Path
) -> None:
    folder = sample_trained.record.path
    assert sha256_file(folder / "topology.json") == sample_trained.topology_sha256
    assert sha256_file(folder / "model.weights.h5") == sample_trained.weights_sha256
    history = json.loads((folder / "history.json").read_bytes())
    assert len(history) == sample_trained.epochs_run == 3
    assert (sample_trained.device.kind, sample_trained.device.backend) == ("cpu", "tensorflow")
    model = load_network(folder / "topology.json", folder / "model.weights.h5")
    assert model.count_params() == 101_770
    images, labels = _split(sample_prepared, "validation")
    right = model.predict(images, verbose=0).argmax(axis=1) == labels
    assert history[-1]["val_accuracy"] == pytest.approx(right.mean())
    assert not list((sample_artifacts / "checkpoints").glob(f"*{sample_trained.record.key}*"))
    assert train.fn(sample_prepared, small_config, sample_artifacts).record.reused


@without_a_gpu
def test_what_is_trained_is_known_by_all_that_it_depends_on(
    sample_trained: TrainedModel, sample_prepared: PreparedData, small_config: TrainingConfig, sample_artifacts: Path
) -> None:
    assert is_trained(sample_prepared, small_config, sample_artifacts)
    assert is_trained(sample_prepared, small_config, sample_artifacts, "cpu")
    assert not is_trained(sample_prepared, small_config, sample_artifacts, "gpu")
    assert not is_trained(sample_prepared, small_config.model_copy(update={"seed": 77}), sample_artifacts, "cpu")
    other = sample_prepared.record.model_copy(update={"digest": "0" * 64})
    changed = sample_prepared.model_copy(update={"record": other})
    assert not is_trained(changed, small_config, sample_artifacts, "cpu")
    assert not is_trained(sample_prepared, small_config, sample_artifacts / "elsewhere", "cpu")


@without_a_gpu
def test_the_cpu_where_there_is_nothing_else_is_what_auto_comes_to(
    sample_trained: TrainedModel,
    sample_prepared: PreparedData,
    small_config: TrainingConfig,
    sample_artifacts: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert train.fn(sample_prepared, small_config, sample_artifacts, "cpu").record == sample_trained.record.model_copy(
        update={"reused": True}
    )
    # A driver, and nothing behind it that the backend can use.
    monkeypatch.setattr("tasks.train.gpu_driver_present", lambda: True)
    again = train.fn(sample_prepared, small_config, sample_artifacts)
    assert again.record.key == sample_trained.record.key
    assert "A GPU was demanded" in caplog.text


@without_a_gpu
def test_a_gpu_that_is_not_there_is_refused_before_the_first_epoch_and_not_replaced_by_what_a_cpu_made(
    sample_trained: TrainedModel, sample_prepared: PreparedData, small_config: TrainingConfig, tmp_path: Path
) -> None:
    by_a_cpu = sample_trained.record.path
    shutil.copytree(by_a_cpu, tmp_path / "trained" / by_a_cpu.name)
    assert train.fn(sample_prepared, small_config, tmp_path, "cpu").record.reused
    with pytest.raises(DeviceUnavailable, match="nvidia-smi"):
        train.fn(sample_prepared, small_config, tmp_path, "gpu")
    assert [path.name for path in (tmp_path / "trained").iterdir() if path.suffix != ".lock"] == [by_a_cpu.name]
    assert list((tmp_path / "checkpoints").iterdir()) == []


@pytest.mark.parametrize(
    ("rows", "batch_size", "expected"),
    [
        pytest.param(55_000, 256, 256, id="many rows: as configured"),
        pytest.param(6_400, 256, 256, id="25 steps exactly"),
        pytest.param(6_399, 256, 255, id="one row less"),
        pytest.param(800, 256, 32, id="few rows: 25 steps"),
        pytest.param(100, 256, 16, id="16 images at least"),
        pytest.param(100, 8, 8, id="never more than configured"),
    ],
)
def test_a_small_split_gets_enough_steps(rows: int, batch_size: int, expected: int) -> None:
    config = TrainingConfig(batch_size=batch_size)
    assert batch_size_for(rows, config) == expected
    assert len(row_batches(np.zeros(rows, np.int32), config)) == -(-rows // expected)


def test_progress_is_shown_before_the_process_that_trains_is_started(
    sample_prepared: PreparedData, small_config: TrainingConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It imports the backend and compiles the network for seconds, in which whoever watches wants to see something."""
    seen: list[str] = []

    @contextmanager
    def progress(key: str, description: str) -> Iterator[Callable[[float], None]]:
        seen.append(key)
        yield lambda share: None

    @contextmanager
    def process(module: str, job: dict[str, Any]) -> Iterator[Any]:
        seen.append(module)
        raise DeviceUnavailable("for this test")
        yield

    monkeypatch.setattr("tasks.train.publish_progress", progress)
    monkeypatch.setattr("tasks.train.run_worker", process)
    with pytest.raises(DeviceUnavailable):
        train.fn(sample_prepared, small_config, tmp_path, "cpu")
    assert seen == ["fashion-mnist-training", "tasks.model.fit"]
