"""The network: input, Dense 128 ReLU, Dropout, Dense softmax. Built, spelled as canonical JSON, read back safely."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from schemas.contract import DatasetContract
from schemas.errors import StoredArtifactError
from tasks.runtime.files import canonical_json

HIDDEN_UNITS = 128
# What one call judges or predicts.
_ROWS_AT_ONCE = 1_000

# All that a topology of this project is made of, as (class name, module). Reading any other class is refused before
# Keras sees it: deserializing one can run code.
_ALLOWED_CLASSES = frozenset(
    {
        ("Functional", "keras.src.models.functional"),
        ("Functional", "keras"),
        ("InputLayer", "keras.layers"),
        ("Dense", "keras.layers"),
        ("Dropout", "keras.layers"),
        ("DTypePolicy", "keras"),
        ("GlorotUniform", "keras.initializers"),
        ("Zeros", "keras.initializers"),
        ("__keras_tensor__", None),
    }
)
_ALLOWED_ACTIVATIONS = frozenset({"relu", "softmax", "linear"})
# A declared shape allocates memory when the model is built; two of these make 400 MB.
_LARGEST_DIMENSION = 10_000
_LARGEST_TOPOLOGY_BYTES = 1_000_000


def build_network(contract: DatasetContract, dropout: float) -> Any:
    """The uncompiled `keras.Model`: float32 (N, pixels) in, float32 (N, classes) probabilities out.

    Every layer is named, the input too: a name that Keras counts up would make the topology differ between processes.
    """
    import keras

    pixels = keras.Input((contract.pixels,), name="pixels")
    hidden = keras.layers.Dense(HIDDEN_UNITS, activation="relu", name="hidden")(pixels)
    hidden = keras.layers.Dropout(dropout, name="dropout")(hidden)
    probabilities = keras.layers.Dense(contract.classes, activation="softmax", name="probabilities")(hidden)
    return keras.Model(pixels, probabilities, name=contract.name.replace("-", "_"))


def evaluate_rows(network: Any, images: npt.NDArray[np.float32], labels: npt.NDArray[np.int32]) -> dict[str, float]:
    """Loss and the metrics that a compiled network has, by name, as its ``evaluate`` gives them.

    images: float32 (N, pixels) in [0, 1]; labels: int32 (N,). Without the input pipeline that Keras builds for each
    evaluation, and without a second copy of all images.
    """
    means: Counter[str] = Counter()
    for rows in _blocks(len(labels)):
        for name, mean in network.test_on_batch(images[rows], labels[rows], return_dict=True).items():
            means[name] += mean * len(labels[rows]) / len(labels)
    return dict(means)


def predict_rows(network: Any, images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Probabilities float32 (N, classes) of images float32 (N, pixels) in [0, 1], at as little cost."""
    return np.concatenate([np.asarray(network.predict_on_batch(images[rows])) for rows in _blocks(len(images))])


def _blocks(rows: int) -> Iterator[slice]:
    return (slice(start, start + _ROWS_AT_ONCE) for start in range(0, rows, _ROWS_AT_ONCE))


def topology_bytes(model: Any) -> bytes:
    """Canonical JSON of an uncompiled model; its sha256 is the topology's identity."""
    return canonical_json(json.loads(model.to_json()))


def load_network(topology: Path, weights: Path) -> Any:
    """The `keras.Model` of two files whose digests the caller has checked.

    Raises `StoredArtifactError` for a topology with anything in it that this project does not write, and for files
    that Keras cannot read.
    """
    check_topology(topology)
    import keras

    model = _read_by_keras(topology, lambda: keras.models.model_from_json(topology.read_text(encoding="utf-8")))
    _read_by_keras(weights, lambda: model.load_weights(weights))
    return model


def _read_by_keras(path: Path, read: Callable[[], Any]) -> Any:
    """What ``read`` returns. Keras raises anything for a file that it does not understand; ours names the file."""
    try:
        return read()
    except Exception as error:
        words = " ".join(str(error).split())[:300]
        raise StoredArtifactError(f"{path} cannot be loaded: {type(error).__name__}: {words}") from error


def check_topology(path: Path) -> None:
    """Refuse layers, activations, custom objects and sizes that are not ours, without asking Keras."""
    try:
        if path.stat().st_size > _LARGEST_TOPOLOGY_BYTES:
            raise StoredArtifactError(f"{path} has {path.stat().st_size} bytes, a topology has a few thousand.")
        # As Keras will read it: bytes in another encoding are another topology.
        topology = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(topology, dict) or "class_name" not in topology:
            raise ValueError("an object with a class_name was expected")
    except (OSError, ValueError, RecursionError) as error:
        raise StoredArtifactError(f"{path} cannot be read as a topology ({error}).") from error
    _check_node(topology, path)


def _check_node(node: Any, path: Path) -> None:
    if isinstance(node, dict):
        if "class_name" in node:
            found = (node["class_name"], node.get("module"))
            # A list of both, since what is no text cannot be looked up in a set.
            if found not in list(_ALLOWED_CLASSES) or node.get("registered_name") not in (None, node["class_name"]):
                raise StoredArtifactError(
                    f"{path} holds {found[1]}.{found[0]}. Expected only "
                    f"{', '.join(sorted({name for name, _ in _ALLOWED_CLASSES}))}; it was not loaded."
                )
        activation = node.get("activation", "linear")
        if not isinstance(activation, str) or activation not in _ALLOWED_ACTIVATIONS:
            raise StoredArtifactError(
                f"{path} holds the activation {activation!r}. Expected one of {sorted(_ALLOWED_ACTIVATIONS)}."
            )
        for value in node.values():
            _check_node(value, path)
    elif isinstance(node, list):
        for value in node:
            _check_node(value, path)
    elif isinstance(node, int | float) and not isinstance(node, bool) and not abs(node) <= _LARGEST_DIMENSION:
        raise StoredArtifactError(f"{path} declares a size of {node}; at most {_LARGEST_DIMENSION} is loaded.")
