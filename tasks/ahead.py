"""What a run sees to while its stages work: processes of stages to come are begun, and memory is given back.

Importing the backend takes about 3 s, with a core to itself that the stages before leave idle. It costs memory: what
waits has its 300 MB beside that of the stage that works.
"""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pyarrow as pa

from tasks import fit, judge
from tasks.own_process import begin, end_waiting
from tasks.progress import Ended, Event, Trained, watched_by

_BEFORE_TRAINING = ("ingest", "validate", "prepare")


@contextmanager
def begun_ahead(*, train_here: bool) -> Iterator[None]:
    """While the block runs: once data was made anew the process that trains is begun, if ``train_here``; once the last
    of the configured epochs is done that which judges, so that after an early stop it is not begun ahead. What nobody
    had work for is ended with the block."""
    begun: set[str] = set()

    def begin_once(module: str) -> None:
        if module not in begun:
            begun.add(module)
            with suppress(OSError):  # whoever has work for it starts one, and says what is wrong
                begin(module)

    def on_event(event: Event) -> None:
        match event:
            case Ended(reused=False, stage=stage):
                _give_back_memory()
                if train_here and stage in _BEFORE_TRAINING:
                    begin_once(fit.__name__)
            case Ended(reused=True, stage="train"):
                end_waiting()  # what was made anew came out as it was before
            case Trained(done=done, epochs=epochs) if done == epochs:
                begin_once(judge.__name__)

    try:
        with watched_by(on_event):
            yield
    finally:
        end_waiting()


def _give_back_memory() -> None:
    """What a stage has freed, and the allocators keep: 100 MB of it after the images were read as columns."""
    pa.default_memory_pool().release_unused()
    if (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:  # glibc's
        trim(0)
