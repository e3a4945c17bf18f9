"""The peer of the whole command, a plain Keras script: `python -m benchmarks.plain_script TRAIN TEST MODEL`."""

import json
import sys

# TensorFlow imports jax if it is installed. Only our tests need it, so the peer must not pay for it.
sys.modules["jax"] = None  # type: ignore[assignment]

import keras as keras  # noqa: E402  # for the other peers
import pandas as pd  # noqa: E402


def plain_network(dropout: float = 0.2) -> keras.Model:
    model = keras.Sequential(
        [
            keras.Input((784,)),
            keras.layers.Dense(128, activation="relu"),
            keras.layers.Dropout(dropout),
            keras.layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile(optimizer="adam", loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def main(train_csv: str, test_csv: str, saved: str) -> None:
    train = pd.read_csv(train_csv)
    test = pd.read_csv(test_csv)
    train_images = train.drop(columns="label").to_numpy("float32") / 255
    test_images = test.drop(columns="label").to_numpy("float32") / 255
    model = plain_network()
    model.fit(train_images, train["label"].to_numpy(), batch_size=32, epochs=10, verbose=2)
    _, accuracy = model.evaluate(test_images, test["label"].to_numpy(), verbose=2)
    model.save(saved)
    print(json.dumps({"test_accuracy": accuracy}))


if __name__ == "__main__":
    main(*sys.argv[1:])
