"""What a call allocates, for tests of code that must work in bounded memory."""

import tracemalloc
from collections.abc import Callable


def peak_bytes(call: Callable[[], object], enough: float = 0) -> int:
    """The most bytes that Python and NumPy hold at once while `call` runs, as tracemalloc counts: the least of three
    runs, since what else happens in this process (threads that Prefect keeps, what is imported at first use) is counted
    with it and can only add. Less than ``enough`` is not measured again.
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
