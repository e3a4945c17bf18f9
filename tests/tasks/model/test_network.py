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


def test_the_network_is_784_128_10_with_101770_parameters() -> None:
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


def test_probabilities_sum_to_1() -> None:
    model = build_network(FASHION_MNIST, dropout=0.2)
    images = np.random.default_rng(0).random((64, 784), dtype=np.float32)
    probabilities = model.predict(images, verbose=0)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-6)


def test_saved_and_loaded_it_predicts_the_same(tmp_path: Path) -> None:
    model = build_network(FASHION_MNIST, dropout=0.2)
    (tmp_path / "topology.json").write_bytes(topology_bytes(model))
    model.save_weights(tmp_path / "model.weights.h5")
    loaded = load_network(tmp_path / "topology.json", tmp_path / "model.weights.h5")
    images = np.random.default_rng(0).random((64, 784), dtype=np.float32)
    np.testing.assert_array_equal(model.predict(images, verbose=0), loaded.predict(images, verbose=0))


def _lambda(topology: dict[str, Any]) -> None:
    topology["config"]["layers"][2] = {
        "class_name": "Lambda",
        "module": "keras.layers",
        "config": {"name": "dropout", "function": {"class_name": "__lambda__", "config": {"code": "4wEAAAA="}}},
        "registered_name": None,
    }


def _custom_object(topology: dict[str, Any]) -> None:
    topology["config"]["layers"][1]["config"]["kernel_initializer"] = {
        "class_name": "system",
        "module": "os",
        "config": {},
        "registered_name": None,
    }


def _registered(topology: dict[str, Any]) -> None:
    topology["config"]["layers"][1]["registered_name"] = "evil>Dense"


def _activation(topology: dict[str, Any]) -> None:
    topology["config"]["layers"][1]["config"]["activation"] = "tanh"


def _huge(topology: dict[str, Any]) -> None:
    topology["config"]["layers"][1]["config"]["units"] = 10**12


@pytest.mark.parametrize("tamper", [_lambda, _custom_object, _registered, _activation, _huge])
def test_a_topology_that_this_project_does_not_write_is_refused(tmp_path: Path, tamper: Any) -> None:
    topology = json.loads(topology_bytes(build_network(FASHION_MNIST, 0.2)))
    path = tmp_path / "topology.json"
    path.write_text(json.dumps(topology))
    check_topology(path)
    tamper(topology)
    path.write_text(json.dumps(topology))
    with pytest.raises(StoredArtifactError, match=r"topology\.json"):
        load_network(path, tmp_path / "never-opened.weights.h5")


def test_a_topology_that_is_no_json_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "topology.json"
    path.write_bytes(b"\x80\x04pickle")
    with pytest.raises(StoredArtifactError, match="cannot be read"):
        check_topology(path)


def _write(folder: Path, topology: Any) -> None:
    (folder / "topology.json").write_text(json.dumps(topology))


@pytest.mark.parametrize("topology", [[], {}, {"class_name": ["Functional"], "module": "keras"}, {"class_name": {}}])
def test_a_topology_of_another_shape_is_refused_by_name(tmp_path: Path, topology: Any) -> None:
    _write(tmp_path, topology)
    with pytest.raises(StoredArtifactError, match=r"topology\.json"):
        load_network(tmp_path / "topology.json", tmp_path / "model.weights.h5")


@pytest.mark.parametrize("size", [10_001, 1_000_000, float("nan"), float("inf")])
def test_a_huge_size_is_refused_before_it_is_allocated(tmp_path: Path, size: float) -> None:
    topology = json.loads(topology_bytes(build_network(FASHION_MNIST, dropout=0.2)))
    topology["config"]["layers"][1]["config"]["units"] = size
    _write(tmp_path, topology)
    with pytest.raises(StoredArtifactError, match="declares a size"):
        check_topology(tmp_path / "topology.json")


@pytest.mark.parametrize("weights", [b"", pickle.dumps({"hidden": 1}), b"\x89HDF\r\n\x1a\n" + b"\0" * 64])
def test_weights_that_are_none_are_refused_by_name(tmp_path: Path, weights: bytes) -> None:
    (tmp_path / "topology.json").write_bytes(topology_bytes(build_network(FASHION_MNIST, dropout=0.2)))
    (tmp_path / "model.weights.h5").write_bytes(weights)
    with pytest.raises(StoredArtifactError, match=r"model\.weights\.h5 cannot be loaded"):
        load_network(tmp_path / "topology.json", tmp_path / "model.weights.h5")


def test_weights_of_another_shape_are_refused_by_name(tmp_path: Path) -> None:
    model = build_network(replace(FASHION_MNIST, class_names=("a", "b")), dropout=0.2)
    (tmp_path / "topology.json").write_bytes(topology_bytes(build_network(FASHION_MNIST, dropout=0.2)))
    model.save_weights(tmp_path / "model.weights.h5")
    with pytest.raises(StoredArtifactError, match=r"model\.weights\.h5 cannot be loaded"):
        load_network(tmp_path / "topology.json", tmp_path / "model.weights.h5")
