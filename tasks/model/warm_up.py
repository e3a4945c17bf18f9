"""What a run sees to while its stages work: processes of stages to come are begun, and memory is given back.

Importing the backend takes about 3 s, with a core to itself that the stages before leave idle. It costs memory: what
waits has its 300 MB beside that of the stage that works.
"""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pyarrow as pa

from tasks.model import fit
from tasks.model import inference as judge
from tasks.runtime.events import Event, StageFinished, TrainingProgress, subscribe
from tasks.runtime.worker_process import prestart, stop_idle

_BEFORE_TRAINING = ("ingest", "validate", "prepare")


@contextmanager
def prestart_workers(*, train_here: bool) -> Iterator[None]:
    """While the block runs: once data was made anew the process that trains is begun, if ``train_here``; once the last
    of the configured epochs is done that which judges, so that after an early stop it is not begun ahead. What nobody
    had work for is ended with the block."""
    begun: set[str] = set()

    def begin_once(module: str) -> None:
        if module not in begun:
            begun.add(module)
            with suppress(OSError):  # whoever has work for it starts one, and says what is wrong
                prestart(module)

    def on_event(event: Event) -> None:
        match event:
            case StageFinished(reused=False, stage=stage):
                _give_back_memory()
                if train_here and stage in _BEFORE_TRAINING:
                    begin_once(fit.__name__)
            case StageFinished(reused=True, stage="train"):
                stop_idle()  # what was made anew came out as it was before
            case TrainingProgress(done=done, epochs=epochs) if done == epochs:
                begin_once(judge.__name__)

    try:
        with subscribe(on_event):
            yield
    finally:
        stop_idle()


def _give_back_memory() -> None:
    """What a stage has freed, and the allocators keep: 100 MB of it after the images were read as columns."""
    pa.default_memory_pool().release_unused()
    if (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:  # glibc's
        trim(0)
