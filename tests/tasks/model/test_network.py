import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from schemas.config import ACTIVATIONS, TrainingConfig
from schemas.contract import FASHION_MNIST
from schemas.errors import StoredArtifactError
from schemas.references import PreparedData
from tasks.data.splits import open_split
from tasks.model.network import (
    Network,
    build_network,
    inactive_units,
    load_network,
    read_network,
    read_weights,
    topology_bytes,
)

pytestmark = pytest.mark.usefixtures("backend")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A valid topology file."""
    path = tmp_path / "topology.json"
    path.write_bytes(topology_bytes(build_network(FASHION_MNIST, TrainingConfig(dropout=0.2))))
    return path


def test_layers_and_parameters() -> None:
    model = build_network(FASHION_MNIST, TrainingConfig(dropout=0.2))
    assert model.count_params() == 101_770
    assert [(type(layer).__name__, layer.name) for layer in model.layers] == [
        ("InputLayer", "pixels"),
        ("Dense", "hidden"),
        ("Dropout", "dropout"),
        ("Dense", "probabilities"),
    ]
    assert model.input_shape == (None, 784)
    assert model.output_shape == (None, 10)
    hidden, dropout, probabilities = model.layers[1:]
    assert (hidden.units, hidden.activation.__name__) == (128, "relu")
    assert dropout.rate == 0.2
    assert (probabilities.units, probabilities.activation.__name__) == (10, "softmax")


def test_a_loaded_network_predicts_like_the_saved_one(path: Path) -> None:
    model = build_network(FASHION_MNIST, TrainingConfig(dropout=0.2))
    weights = path.with_name("model.weights.h5")
    model.save_weights(weights)
    images = np.random.default_rng(0).random((64, 784), dtype=np.float32)
    probabilities = model.predict(images, verbose=0)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(probabilities, load_network(path, weights).predict(images, verbose=0))


CODE = {"class_name": "__lambda__", "config": {"code": "4wEAAAA="}}
LAMBDA = {"class_name": "Lambda", "module": "keras.layers", "config": {"name": "dropout", "function": CODE}}
SYSTEM = {"class_name": "system", "module": "os", "config": {}, "registered_name": None}


@pytest.mark.parametrize(
    "settings",
    [
        *({"dropout": 0.2}, {"dropout": 0}, {"hidden_units": [12, 8]}, {"hidden_units": [3] * 8}),
        *({"activation": name, "hidden_units": 9} for name in ACTIVATIONS),
    ],
    ids=str,
)
def test_a_network_of_every_recipe_is_loaded_again(settings: dict[str, Any], path: Path) -> None:
    config, weights = TrainingConfig(**settings), path.with_name("model.weights.h5")
    model = build_network(FASHION_MNIST, config)
    path.write_bytes(topology_bytes(model))
    model.save_weights(weights)
    assert read_network(path) == Network.of(FASHION_MNIST, config)
    loaded = load_network(path, weights)
    images = np.random.default_rng(0).random((4, 784), dtype=np.float32)
    np.testing.assert_array_equal(loaded.predict_on_batch(images), model.predict_on_batch(images))


def test_counts_the_units_that_are_the_same_for_all_images(sample_prepared: PreparedData) -> None:
    model = build_network(FASHION_MNIST, TrainingConfig(hidden_units=[6, 4], activation="sigmoid"))
    weights = model.get_weights()
    weights[0][:, :2] = 0  # constant, but not 0
    weights[2][:, 3] = 0
    model.set_weights(weights)
    test = open_split(sample_prepared.record.path, "test")
    assert inactive_units(model, test) == {"hidden": 2, "hidden_2": 1}


@pytest.mark.parametrize(
    ("place", "values"),
    [
        ((2,), [LAMBDA, None, []]),
        ((1, "config", "kernel_initializer"), [SYSTEM]),
        ((1, "config", "kernel_regularizer"), [{"class_name": "L2", "module": "keras.regularizers", "config": {}}]),
        ((1, "registered_name"), ["evil>Dense", "Dropout", 1, ["Dense"]]),
        ((1, "config", "activation"), ["linear", "", None, 0, [], ["relu"], {}, {"relu": 1}]),
        ((1, "config", "units"), [129, 10**9, 10**12, "128", None]),
        ((1, "config", "dtype", "config", "name"), ["float64", "mixed_float16"]),
        ((2, "config", "rate"), ["0.2", True, -0.1, 1, [0.2]]),
        ((0, "config", "batch_shape"), [[None, 10**9], [None, 783], [2, 784], [None, 28, 28], [None, True], None]),
        ((3, "config", "units"), [0, -10, 10**9, 10.0, True]),
    ],
    ids=lambda value: ".".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_rejects_a_foreign_topology(place: tuple[Any, ...], values: list[Any], path: Path) -> None:
    valid = path.read_bytes()
    for value in values:
        topology = json.loads(valid)
        node = topology["config"]["layers"]
        for key in place[:-1]:
            node = node[key]
        node[place[-1]] = value
        path.write_text(json.dumps(topology))
        with pytest.raises(StoredArtifactError, match=r"topology\.json .*(expected|cannot be read)"):
            load_network(path, path.with_name("never-opened.weights.h5"))


def test_rejects_forty_more_layers(path: Path) -> None:
    topology = json.loads(path.read_bytes())
    topology["config"]["layers"][2:2] = [topology["config"]["layers"][1]] * 40
    path.write_text(json.dumps(topology))
    with pytest.raises(StoredArtifactError, match=r"topology\.json"):
        read_network(path)


@pytest.mark.parametrize(
    "content",
    [
        *(b"\x80\x04pickle", b"[]", b"{}", b'{"class_name": {}}', b"", b"\xff\xfe{\0}\0", b"[" * 100_000, b"[NaN]"),
        *(b'{"class_name": ["Functional"], "module": "keras"}', b'{"a": 1, "a": 1}', b"1" * 5_000, b"[1e999]"),
    ],
    ids=lambda content: content[:20].decode(errors="replace"),
)
def test_rejects_what_is_no_topology(content: bytes, path: Path) -> None:
    path.write_bytes(content)
    with pytest.raises(StoredArtifactError, match=r"topology\.json"):
        read_network(path)


@pytest.fixture(scope="module")
def valid_weights(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("weights") / "model.weights.h5"
    build_network(FASHION_MNIST, TrainingConfig(dropout=0.2)).save_weights(path)
    return path.read_bytes()


KERNEL = "layers/dense/vars/0"
SHAPE = (784, 128)


def _replace(**dataset: Any) -> Callable[[Any], None]:
    def change(file: Any) -> None:
        del file[KERNEL]
        file.create_dataset(KERNEL, **dataset)

    return change


def _link(link: Callable[[], Any]) -> Callable[[Any], None]:
    def change(file: Any) -> None:
        del file[KERNEL]
        file[KERNEL] = link()

    return change


def _virtual(file: Any) -> None:
    layout = h5py.VirtualLayout(shape=SHAPE, dtype="<f4")
    layout[:] = h5py.VirtualSource("/etc/hostname", "x", shape=SHAPE)
    del file[KERNEL]
    file.create_virtual_dataset(KERNEL, layout)


def _many_groups(file: Any) -> None:
    for number in range(200):
        file.create_group(f"layers/{number}")


WEIGHTS = {
    "no dataset": lambda file: file.__delitem__(KERNEL),
    "a group": lambda file: (file.__delitem__(KERNEL), file.create_group(KERNEL)),
    "gigabytes in chunks": _replace(shape=(784, 1_300_000), dtype="<f4", chunks=(784, 128), compression="gzip"),
    "gigabytes not written": _replace(shape=(784, 1_300_000), dtype="<f4"),
    "2 ** 40 columns": _replace(shape=(784, 2**40), dtype="<f4", chunks=(1, 128)),
    "the right shape in chunks": _replace(shape=SHAPE, dtype="<f4", chunks=SHAPE, compression="gzip"),
    "another type": _replace(shape=SHAPE, dtype="<f8"),
    "another byte order": _replace(shape=SHAPE, dtype=">f4"),
    "a compound": _replace(shape=SHAPE, dtype=np.dtype([("a", "<f4")])),
    "text": _replace(shape=SHAPE, dtype=h5py.string_dtype()),
    "references": _replace(shape=SHAPE, dtype=h5py.ref_dtype),
    "external storage": _replace(shape=SHAPE, dtype="<f4", external=[("/etc/hostname", 0, 401_408)]),
    "a soft link": _link(lambda: h5py.SoftLink("/layers/dense_1/vars/0")),
    "an external link": _link(lambda: h5py.ExternalLink("/etc/hostname", "x")),
    "a virtual dataset": _virtual,
    "a further dataset": lambda file: file.create_dataset("evil", shape=(2**30,), dtype="<f4", chunks=(9,)),
    "many groups": _many_groups,
}


@pytest.mark.parametrize("change", WEIGHTS.values(), ids=WEIGHTS)
def test_rejects_weights_of_another_kind(change: Callable[[Any], Any], path: Path, valid_weights: bytes) -> None:
    weights = path.with_name("model.weights.h5")
    weights.write_bytes(valid_weights)
    network = read_network(path)
    assert [value.shape for value in read_weights(weights, network)] == [SHAPE, (128,), (128, 10), (10,)]
    with h5py.File(weights, "r+") as file:
        change(file)
    with pytest.raises(StoredArtifactError, match=r"model\.weights\.h5"):
        read_weights(weights, network)


@pytest.mark.parametrize("content", [b"", pickle.dumps({"hidden": 1}), b"\x89HDF\r\n\x1a\n" + b"\0" * 64])
def test_rejects_unreadable_weights(content: bytes, path: Path) -> None:
    weights = path.with_name("model.weights.h5")
    weights.write_bytes(content)
    with pytest.raises(StoredArtifactError, match=r"model\.weights\.h5 cannot be loaded"):
        load_network(path, weights)


def test_rejects_weights_of_another_shape(path: Path) -> None:
    weights = path.with_name("model.weights.h5")
    build_network(replace(FASHION_MNIST, labels=dict(enumerate("ab"))), TrainingConfig(dropout=0.2)).save_weights(
        weights
    )
    with pytest.raises(StoredArtifactError, match=r"model\.weights\.h5 cannot be loaded"):
        load_network(path, weights)
