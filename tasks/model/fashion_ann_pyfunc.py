"""Load a version from an MLflow model, and predict. MLflow stores this file with each version, as its loader module.

It imports no other module of this project, so it runs in any environment with the packages that the model names.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

CONTENT_NAME = "version.json"  # digests, classes, scale and backend; `tasks.reports.mlflow_sync` writes it

_LAYERS = {"InputLayer", "Dense", "Dropout"}
_BLOCK_ROWS = 1_000  # per call of the backend, as in the evaluation: equal sizes give equal rounding
_TOLERANCE = 1e-5  # that of `tasks.model.inference`


class Classifier:
    """A loaded version. content: the object in `CONTENT_NAME`. network: the `keras.Model`."""

    def __init__(self, content: dict[str, Any], network: Any) -> None:
        self._network = network
        self._pixels: int = network.input_shape[1]
        self._minimum, self._maximum = content["scale"]
        self._labels, self._names = (np.array([row[key] for row in content["classes"]]) for key in ("label", "name"))

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> Any:
        """Return a `pandas.DataFrame` with a row per image, and the columns of `fashion-ann predict`.

        ``predicted_label``, the ``name`` of its class, and the probability ``p0``, ``p1``, ... of each label.

        model_input: an array or a data frame of uint8 pixels as in the CSV, (N, pixels).

        Raises ValueError for anything else. Also for images without a pixel above 1: a client that normalizes pixels
        itself sends such numbers, which MLflow rounds down.
        """
        import pandas as pd

        images = np.asarray(model_input)
        if images.dtype != np.uint8 or images.ndim != 2 or images.shape[1] != self._pixels:
            raise ValueError(f"expected uint8 pixels (N, {self._pixels}), received {images.dtype} {images.shape}")
        if self._maximum > 1 and images.size and images.max() <= 1:
            raise ValueError(
                f"expected pixels from {self._minimum} to {self._maximum} as in the CSV, received none above 1: "
                "send them without normalizing"
            )
        scaled = images.astype(np.float32)
        scaled -= np.float32(self._minimum)
        scaled /= np.float32(self._maximum - self._minimum)
        probabilities = self.probabilities(scaled)
        predicted = probabilities.argmax(axis=1)
        columns = {"predicted_label": self._labels[predicted].astype(np.int32), "name": self._names[predicted]}
        return pd.DataFrame(columns | {f"p{label}": probabilities[:, at] for at, label in enumerate(self._labels)})

    def probabilities(self, images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Return float32 (N, classes) for normalized images, float32 (N, pixels)."""
        blocks = [images[start : start + _BLOCK_ROWS] for start in range(0, len(images), _BLOCK_ROWS)]
        return np.concatenate(
            [np.empty((0, len(self._labels)), np.float32)]
            + [np.asarray(self._network(block, training=False)) for block in blocks]
        )


def _load_pyfunc(data_path: str) -> Classifier:
    """Return the version in a folder after checking the digest of each file and repeating its golden predictions.

    MLflow calls this name. Raises ValueError for a changed file, another layer or other predictions.
    """
    folder = Path(data_path)
    content = json.loads((folder / CONTENT_NAME).read_bytes())
    for name, expected in content["sha256"].items():
        if (received := hashlib.sha256((folder / name).read_bytes()).hexdigest()) != expected:
            raise ValueError(f"{folder / name}: expected sha256 {expected}, received {received}")
    topology, weights, golden = (folder / name for name in content["sha256"])
    described = json.loads(topology.read_bytes())
    if others := {layer["class_name"] for layer in described["config"]["layers"]} - _LAYERS:
        raise ValueError(f"{topology}: expected layers {sorted(_LAYERS)}, received {sorted(others)}")
    os.environ.setdefault("KERAS_BACKEND", content["backend"])
    import keras

    network = keras.models.model_from_json(topology.read_text(encoding="utf-8"))
    network.load_weights(weights)
    classifier = Classifier(content, network)
    images, stored = (np.array(json.loads(golden.read_bytes())[key], np.float32) for key in ("images", "probabilities"))
    difference = float(np.abs(classifier.probabilities(images) - stored).max())
    if not difference <= _TOLERANCE:
        raise ValueError(
            f"expected the golden predictions of version {content['version']} within {_TOLERANCE}, the largest "
            f"difference is {difference}: install the packages that the model requires"
        )
    return classifier
