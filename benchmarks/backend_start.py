"""Import the backend, build a network and predict one image, as `fashion-ann predict` does before its own work."""

import gc

import numpy as np

from tasks.model.backend import set_up_backend


def main() -> None:
    gc.set_threshold(100_000)  # as the command does
    set_up_backend(seed=0)
    import keras

    layers = [keras.Input((784,)), keras.layers.Dense(128, "relu"), keras.layers.Dense(10, "softmax")]
    keras.Sequential(layers).predict_on_batch(np.zeros((1, 784), np.float32))
    gc.freeze()


if __name__ == "__main__":
    main()
