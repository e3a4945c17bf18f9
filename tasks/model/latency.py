"""Measure the time of a call of a model."""

from collections.abc import Callable
from time import perf_counter

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]


def call_seconds(predict: Callable[[Bytes], object], images: Bytes, rows: int, calls: int) -> list[float]:
    """Return the seconds of each of ``calls`` calls with ``rows`` images, after one call that is not measured.

    images: uint8 (N, pixels). The first ones are used, and repeated if they are fewer than ``rows``.
    """
    batch = np.resize(images[:rows], (rows, images.shape[1]))
    seconds = []
    for _ in range(calls + 1):
        start = perf_counter()
        predict(batch)
        seconds.append(perf_counter() - start)
    return seconds[1:]
