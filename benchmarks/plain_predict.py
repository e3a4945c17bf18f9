"""The peer of `fashion-ann predict`: `python -m benchmarks.plain_predict CSV VERSION_FOLDER`."""

import sys
from pathlib import Path

import pandas as pd

from benchmarks.plain_script import keras


def main(csv: str, version: str) -> None:
    images = pd.read_csv(csv).drop(columns="label").to_numpy("float32") / 255
    model = keras.models.model_from_json((Path(version) / "topology.json").read_text())
    model.load_weights(Path(version) / "model.weights.h5")
    print(model.predict(images, verbose=0).argmax(axis=1)[:10].tolist())


if __name__ == "__main__":
    main(*sys.argv[1:])
