"""The peer of an epoch, `keras.Model.fit`: `python -m benchmarks.plain_fit PREPARED_FOLDER BATCH EPOCHS SEED`.

Prints JSON: the time of each epoch's end, in seconds.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.plain_script import keras, plain_network
from tasks.data.splits import open_split


def main(folder: str, batch: str, epochs: str, seed: str) -> None:
    keras.utils.set_random_seed(int(seed))
    splits = [open_split(Path(folder), name) for name in ("train", "validation")]
    train, validation = [(split.scaled(slice(None)), split.labels) for split in splits]
    ends: list[float] = []

    class Clock(keras.callbacks.Callback):  # type: ignore[misc]  # Keras ships no types
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            ends.append(time.perf_counter())

    plain_network().fit(
        *train,
        batch_size=int(batch),
        epochs=int(epochs),
        validation_data=validation,
        callbacks=[Clock()],
        verbose=0,
    )
    print(json.dumps(ends))


if __name__ == "__main__":
    main(*sys.argv[1:])
