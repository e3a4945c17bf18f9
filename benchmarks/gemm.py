"""Time the matrix products of one epoch in NumPy: `python -m benchmarks.gemm ROWS BATCH`.

Prints JSON: the seconds of each of a few epochs. OPENBLAS_NUM_THREADS decides the number of threads. All batches have
the same values and all arrays stay in the cache as far as they fit, so this is a limit for every epoch.
"""

import json
import math
import sys
import time

import numpy as np

_EPOCHS = 5
_PIXELS, _HIDDEN, _CLASSES = 784, 128, 10


def main(rows: str, batch: str) -> None:
    sizes = [len(part) for part in np.array_split(np.arange(int(rows)), math.ceil(int(rows) / int(batch)))]
    generator = np.random.default_rng(0)

    def floats(*shape: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        return generator.random(shape, np.float32)

    images, hidden, errors, hidden_errors = (floats(int(batch), n) for n in (_PIXELS, _HIDDEN, _CLASSES, _HIDDEN))
    first, second = floats(_PIXELS, _HIDDEN), floats(_HIDDEN, _CLASSES)
    seconds = []
    for _ in range(_EPOCHS):
        started = time.perf_counter()
        for size in sizes:
            images[:size] @ first  # forward: (size, 784) by (784, 128)
            hidden[:size] @ second  # forward: (size, 128) by (128, 10)
            hidden[:size].T @ errors[:size]  # gradient of the second layer's weights: (128, size) by (size, 10)
            errors[:size] @ second.T  # gradient of the hidden activations: (size, 10) by (10, 128)
            images[:size].T @ hidden_errors[:size]  # gradient of the first layer's weights: (784, size) by (size, 128)
        seconds.append(time.perf_counter() - started)
    print(json.dumps(seconds))


if __name__ == "__main__":
    main(*sys.argv[1:])
