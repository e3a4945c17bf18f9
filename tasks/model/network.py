"""Build the network, evaluate it, and load a stored one safely: hidden layers with Dropout, then Dense softmax.

A stored network is built from code, not from its files. Before Keras is imported, and before memory of a declared size
is allocated, the files are compared with that code: anyone who can write them can write matching digests, too.
"""

import io
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from schemas.config import ACTIVATIONS, HIDDEN_LAYERS, LARGEST_LAYER, TrainingConfig
from schemas.contract import DatasetContract
from schemas.errors import StoredArtifactError
from tasks.data.splits import PreparedSplit, scale_pixels
from tasks.runtime.files import canonical_json
from tasks.runtime.stored_file import read_json, read_stored

_BLOCK_ROWS = 1_000  # per call of the backend

# The most pixels or classes that a stored topology may have.
_LARGEST_DIMENSION = 10_000
# Keras adds 18 kB of names to the weights.
_LARGEST_OVERHEAD = 200_000
_MOST_OBJECTS = 64


@dataclass(frozen=True)
class Network:
    """A network of this project, and what its files contain. ``dropout``: share of hidden activations set to 0."""

    name: str
    pixels: int
    classes: int
    hidden_units: tuple[int, ...]
    activation: str
    dropout: float

    @classmethod
    def of(cls, contract: DatasetContract, config: TrainingConfig) -> "Network":
        name = contract.name.replace("-", "_")
        return cls(name, contract.pixels, contract.classes, config.layer_units, config.activation, config.dropout)

    def build(self) -> Any:
        """Return the uncompiled `keras.Model`, see `build_network`."""
        import keras

        pixels = keras.Input((self.pixels,), name="pixels")
        hidden = pixels
        for suffix, units in self._hidden_layers():
            hidden = keras.layers.Dense(units, activation=self.activation, name=f"hidden{suffix}")(hidden)
            hidden = keras.layers.Dropout(self.dropout, name=f"dropout{suffix}")(hidden)
        probabilities = keras.layers.Dense(self.classes, activation="softmax", name="probabilities")(hidden)
        return keras.Model(pixels, probabilities, name=self.name)

    def weights(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of each dataset in the weights by its path, in the order of `keras.Model.set_weights`."""
        sizes = (self.pixels, *self.hidden_units, self.classes)
        shapes: dict[str, tuple[int, ...]] = {}
        for number, (inputs, units) in enumerate(pairwise(sizes)):
            layer = f"layers/dense_{number}" if number else "layers/dense"
            shapes |= {f"{layer}/vars/0": (inputs, units), f"{layer}/vars/1": (units,)}
        return shapes

    def _hidden_layers(self) -> Iterator[tuple[str, int]]:
        """Yield the suffix of the names, empty for the first, and the units of each hidden layer."""
        for number, units in enumerate(self.hidden_units, start=1):
            yield f"_{number}" if number > 1 else "", units

    def topology(self) -> dict[str, Any]:
        """Return the topology that Keras writes, without the keys that are null, false or empty."""
        dtype = {"class_name": "DTypePolicy", "config": {"name": "float32"}, "module": "keras"}

        def layer(kind: str, name: str, before: tuple[str, int], config: dict[str, Any]) -> dict[str, Any]:
            tensor = {"dtype": "float32", "keras_history": [before[0], 0, 0], "shape": [None, before[1]]}
            return {
                "class_name": kind,
                "config": {"dtype": dtype, "name": name, "trainable": True, **config},
                "inbound_nodes": [{"args": [{"class_name": "__keras_tensor__", "config": tensor}]}],
                "module": "keras.layers",
                "name": name,
            }

        def dense(name: str, before: tuple[str, int], units: int, activation: str) -> dict[str, Any]:
            config = {
                "activation": activation,
                "bias_initializer": {"class_name": "Zeros", "module": "keras.initializers"},
                "kernel_initializer": {"class_name": "GlorotUniform", "module": "keras.initializers"},
                "units": units,
                "use_bias": True,
            }
            built = {"build_config": {"input_shape": [None, before[1]]}}
            return {**layer("Dense", name, before, config), **built}

        images = {
            "class_name": "InputLayer",
            "config": {"batch_shape": [None, self.pixels], "dtype": "float32", "name": "pixels"},
            "module": "keras.layers",
            "name": "pixels",
        }
        layers, before = [images], ("pixels", self.pixels)
        for suffix, units in self._hidden_layers():
            layers.append(dense(f"hidden{suffix}", before, units, self.activation))
            layers.append(layer("Dropout", f"dropout{suffix}", (f"hidden{suffix}", units), {"rate": self.dropout}))
            before = f"dropout{suffix}", units
        layers.append(dense("probabilities", before, self.classes, "softmax"))
        ends = {"input_layers": ["pixels", 0, 0], "output_layers": ["probabilities", 0, 0]}
        return {
            "class_name": "Functional",
            "config": {"layers": layers, "name": self.name, "trainable": True, **ends},
            "module": "keras.src.models.functional",
            "registered_name": "Functional",
        }


def build_network(contract: DatasetContract, config: TrainingConfig) -> Any:
    """Return the uncompiled `keras.Model`: float32 (N, pixels) in, float32 (N, classes) probabilities out.

    All layers are named, also the input. Keras numbers unnamed layers, so topologies would differ between processes.
    """
    return Network.of(contract, config).build()


def evaluate_rows(network: Any, split: PreparedSplit) -> dict[str, float]:
    """Return the loss and accuracy of a network by name, equal to those of Keras's ``evaluate``.

    Unlike ``evaluate`` it normalizes a block at a time, and compiles no graph, which would take longer than it saves.
    """
    import keras

    probabilities, loss = predict_rows(network, split)
    hits = keras.metrics.sparse_categorical_accuracy(split.labels, probabilities)
    return {"loss": loss, "accuracy": float(keras.ops.mean(hits))}


def predict_rows(network: Any, split: PreparedSplit) -> tuple[npt.NDArray[np.float32], float]:
    """Return the probabilities of the images of a split, float32 (N, classes), and the mean loss.

    They equal those of ``predict_on_batch`` and of Keras's ``evaluate``, without the compilation of a graph for each.
    """
    import keras

    probabilities, loss = [], 0.0
    for rows, images in _blocks(split):
        block = network(images, training=False)
        loss += float(keras.ops.sum(keras.losses.sparse_categorical_crossentropy(split.labels[rows], block)))
        probabilities.append(np.asarray(block))
    return np.concatenate(probabilities), loss / len(split.labels)


def inactive_units(network: Any, split: PreparedSplit) -> dict[str, int]:
    """Return the number of units of each hidden layer whose output is the same for all images of a split."""
    import keras

    layers = [layer for layer in network.layers if layer.name.startswith("hidden")]
    lowest, highest = ([np.full(layer.units, start) for layer in layers] for start in (np.inf, -np.inf))
    values: Any
    for _, values in _blocks(split):
        for place, layer in enumerate(layers):
            values = layer(values)  # without a graph, which would take longer to trace than it saves
            outputs = keras.ops.convert_to_numpy(values)
            lowest[place] = np.minimum(lowest[place], outputs.min(axis=0))
            highest[place] = np.maximum(highest[place], outputs.max(axis=0))
    return {layer.name: int((low == high).sum()) for layer, low, high in zip(layers, lowest, highest, strict=True)}


def _blocks(split: PreparedSplit) -> Iterator[tuple[slice, npt.NDArray[np.float32]]]:
    """Yield the places of each block of images, and its images, float32 (n, pixels) in [0, 1]."""
    return ((rows, scale_pixels(images, split.scale)) for rows, images in split.images.blocks(_BLOCK_ROWS))


def topology_bytes(model: Any) -> bytes:
    """Return an uncompiled model as canonical JSON. Its sha256 identifies the topology."""
    return canonical_json(json.loads(model.to_json()))


def load_network(topology: Path, weights: Path, digests: Mapping[str, str] | None = None) -> Any:
    """Load a `keras.Model` from two files. Their bytes have the ``digests``, the sha256 by file name, if any is given.

    Raises `StoredArtifactError` as `read_network` and `read_weights` do.
    """
    network = read_network(topology, digests)
    values = read_weights(weights, network, digests)
    model = network.build()
    model.set_weights(values)
    return model


def read_network(topology: Path, digests: Mapping[str, str] | None = None) -> Network:
    """Return the network that a topology describes. Keras is not involved.

    Raises `StoredArtifactError` for another topology than this project writes, with the first difference.
    """
    received = _without_defaults(read_json(topology, (digests or {}).get(topology.name)))
    try:
        layers = received["config"]["layers"]
        sizes = layers[0]["config"]["batch_shape"][1], layers[-1]["config"]["units"]
        hidden = tuple(layer["config"]["units"] for layer in layers[1:-1:2])
        activation, dropout = layers[1]["config"]["activation"], layers[2]["config"].get("rate", 0)
        if not (
            all(type(size) is int and 0 < size <= _LARGEST_DIMENSION for size in sizes)
            and all(type(units) is int and 0 < units <= LARGEST_LAYER for units in hidden)
            and len(hidden) <= HIDDEN_LAYERS
            and type(dropout) in (int, float)
            and 0 <= dropout < 1
            and activation in ACTIVATIONS
        ):
            raise ValueError(
                f"it declares {sizes[0]!r:.40} pixels, {sizes[1]!r:.40} classes, hidden units {hidden!r:.80}, "
                f"activation {activation!r:.40} and dropout {dropout!r:.40}; expected whole numbers up to "
                f"{_LARGEST_DIMENSION}, at most {HIDDEN_LAYERS} hidden layers of up to {LARGEST_LAYER} units, "
                f"one of {', '.join(ACTIVATIONS)} and a share below 1"
            )
        network = Network(received["config"]["name"], *sizes, hidden, activation, dropout)
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        raise StoredArtifactError(
            f"{topology} cannot be read as a topology of this project ({type(error).__name__}: {error!s:.300})."
        ) from error
    expected = _without_defaults(network.topology())
    if received != expected:
        difference = _first_difference(expected, received)
        raise StoredArtifactError(f"{topology} is another network than this project trains. {difference}")
    return network


def _without_defaults(value: Any) -> Any:
    """Return JSON without keys that are null, false, zero or empty: releases of Keras add such keys."""
    if isinstance(value, dict):
        kept = {key: _without_defaults(entry) for key, entry in value.items()}
        return {key: entry for key, entry in kept.items() if entry}
    return [_without_defaults(entry) for entry in value] if isinstance(value, list) else value


def _first_difference(expected: Any, received: Any, place: str = "topology") -> str:
    children: list[tuple[Any, Any, Any]] = []
    if isinstance(expected, dict) and isinstance(received, dict):
        children = [(key, expected.get(key), received.get(key)) for key in sorted({*expected, *received})]
    elif isinstance(expected, list) and isinstance(received, list) and len(expected) == len(received):
        children = [(index, *pair) for index, pair in enumerate(zip(expected, received, strict=True))]
    for key, one, other in children:
        if one != other:
            return _first_difference(one, other, f"{place}.{key}")
    return f"{place}: expected {expected!r:.100}, received {received!r:.100}."


def read_weights(
    path: Path, network: Network, digests: Mapping[str, str] | None = None
) -> list[npt.NDArray[np.float32]]:
    """Return the weights of a network, float32, in the order of `keras.Model.set_weights`. Keras is not involved.

    Raises `StoredArtifactError` unless the file has the datasets of the network, each stored as plain numbers: a link,
    a filter or another layout could lead out of the file, or declare more than it contains.
    """
    shapes = network.weights()
    largest = sum(4 * math.prod(shape) for shape in shapes.values()) + _LARGEST_OVERHEAD
    content = read_stored(path, (digests or {}).get(path.name), largest)
    import h5py

    try:
        with h5py.File(io.BytesIO(content), "r") as file:
            names: list[str] = []

            def collect(name: str) -> bool | None:
                names.append(name)
                return len(names) > _MOST_OBJECTS or None  # ends the visit

            if file.visit(collect):
                raise ValueError(f"expected at most {_MOST_OBJECTS} groups and datasets")
            # `visit` follows no link, so each of these is in this file.
            if missing := set(shapes) - set(names):
                raise ValueError(f"{', '.join(sorted(missing))} is missing")
            for name in names:
                if isinstance(file[name], h5py.Dataset) and file[name].nbytes > len(content):
                    raise ValueError(f"{name} declares {file[name].nbytes} bytes in a file of {len(content)}")
            return [_read_dataset(file[name], shape) for name, shape in shapes.items()]
    except Exception as error:  # h5py may raise any
        message = " ".join(str(error).split())[:300]
        raise StoredArtifactError(f"{path} cannot be loaded: {type(error).__name__}: {message}") from error


def _read_dataset(dataset: Any, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    import h5py

    stored = dataset.id.get_create_plist()
    if (dataset.shape, dataset.dtype) != (shape, np.dtype("<f4")):
        raise ValueError(f"{dataset.name}: expected <f4 {shape}, received {dataset.dtype} {dataset.shape}")
    if (stored.get_layout(), stored.get_nfilters(), stored.get_external_count()) != (h5py.h5d.CONTIGUOUS, 0, 0):
        raise ValueError(f"{dataset.name}: expected contiguous numbers in this file, without a filter")
    return np.asarray(dataset[()])
