"""Tricks that shorten a run or lower its peak memory. None changes a result, so no cache key covers this module.

| trick | where | saves | without it |
|---|---|---|---|
| start the worker before a data stage is rebuilt | `pipeline_session` | 3 s | training waits for the backend import |
| fork a process per job | runtime/worker_process.py | 3 s, 300 MB | the evaluator imports the backend again |
| unmap pages of libraries | `unmapped_libraries` | 330 MB | pages that only loading a library reads stay mapped |
| return freed memory after each rebuilt stage | `pipeline_session` | 100 MB | allocators keep it during training |
| block optional imports of Keras | model/backend.py | 0.3 s, 60 MB | Keras imports matplotlib, pandas, sklearn |
| block jax and scipy for TensorFlow | model/backend.py | 1 s, 140 MB | a converter in TensorFlow imports jax |
| import scipy.stats and altair on first use | checks/expectations.py | 60 MB | Great Expectations imports both |
| import Great Expectations in a thread | tasks/ingest.py | 1 s | validate waits for the import |
| import it without SQLAlchemy, copy fewer fields | checks/expectations.py | 0.7 s | ingest waits for the import |
| start the server before Prefect is imported | cli/embedded_server.py | 0.7 s | it starts after that import |
| prepare the run while the server starts | cli/embedded_server.py | 0.5 s | the first stages wait for it |
| collect no garbage while the server imports | cli/server_main.py | 0.4 s | as in the command |
| put the routers of a run first | cli/server_main.py | 0.2 s | the first request builds all routes |
| create the database from a stored schema | cli/server_database.py | 5 s, once | the server migrates |
| read columns without pandas | model/test_predictions.py | 0.2 s | an unchanged run imports pandas |
| read packages and compile templates early | flows/train_fashion_mnist.py | 0.25 s | `version` does it at the end |
| start workers without multiprocessing | runtime/worker_process.py | 1 s, 60 MB | workers import Prefect's engine |
| collect no garbage during imports | runtime/worker_process.py | CPU time | the collector scans new modules |
| collect garbage rarely | cli/main.py | 1/5 of the start, 2 s at exit | the collector scans 500,000 objects |
| end workers without teardown | runtime/worker_process.py | CPU time | the caller waits for the backend to close |
| use one OpenBLAS thread | tasks/__init__.py | CPU time | threads spin on other cores; set before numpy |
| start no flow run for a cached training | flows | 1 s | a subflow only reports a cache hit |
"""

import ctypes
import mmap
import re
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from tasks.runtime.events import Event, StageFinished, StageMissed, TrainingProgress, subscribe
from tasks.runtime.locks import artifacts_lock
from tasks.runtime.stages import BEFORE_TRAINING, TRAIN
from tasks.runtime.worker_process import keep_workers, prestart, stop_idle

# By name, because that module imports this one.
WORKER = "tasks.model.worker"

# In /proc/self/smaps: a private mapping of a file without write permission, with the lines about it, and the lines for
# changed pages in memory and in swap, whose content is not that of the file.
_LIBRARY_MAPPING = re.compile(r"^(\w+)-(\w+) .-.p \w+ \S+ [1-9]\d* +/.*((?:\n[A-Z].*)*)", re.MULTILINE)
_CHANGED = re.compile(r"^(?:Anonymous|Swap): +[1-9]", re.MULTILINE)


@contextmanager
def pipeline_session(
    artifacts_dir: Path, *, prestart_trainer: bool, while_training: Sequence[Callable[[], object]] = ()
) -> Iterator[None]:
    """Hold the shared lock on ``artifacts_dir`` and keep a worker process while the block runs.

    The worker starts before the first data stage is rebuilt, if ``prestart_trainer``, else with the first job. Training
    and evaluation are jobs of it. Meanwhile a thread calls ``while_training``: imports and caches of later stages.
    """
    waiting = [while_training]

    def call_each(functions: Sequence[Callable[[], object]]) -> None:
        with suppress(Exception):  # the stage that needs it does it again and reports the error
            for function in functions:
                function()

    def on_event(event: Event) -> None:
        with suppress(OSError):  # the stage that needs the worker starts it again and reports the error
            match event:
                case StageMissed(stage=stage) if prestart_trainer and stage in BEFORE_TRAINING:
                    prestart(WORKER)
                case StageFinished(reused=False):
                    _release_freed_memory()
                case StageFinished(reused=True, stage=TRAIN.name):
                    stop_idle()  # the rebuilt data equals that of an earlier run
                case TrainingProgress() if waiting:
                    threading.Thread(target=call_each, args=(waiting.pop(),), daemon=True).start()

    with artifacts_lock(artifacts_dir), subscribe(on_event), keep_workers():
        yield


def _release_freed_memory() -> None:
    """Return freed memory that the allocators of Arrow and of glibc still hold."""
    import pyarrow as pa  # here, because workers import this module and need no Arrow

    pa.default_memory_pool().release_unused()
    if (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:  # glibc only
        trim(0)


@contextmanager
def unmapped_libraries() -> Iterator[None]:
    """Unmap unchanged pages of loaded libraries after each 0.3 s of CPU time and at the end of the block.

    The block imports the libraries. Most of these pages are only read while a library is loaded. The kernel maps a page
    again when it is used. The block must be in the main thread, and no other thread may load a library: its pages
    change meanwhile.
    """

    def unmap(number: int, frame: object) -> None:
        _unmap_libraries()
        signal.setitimer(signal.ITIMER_PROF, 0.3)  # a repeating timer would interrupt this handler on a busy machine

    # Python calls a handler between bytecodes, so never while a library is loaded. A timer by the clock also counts the
    # time in which the process waits for a core: 15 CPU seconds instead of 3, at a load of 30.
    earlier = signal.signal(signal.SIGPROF, unmap)
    signal.setitimer(signal.ITIMER_PROF, 0.3)
    try:
        yield
    finally:
        signal.signal(signal.SIGPROF, signal.SIG_IGN)  # before the timer, which the handler would start again
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, earlier)
    _unmap_libraries()


def _unmap_libraries() -> None:
    if (smaps := Path("/proc/self/smaps")).exists():
        madvise = ctypes.CDLL(None).madvise
        for start, end, details in _LIBRARY_MAPPING.findall(smaps.read_text(encoding="utf-8")):
            if not _CHANGED.search(details):
                first = int(start, 16)
                madvise(ctypes.c_void_p(first), ctypes.c_size_t(int(end, 16) - first), mmap.MADV_DONTNEED)
