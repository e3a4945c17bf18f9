"""Run jobs in worker processes: one JSON job in, log records, events and a result out.

Keras's backend needs it. Memory, a GPU's above all, is freed only when the process ends. A fresh process also proves
that a model loads from its stored files alone.

A worker imports what its jobs need, once, and forks a process for each job before that job is sent. So jobs share the
pages of the imports and no state. The worker runs no job and starts no thread: it is safe to fork.

Messages are JSON, one per line. `multiprocessing` would import the caller's main module in the new process, which is
Prefect's engine: one second and 60 MB.
"""

import ctypes
import gc
import glob
import json
import logging
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NoReturn

from schemas import errors
from schemas.config import PROJECT_ROOT, python_command, python_path
from schemas.errors import FashionAnnError, ProcessDied
from tasks.runtime.fingerprint import code_and_lock, require_code_and_lock
from tasks.runtime.locks import abandoned, create_in_use

logger = logging.getLogger(__name__)

Emit = Callable[[Any], None]
# The function ``main`` of a module: it returns the result of a job.
Handler = Callable[[dict[str, Any], Emit], Any]

# Frameworks of macOS do not survive a fork; there a worker takes one job.
_FORKS = sys.platform == "linux"


@dataclass
class WorkerProcess:
    """A worker as its parent sees it.

    scratch: its temporary files; TensorFlow leaves some behind. mark: the descriptor that keeps them in use.
    idle: whether it waits for a job.
    """

    module: str
    process: subprocess.Popen[str]
    stderr: IO[bytes]
    scratch: tempfile.TemporaryDirectory[str]
    mark: int
    idle: bool = True

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
                    self.idle = True
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


# Workers without a job by the module that they run: those of `prestart`, and within `keep_workers` those that had one.
_idle: dict[str, WorkerProcess] = {}
_keeping = False


@contextmanager
def run_worker(module: str, job: Mapping[str, Any], host: str | None = None) -> Iterator[WorkerProcess]:
    """Send ``job`` for ``module`` to ``python -m host``, by default ``python -m module``.

    Uses the worker that `prestart` started, or that is kept, if it still waits for a job. The end of the block, or of
    this process, ends the job. It also ends the worker, unless this is within `keep_workers` and the job has a result.
    `WorkerProcess.result` raises `CodeChanged` if the worker imported other code than this process, which imported
    ``module`` before.
    """
    host = host or module
    worker = _idle.pop(host, None)
    if worker is not None and worker.process.poll() is not None:  # it died while it waited
        _stop(worker)
        worker = None
    worker = worker or _start(host)
    worker.idle = False
    try:
        with suppress(BrokenPipeError):  # the worker died; `result` reports how
            # stdin stays open: when it closes, the worker ends.
            order = {"module": module, "code_and_lock": code_and_lock(module), "job": dict(job)}
            print(json.dumps(order), file=worker.process.stdin, flush=True)
        yield worker
    finally:
        # `setdefault` is atomic, and other threads may finish a job, too.
        if not (worker.idle and _keeping and _FORKS and _idle.setdefault(host, worker) is worker):
            _stop(worker)


def prestart(host: str) -> None:
    """Start ``python -m host`` now, for the next `run_worker` of it; its imports run in the meantime."""
    if host not in _idle:
        _idle[host] = _start(host)


@contextmanager
def keep_workers() -> Iterator[None]:
    """Keep workers for further jobs during the block. Its end stops all that wait for a job."""
    global _keeping
    _keeping = True
    try:
        yield
    finally:
        _keeping = False
        stop_idle()


def stop_idle() -> None:
    """Stop the workers that wait for a job."""
    while _idle:
        _stop(_idle.popitem()[1])


def _stop(worker: WorkerProcess) -> None:
    # Closing the pipe to a dead worker must not mask its exit status.
    with worker.scratch, worker.stderr, suppress(BrokenPipeError), worker.process as process:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)  # also the process of its job
    os.close(worker.mark)


@contextmanager
def scratch_folder(name: str) -> Iterator[Path]:
    """Yield a folder for temporary files, and remove it. Those that killed processes left are removed first."""
    scratch, mark = _create_scratch(name)
    try:
        with scratch as folder:
            yield Path(folder)
    finally:
        os.close(mark)


def _create_scratch(name: str) -> tuple[tempfile.TemporaryDirectory[str], int]:
    """Create a `scratch_folder`, and return it with the descriptor that keeps it in use."""
    prefix = f"fashion-ann-{name}-"
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
    return scratches[-1], mark


def _start(module: str) -> WorkerProcess:
    scratch, mark = _create_scratch(module)
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


def serve_jobs(handlers: Mapping[str, Handler], prepare: Callable[[], object] = lambda: None) -> NoReturn:
    """Serve jobs for the modules in ``handlers`` until the parent ends: the worker's side, for a module's main.

    ``prepare()`` runs once, before any job is known; see `prestart`. Each job has a process, forked before it is read.
    Output that libraries print goes to stderr. Records of loggers below "tasks" are sent, from INFO on.
    """
    gc.disable()  # a collection during the imports frees nothing
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
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
    with _faults_sent(send):
        prepare()
        for module in handlers:
            code_and_lock(module)  # the jobs share the digests, which take 0.1 s
    # Arrow's jemalloc has a thread and handles forks; jax warns whether it has one or not.
    warnings.filterwarnings("ignore", ".*multi-?threaded")
    while _FORKS and (child := os.fork()):
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status < 0:
            os.kill(os.getpid(), -status)  # the parent reads how the job ended from this process
        if status:
            os._exit(status)
    if _FORKS:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: end with the worker
    gc.freeze()  # a collection would copy the pages that the jobs share
    gc.enable()  # an epoch of `keras.Model.fit` leaves cycles
    line = sys.stdin.readline()
    if not line:  # the parent needs no worker, or died
        os._exit(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with _faults_sent(send):
        order = json.loads(line)
        require_code_and_lock(order["module"], order["code_and_lock"])
        send("result", handlers[order["module"]](order["job"], lambda event: send("event", event)))
    _end()


@contextmanager
def _faults_sent(send: Callable[[str, Any], None]) -> Iterator[None]:
    """Send the errors of the block that `WorkerProcess.result` raises again, and end this process."""
    try:
        yield
    except FashionAnnError as error:
        send("fault", [type(error).__name__, str(error)])
    except OSError as error:
        send("os_error", [error.errno, error.strerror, error.filename])
    else:
        return
    _end()


def _end() -> NoReturn:
    """End this process without the backend's slow shutdown."""
    sys.stderr.flush()
    os._exit(0)


def _end_with_parent() -> None:
    # The next job is for another process, so nothing is read here.
    hang_up = select.poll()
    hang_up.register(sys.stdin, 0)
    hang_up.poll()
    os._exit(1)
