"""Epochs: the graph, `fit` and plain Keras do the same steps."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from schemas.config import TrainingConfig
from schemas.contract import FASHION_MNIST
from schemas.references import PreparedData
from tasks.data.splits import open_split
from tasks.model.backend import set_up_backend
from tasks.model.epoch import epoch_runner, row_batches
from tasks.model.network import build_network

pytestmark = pytest.mark.usefixtures("backend")


@pytest.mark.parametrize(
    ("optimizer", "settings"),
    [
        ("AdamW", {}),
        ("Adam", {"label_smoothing": 0.1}),
        ("SGD", {"hidden_units": [32, 16], "activation": "tanh"}),
        ("RMSprop", {}),
    ],
)
def test_each_step_is_that_of_keras(optimizer: str, settings: dict[str, Any], sample_prepared: PreparedData) -> None:
    """Compare weights and moments with those of `train_on_batch` after each of nine steps, the last of one image."""
    import keras

    config = TrainingConfig(dropout=0, **settings)

    train = open_split(sample_prepared.record.path, "train")
    order = np.random.default_rng(0).permutation(900).astype(np.int32)[: 8 * 37 + 1]
    set_up_backend(7)
    networks = [build_network(FASHION_MNIST, config) for _ in range(2)]
    networks[1].set_weights(networks[0].get_weights())
    ours, plain = (
        getattr(keras.optimizers, optimizer)(keras.optimizers.schedules.CosineDecay(4e-3, 20), weight_decay=0.15)
        for _ in range(2)
    )
    loss = keras.losses.CategoricalCrossentropy(label_smoothing=config.label_smoothing)
    networks[1].compile(plain, loss, metrics=["accuracy"])
    run = epoch_runner(networks[0], ours, train, 37, devices=1, label_smoothing=config.label_smoothing)
    for first in range(0, len(order), 37):
        rows = order[first : first + 37]
        pixels = train.images[rows] / np.float32(255)
        networks[1].reset_metrics()
        expected = networks[1].train_on_batch(pixels, np.eye(10)[train.labels[rows]], return_dict=True)
        assert run([rows], lambda done, metrics: None) == pytest.approx(expected, abs=1e-5)
        variables = ([*networks[0].variables, *ours.variables], [*networks[1].variables, *plain.variables])
        for one, other in zip(*variables, strict=True):
            np.testing.assert_allclose(one, other, atol=2e-6, err_msg=one.path)


def test_reports_the_share_and_the_means_so_far(sample_prepared: PreparedData) -> None:
    import keras

    train = open_split(sample_prepared.record.path, "train")
    set_up_backend(7)
    network, optimizer = build_network(FASHION_MNIST, TrainingConfig(dropout=0)), keras.optimizers.SGD(0.0)
    run = epoch_runner(network, optimizer, train, batch_size=7, devices=1)
    seen: list[tuple[float, Mapping[str, float]]] = []
    result = run([np.arange(900, dtype=np.int32)], lambda done, metrics: seen.append((done, metrics)))
    # 126 batches of seven rows, then three of six.
    assert [round(done * 900) for done, _ in seen] == [448, 882, 900]
    assert seen[-1][1] == result


def test_devices_get_equal_shares_and_rows_equal_weight() -> None:
    set_up_backend(0)
    labels = np.arange(10, dtype=np.int32) % 3
    batches = row_batches(np.random.default_rng(0).permutation(10).astype(np.int32), labels, batch_size=4, devices=3)
    received = [batches[place] for place in range(len(batches))]
    assert [len(rows) for rows, _, _ in received] == [6, 3, 3]
    for (rows, labels_of_rows, weights), size in zip(received, (4, 3, 3), strict=True):
        assert labels_of_rows.tolist() == (rows % 3).tolist()
        assert weights.tolist() == [len(rows) / size] * size + [0] * (len(rows) - size)
    assert sorted(np.concatenate([rows[weights > 0] for rows, _, weights in received]).tolist()) == list(range(10))
