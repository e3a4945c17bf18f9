"""What anyone gets who reads the files of a version with Keras alone."""

from pathlib import Path
from typing import Any


def plain_network(folder: Path) -> Any:
    """The `keras.Model` of topology.json and model.weights.h5, compiled as Keras's own tutorials do."""
    import keras

    model = keras.models.model_from_json((folder / "topology.json").read_text())
    model.load_weights(folder / "model.weights.h5")
    model.compile(loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    return model
