import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from schemas.contract import FASHION_MNIST
from schemas.errors import StoredArtifactError
from tasks.model.network import build_network, check_topology, load_network, topology_bytes

pytestmark = pytest.mark.usefixtures("backend")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A valid topology file."""
    path = tmp_path / "topology.json"
    path.write_bytes(topology_bytes(build_network(FASHION_MNIST, dropout=0.2)))
    return path


def test_layers_and_parameters() -> None:
    model = build_network(FASHION_MNIST, dropout=0.2)
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
    model = build_network(FASHION_MNIST, dropout=0.2)
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
    ("place", "values", "message"),
    [
        ((2,), [LAMBDA], r"class keras\.layers\.Lambda"),
        ((1, "config", "kernel_initializer"), [SYSTEM], r"class os\.system"),
        ((1, "registered_name"), ["evil>Dense", "", "Dropout", 1, ["Dense"], {}], "registered as"),
        ((1, "config", "activation"), ["tanh", "", None, 0, [], ["relu"], {}, {"relu": 1}], "contains the activation"),
        ((1, "config", "units"), [10_001, -10_001, 10**12, float("nan"), float("inf")], "declares a size of"),
    ],
    ids=["layer", "initializer", "registered_name", "activation", "units"],
)
def test_rejects_a_foreign_topology(place: tuple[Any, ...], values: list[Any], message: str, path: Path) -> None:
    check_topology(path)
    valid = path.read_bytes()
    for value in values:
        topology = json.loads(valid)
        node = topology["config"]["layers"]
        for key in place[:-1]:
            node = node[key]
        node[place[-1]] = value
        path.write_text(json.dumps(topology))
        with pytest.raises(StoredArtifactError, match=rf"topology\.json .*{message}"):
            load_network(path, path.with_name("never-opened.weights.h5"))


@pytest.mark.parametrize(
    "content",
    [*(b"\x80\x04pickle", b"[]", b"{}", b'{"class_name": {}}'), b'{"class_name": ["Functional"], "module": "keras"}'],
    ids=lambda content: content.decode(errors="replace"),
)
def test_rejects_what_is_no_topology(content: bytes, path: Path) -> None:
    path.write_bytes(content)
    with pytest.raises(StoredArtifactError, match=r"topology\.json"):
        check_topology(path)


def test_rejects_a_topology_of_more_than_a_megabyte(path: Path) -> None:
    path.write_bytes(path.read_bytes().ljust(1_000_001))
    with pytest.raises(StoredArtifactError, match="has 1000001 bytes"):
        check_topology(path)


@pytest.mark.parametrize("content", [b"", pickle.dumps({"hidden": 1}), b"\x89HDF\r\n\x1a\n" + b"\0" * 64])
def test_rejects_unreadable_weights(content: bytes, path: Path) -> None:
    weights = path.with_name("model.weights.h5")
    weights.write_bytes(content)
    with pytest.raises(StoredArtifactError, match=r"model\.weights\.h5 cannot be loaded"):
        load_network(path, weights)


def test_rejects_weights_of_another_shape(path: Path) -> None:
    weights = path.with_name("model.weights.h5")
    build_network(replace(FASHION_MNIST, class_names=("a", "b")), dropout=0.2).save_weights(weights)
    with pytest.raises(StoredArtifactError, match=r"model\.weights\.h5 cannot be loaded"):
        load_network(path, weights)
