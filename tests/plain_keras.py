"""Loads a stored version with plain Keras, as users without this project do."""

from pathlib import Path
from typing import Any


def plain_network(folder: Path) -> Any:
    """Return the `keras.Model` of topology.json and model.weights.h5, compiled as in Keras's tutorials."""
    import keras

    model = keras.models.model_from_json((folder / "topology.json").read_text())
    model.load_weights(folder / "model.weights.h5")
    model.compile(loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    return model
