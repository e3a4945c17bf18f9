"""Tricks that shorten a run or lower its peak memory. None changes a result, so no cache key covers this module.

| trick | where | saves | without it |
|---|---|---|---|
| start the trainer when a data stage is rebuilt | `pipeline_session` | 3 s | training waits for the backend import |
| start the evaluator after the last epoch | `pipeline_session` | 3 s | same; earlier, it adds 300 MB to the peak |
| return freed memory after each rebuilt stage | `pipeline_session` | 100 MB | allocators keep it during training |
| block optional imports of Keras | `blocked_imports` | 0.3 s, 60 MB | Keras imports matplotlib, pandas, sklearn |
| block jax and scipy for TensorFlow | `blocked_imports` | 1 s, 140 MB | a converter in TensorFlow imports jax |
| import scipy.stats and altair on first use | checks/expectations.py | 60 MB | Great Expectations imports both |
| import Great Expectations in a thread | tasks/ingest.py | 1 s | validate waits for the import |
| start the server before Prefect is imported | cli/embedded_server.py | 0.7 s | it starts after that import |
| prepare the run while the server starts | cli/embedded_server.py | 0.5 s | the first stages wait for it |
| collect no garbage while the server imports | cli/server_main.py | 0.4 s | as in the command |
| put the routers of a run first | cli/server_main.py | 0.2 s | the first request builds all routes |
| create the database from a stored schema | cli/server_database.py | 5 s, once | the server migrates |
| read columns without pandas | model/test_predictions.py | 0.2 s | an unchanged run imports pandas |
| start workers without multiprocessing | runtime/worker_process.py | 1 s, 60 MB | workers import Prefect's engine |
| collect no garbage during imports | runtime/worker_process.py | CPU time | the collector scans new modules |
| collect garbage rarely | cli/main.py | 1/5 of the start, 2 s at exit | the collector scans 500,000 objects |
| end workers without teardown | runtime/worker_process.py | CPU time | the caller waits for the backend to close |
| use one OpenBLAS thread | tasks/__init__.py | CPU time | threads spin on other cores; set before numpy |
| start no flow run for a cached training | flows | 1 s | a subflow only reports a cache hit |
"""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tasks.runtime.events import Event, StageFinished, TrainingProgress, subscribe
from tasks.runtime.locks import artifacts_lock
from tasks.runtime.worker_process import prestart, stop_idle

# By name, because both modules import this one.
TRAINER = "tasks.model.fit"
EVALUATOR = "tasks.model.inference"


@contextmanager
def pipeline_session(artifacts_dir: Path, *, prestart_trainer: bool) -> Iterator[None]:
    """Hold the shared lock on ``artifacts_dir`` and prestart worker processes while the block runs.

    The trainer starts when the first data stage is rebuilt, if ``prestart_trainer``. The evaluator starts after the
    last configured epoch, so not after an early stop. Workers without a job are stopped at the end.
    """

    def on_event(event: Event) -> None:
        with suppress(OSError):  # the stage that needs the worker starts it again and reports the error
            match event:
                case StageFinished(reused=False, stage=stage):
                    _release_freed_memory()
                    if prestart_trainer and stage in ("ingest", "validate", "prepare"):
                        prestart(TRAINER)
                case StageFinished(reused=True, stage="train"):
                    stop_idle()  # the rebuilt data equals that of an earlier run
                case TrainingProgress(done=done, epochs=epochs) if done == epochs:
                    prestart(EVALUATOR)

    with artifacts_lock(artifacts_dir), subscribe(on_event):
        try:
            yield
        finally:
            stop_idle()


def _release_freed_memory() -> None:
    """Return freed memory that the allocators of Arrow and of glibc still hold."""
    import pyarrow as pa  # here, because workers import this module and need no Arrow

    pa.default_memory_pool().release_unused()
    if (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:  # glibc only
        trim(0)


@contextmanager
def blocked_imports(*packages: str) -> Iterator[None]:
    """Make the import of ``packages`` fail while the block runs. Packages that are imported already are unaffected."""
    absent = [package for package in packages if package not in sys.modules]
    for package in absent:
        sys.modules[package] = None  # type: ignore[assignment]  # None makes an import fail
    try:
        yield
    finally:
        for package in absent:
            del sys.modules[package]
