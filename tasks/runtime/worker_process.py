"""Run a module as a worker subprocess: one JSON job in, log records, events and a result out.

Keras's backend needs it. Memory, a GPU's above all, is freed only when the process ends. A fresh process also proves
that a model loads from its stored files alone.

Messages are JSON, one per line. `multiprocessing` would import the caller's main module in the new process, which is
Prefect's engine: one second and 60 MB.
"""

import gc
import glob
import json
import logging
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import psutil

from schemas import errors
from schemas.config import PROJECT_ROOT
from schemas.errors import FashionAnnError, ProcessDied

logger = logging.getLogger(__name__)

Emit = Callable[[Any], None]


@dataclass(frozen=True)
class WorkerProcess:
    """A worker as its parent sees it; `run_worker` creates it.

    scratch: its folder for temporary files. TensorFlow leaves some behind.
    """

    module: str
    process: subprocess.Popen[str]
    stderr: IO[bytes]
    scratch: tempfile.TemporaryDirectory[str]

    def result(self, on_event: Emit = lambda event: None) -> Any:
        """Wait for the result; pass events to ``on_event`` and log records to the logger of the same name.

        Raises the `FashionAnnError` or OSError that the worker raised, and `ProcessDied` if it ended without a result.
        """
        for line in self.process.stdout or ():
            ((kind, content),) = json.loads(line).items()
            if kind == "event":
                on_event(content)
            elif kind == "log":
                logging.getLogger(content["logger"]).log(content["level"], "%s", content["message"])
            elif kind == "fault":
                raise getattr(errors, content["type"])(content["message"])
            elif kind == "os_error":
                raise OSError(*content)
            else:
                return content
        raise ProcessDied(self._describe_end())

    def _describe_end(self) -> str:
        status = self.process.wait()
        self.stderr.seek(0)
        output = self.stderr.read().decode(errors="replace")
        logger.debug("%s", output)
        if status < 0:
            end = f"was ended by {signal.Signals(-status).name}"
            if -status == signal.SIGKILL:
                end += ", which the kernel also sends when memory runs out"
        else:
            end = f"ended with status {status}: {(output.strip().splitlines() or ['no output'])[-1]}"
        return f"The process of {self.module} {end}. Finished stages are kept; run again to continue."


# Started by `prestart`, without a job so far; one per module.
_idle: dict[str, WorkerProcess] = {}


@contextmanager
def run_worker(module: str, job: Mapping[str, Any]) -> Iterator[WorkerProcess]:
    """Send ``job`` to ``python -m module``, which the end of the block, or of this process, ends.

    Uses the worker that `prestart` started, if it still waits for a job.
    """
    worker = _idle.pop(module, None)
    if worker is not None and worker.process.poll() is not None:  # it died while it waited
        _stop(worker)
        worker = None
    worker = worker or _start(module)
    with worker.scratch, worker.stderr, worker.process as process:
        try:
            if process.stdin is not None:
                # Left open: when it closes, the worker ends.
                with suppress(BrokenPipeError):  # the worker died; `result` reports how
                    process.stdin.write(json.dumps(dict(job)) + "\n")
                    process.stdin.flush()
            yield worker
        finally:
            process.kill()
            if process.stdin is not None:
                with suppress(BrokenPipeError):  # must not mask the worker's exit status
                    process.stdin.close()


def prestart(module: str) -> None:
    """Start ``python -m module`` now, for the next `run_worker` of it; its imports run in the meantime."""
    if module not in _idle:
        _idle[module] = _start(module)


def stop_idle() -> None:
    """Stop the workers that `prestart` started and that received no job."""
    while _idle:
        _stop(_idle.popitem()[1])


def _stop(worker: WorkerProcess) -> None:
    with worker.scratch, worker.stderr, worker.process as process:
        process.kill()


def _start(module: str) -> WorkerProcess:
    # Closed by `run_worker` or `_stop`.
    stderr = tempfile.TemporaryFile()  # noqa: SIM115
    _sweep_scratch(module)
    # A grandchild may still write there during removal, which must not mask the result.
    scratch = tempfile.TemporaryDirectory(prefix=f"{_scratch_prefix(module)}{os.getpid()}-", ignore_cleanup_errors=True)
    process = subprocess.Popen(  # noqa: S603  # our own interpreter and module
        [sys.executable, "-m", module],
        cwd=PROJECT_ROOT,
        env={**os.environ, "TMPDIR": scratch.name},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        encoding="utf-8",
        # Ctrl-C reaches this process only, which then ends the worker.
        process_group=0,
    )
    return WorkerProcess(module, process, stderr, scratch)


def _scratch_prefix(module: str) -> str:
    return f"{module}-{platform.node()}-"


def _sweep_scratch(module: str) -> None:
    """Remove the scratch folders that killed processes of this machine left."""
    for folder in Path(tempfile.gettempdir()).glob(f"{glob.escape(_scratch_prefix(module))}*"):
        owner = folder.name.split("-")[-2]
        if owner.isdigit() and not psutil.pid_exists(int(owner)):
            shutil.rmtree(folder, ignore_errors=True)  # it may belong to another user


def serve_job(work: Callable[[dict[str, Any], Emit], Any], prepare: Callable[[], object] = lambda: None) -> None:
    """Read one job, call ``work(job, emit)`` and send its result: the worker's side, for a module's main.

    ``prepare()`` runs first, before the job is known; see `prestart`. Output that libraries print goes to stderr.
    Records of loggers below "tasks" are sent, from INFO on.
    """
    gc.disable()  # a collection during the imports frees nothing
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as out:
        os.dup2(2, 1)

        def send(kind: str, content: Any) -> None:
            out.write(json.dumps({kind: content}) + "\n")
            out.flush()

        class Sender(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                send("log", {"logger": record.name, "level": record.levelno, "message": record.getMessage()})

        ours = logging.getLogger("tasks")
        ours.setLevel(logging.INFO)
        ours.addHandler(Sender())
        try:
            prepare()
            line = sys.stdin.readline()
            if not line:  # the parent needs no worker, or died
                os._exit(0)
            threading.Thread(target=_end_with_parent, daemon=True).start()
            result = work(json.loads(line), lambda event: send("event", event))
        except FashionAnnError as error:
            send("fault", {"type": type(error).__name__, "message": str(error)})
        except OSError as error:
            send("os_error", [error.errno, error.strerror, error.filename])
        else:
            send("result", result)
    # Skip the backend's slow shutdown.
    sys.stderr.flush()
    os._exit(0)


def _end_with_parent() -> None:
    sys.stdin.read()
    os._exit(1)
