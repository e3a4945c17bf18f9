"""Build the network, evaluate it, and load a stored one safely: input, Dense 128 ReLU, Dropout, Dense softmax."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from schemas.contract import DatasetContract
from schemas.errors import StoredArtifactError
from tasks.data.splits import PreparedSplit
from tasks.runtime.files import canonical_json

HIDDEN_UNITS = 128
_BLOCK_ROWS = 1_000  # per call of the backend

# All classes in a topology of this project, as (class name, module). Any other class is rejected before Keras reads the
# file, because deserializing it can run code. Tuples, not sets: a value from the file may be unhashable.
_ALLOWED_CLASSES = (
    ("Functional", "keras.src.models.functional"),
    ("Functional", "keras"),
    ("InputLayer", "keras.layers"),
    ("Dense", "keras.layers"),
    ("Dropout", "keras.layers"),
    ("DTypePolicy", "keras"),
    ("GlorotUniform", "keras.initializers"),
    ("Zeros", "keras.initializers"),
    ("__keras_tensor__", None),
)
_ALLOWED_ACTIVATIONS = ("linear", "relu", "softmax")
# A declared size allocates memory when the model is built: two sizes of 10,000 make 400 MB.
_LARGEST_DIMENSION = 10_000
_LARGEST_TOPOLOGY_BYTES = 1_000_000


def build_network(contract: DatasetContract, dropout: float) -> Any:
    """Return the uncompiled `keras.Model`: float32 (N, pixels) in, float32 (N, classes) probabilities out.

    All layers are named, also the input. Keras numbers unnamed layers, so topologies would differ between processes.
    """
    import keras

    pixels = keras.Input((contract.pixels,), name="pixels")
    hidden = keras.layers.Dense(HIDDEN_UNITS, activation="relu", name="hidden")(pixels)
    hidden = keras.layers.Dropout(dropout, name="dropout")(hidden)
    probabilities = keras.layers.Dense(contract.classes, activation="softmax", name="probabilities")(hidden)
    return keras.Model(pixels, probabilities, name=contract.name.replace("-", "_"))


def evaluate_rows(network: Any, split: PreparedSplit) -> dict[str, float]:
    """Return the loss and metrics of a compiled network by name, equal to those of its ``evaluate``.

    Unlike ``evaluate`` this builds no input pipeline, and normalizes a block of images at a time.
    """
    means: Counter[str] = Counter()
    for rows in _blocks(len(split.labels)):
        labels = split.labels[rows]
        for name, mean in network.test_on_batch(split.scaled(rows), labels, return_dict=True).items():
            means[name] += mean * len(labels) / len(split.labels)
    return dict(means)


def predict_rows(network: Any, split: PreparedSplit) -> npt.NDArray[np.float32]:
    """Return the probabilities of the images of a split, float32 (N, classes)."""
    blocks = _blocks(len(split.images))
    return np.concatenate([np.asarray(network.predict_on_batch(split.scaled(rows))) for rows in blocks])


def _blocks(rows: int) -> Iterator[slice]:
    return (slice(start, start + _BLOCK_ROWS) for start in range(0, rows, _BLOCK_ROWS))


def topology_bytes(model: Any) -> bytes:
    """Return an uncompiled model as canonical JSON. Its sha256 identifies the topology."""
    return canonical_json(json.loads(model.to_json()))


def load_network(topology: Path, weights: Path) -> Any:
    """Load a `keras.Model` from two files. The caller has checked their digests.

    Raises `StoredArtifactError` for a topology with any content that this project does not write, and for files that
    Keras cannot read.
    """
    check_topology(topology)
    import keras

    path = topology
    try:
        model = keras.models.model_from_json(path.read_text(encoding="utf-8"))
        path = weights
        model.load_weights(path)
    except Exception as error:  # Keras may raise any
        message = " ".join(str(error).split())[:300]
        raise StoredArtifactError(f"{path} cannot be loaded: {type(error).__name__}: {message}") from error
    return model


def check_topology(path: Path) -> None:
    """Reject a topology with layers, activations, custom objects or sizes that this project does not write.

    Raises `StoredArtifactError`. Keras is not involved.
    """
    try:
        if path.stat().st_size > _LARGEST_TOPOLOGY_BYTES:
            raise StoredArtifactError(f"{path} has {path.stat().st_size} bytes; expected a few thousand.")
        # In the encoding that Keras reads: in another one the same bytes are another topology.
        topology = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(topology, dict) or "class_name" not in topology:
            raise ValueError("expected an object with a class_name")
    except (OSError, ValueError, RecursionError) as error:
        raise StoredArtifactError(f"{path} cannot be read as a topology ({error}).") from error
    _check_node(topology, path)


def _check_node(node: Any, path: Path) -> None:
    if isinstance(node, dict):
        if "class_name" in node:
            name, module = node["class_name"], node.get("module")
            if (name, module) not in _ALLOWED_CLASSES or node.get("registered_name") not in (None, name):
                raise StoredArtifactError(
                    f"{path} contains the class {module}.{name}, registered as {node.get('registered_name')!r}. "
                    f"Expected only {', '.join(sorted({name for name, _ in _ALLOWED_CLASSES}))}. It was not loaded."
                )
        activation = node.get("activation", "linear")
        if activation not in _ALLOWED_ACTIVATIONS:
            raise StoredArtifactError(
                f"{path} contains the activation {activation!r}. Expected one of {', '.join(_ALLOWED_ACTIVATIONS)}. "
                "It was not loaded."
            )
        for value in node.values():
            _check_node(value, path)
    elif isinstance(node, list):
        for value in node:
            _check_node(value, path)
    elif isinstance(node, int | float) and not isinstance(node, bool) and not abs(node) <= _LARGEST_DIMENSION:
        raise StoredArtifactError(f"{path} declares a size of {node}. Expected at most {_LARGEST_DIMENSION}.")
