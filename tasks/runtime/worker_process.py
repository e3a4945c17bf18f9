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

from schemas import errors
from schemas.config import PROJECT_ROOT, python_command, python_path
from schemas.errors import FashionAnnError, ProcessDied
from tasks.runtime.fingerprint import code_and_lock, require_code_and_lock
from tasks.runtime.locks import abandoned, create_in_use

logger = logging.getLogger(__name__)

Emit = Callable[[Any], None]


@dataclass(frozen=True)
class WorkerProcess:
    """A worker as its parent sees it.

    scratch: its temporary files; TensorFlow leaves some behind. mark: the descriptor that keeps them in use.
    """

    module: str
    process: subprocess.Popen[str]
    stderr: IO[bytes]
    scratch: tempfile.TemporaryDirectory[str]
    mark: int

    def result(self, on_event: Emit = lambda event: None) -> Any:
        """Wait for the result; pass events to ``on_event`` and log records to the logger of the same name.

        Raises the `FashionAnnError` or OSError that the worker raised, and `ProcessDied` if it ended without a result.
        """
        for line in self.process.stdout or ():
            match json.loads(line):
                case {"event": event}:
                    on_event(event)
                case {"log": [name, level, message]}:
                    logging.getLogger(name).log(level, "%s", message)
                case {"fault": [error, message]}:
                    raise getattr(errors, error)(message)
                case {"os_error": arguments}:
                    raise OSError(*arguments)
                case {"result": result}:
                    return result
        raise ProcessDied(self._describe_end())

    def _describe_end(self) -> str:
        status = self.process.wait()
        self.stderr.seek(0)
        output = self.stderr.read().decode(errors="replace")
        logger.debug("%s", output)
        if status >= 0:
            end = f"ended with status {status}: {(output.strip().splitlines() or ['no output'])[-1]}"
        elif -status == signal.SIGKILL:
            end = "was ended by SIGKILL, which the kernel also sends when memory runs out"
        else:
            end = f"was ended by {signal.Signals(-status).name}"
        return f"The process of {self.module} {end}. Finished stages are kept; run again to continue."


# Started by `prestart`, without a job so far; one per module.
_idle: dict[str, WorkerProcess] = {}


@contextmanager
def run_worker(module: str, job: Mapping[str, Any]) -> Iterator[WorkerProcess]:
    """Send ``job`` to ``python -m module``, which the end of the block, or of this process, ends.

    Uses the worker that `prestart` started, if it still waits for a job. `WorkerProcess.result` raises `CodeChanged` if
    the worker imported other code than this process, which imported ``module`` before.
    """
    worker = _idle.pop(module, None)
    if worker is not None and worker.process.poll() is not None:  # it died while it waited
        _stop(worker)
        worker = None
    worker = worker or _start(module)
    try:
        with suppress(BrokenPipeError):  # the worker died; `result` reports how
            # stdin stays open: when it closes, the worker ends.
            order = {"module": module, "code_and_lock": code_and_lock(module), "job": dict(job)}
            print(json.dumps(order), file=worker.process.stdin, flush=True)
        yield worker
    finally:
        _stop(worker)


def prestart(module: str) -> None:
    """Start ``python -m module`` now, for the next `run_worker` of it; its imports run in the meantime."""
    if module not in _idle:
        _idle[module] = _start(module)


def stop_idle() -> None:
    """Stop the workers that `prestart` started and that received no job."""
    while _idle:
        _stop(_idle.popitem()[1])


def _stop(worker: WorkerProcess) -> None:
    # Closing the pipe to a dead worker must not mask its exit status.
    with worker.scratch, worker.stderr, suppress(BrokenPipeError), worker.process:
        worker.process.kill()
    os.close(worker.mark)


def _start(module: str) -> WorkerProcess:
    prefix = f"fashion-ann-{module}-"
    for folder in Path(tempfile.gettempdir()).glob(f"{glob.escape(prefix)}*"):
        with abandoned(folder) as dead:  # its processes were killed
            if dead:
                shutil.rmtree(folder, ignore_errors=True)
    scratches: list[tempfile.TemporaryDirectory[str]] = []

    def create_scratch() -> Path:
        # A grandchild may still write there during removal, which must not mask the result.
        scratches.append(tempfile.TemporaryDirectory(prefix=prefix, ignore_cleanup_errors=True))
        return Path(scratches[-1].name)

    _, mark = create_in_use(create_scratch)
    scratch = scratches[-1]
    stderr = tempfile.TemporaryFile()  # noqa: SIM115  # closed by `_stop`
    process = subprocess.Popen(  # noqa: S603  # our own interpreter and module
        python_command(module),
        cwd=PROJECT_ROOT,
        env={**os.environ, "TMPDIR": scratch.name, "PYTHONPATH": python_path()},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        encoding="utf-8",
        process_group=0,  # Ctrl-C reaches this process only, which then ends the worker
    )
    return WorkerProcess(module, process, stderr, scratch, mark)


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
                send("log", [record.name, record.levelno, record.getMessage()])

        ours = logging.getLogger("tasks")
        ours.setLevel(logging.INFO)
        ours.addHandler(Sender())
        try:
            prepare()
            line = sys.stdin.readline()
            if not line:  # the parent needs no worker, or died
                os._exit(0)
            threading.Thread(target=_end_with_parent, daemon=True).start()
            order = json.loads(line)
            require_code_and_lock(order["module"], order["code_and_lock"])
            result = work(order["job"], lambda event: send("event", event))
        except FashionAnnError as error:
            send("fault", [type(error).__name__, str(error)])
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
