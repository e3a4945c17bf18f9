"""Peak allocation of a call, for tests of code that must work in bounded memory."""

import tracemalloc
from collections.abc import Callable


def peak_bytes(call: Callable[[], object], enough: float = 0) -> int:
    """Return the peak bytes that Python and NumPy allocate while ``call`` runs, the minimum of three runs.

    tracemalloc also counts other work of this process, such as Prefect's threads and first imports, which can only add.
    A peak below ``enough`` ends the runs early.
    """
    peaks: list[int] = []
    while len(peaks) < 3 and (not peaks or peaks[-1] >= enough):
        tracemalloc.start()
        try:
            call()
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    return min(peaks)
