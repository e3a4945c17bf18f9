"""Work in a process of its own that ends: a module run as ``python -m MODULE``, handed a job, heard until it is done.

The backend of Keras is the reason. What it takes of memory, a GPU's above all, is given back only when its process
ends; and that a model is whole is shown by a process that knows nothing but the stored files.

Job, events and result are JSON, a line each. `multiprocessing` would import in the new process what the caller's main
module imports, which is Prefect's engine: a second and 60 MB.
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

Emit = Callable[[Any], None]


@dataclass(frozen=True)
class WorkerProcess:
    """The process as its starter sees it; `run_worker` makes it.

    said: what it wrote to stderr. scratch: its folder for temporary files, of which TensorFlow leaves some behind.
    """

    module: str
    process: subprocess.Popen[str]
    stderr: IO[bytes]
    scratch: tempfile.TemporaryDirectory[str]

    def result(self, on_event: Emit = lambda event: None) -> Any:
        """Wait for the end; what the process told meanwhile goes to ``on_event``, what it logged to our log.

        Raises the `FashionAnnError` or OSError that ended it, and `ProcessDied` for any other end without a result.
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
        raise ProcessDied(self._how_it_ended())

    def _how_it_ended(self) -> str:
        status = self.process.wait()
        self.stderr.seek(0)
        words = self.stderr.read().decode(errors="replace")
        logging.getLogger(__name__).debug("%s", words)
        if status < 0:
            why = f"was ended by {signal.Signals(-status).name}"
            if -status == signal.SIGKILL:
                why += ", as the system does when memory runs out"
        else:
            why = f"ended with status {status}: {(words.strip().splitlines() or ['no word'])[-1]}"
        return f"The process of {self.module} {why}. What was finished is kept; run again to go on."


# Begun, and without a job so far; one a module.
_waiting: dict[str, WorkerProcess] = {}


@contextmanager
def run_worker(module: str, job: Mapping[str, Any]) -> Iterator[WorkerProcess]:
    """Have ``python -m module`` work on ``job``; it is killed if it still runs when the block ends, or when we die.

    It is the one that `prestart` started, where there is one that still waits.
    """
    started = _waiting.pop(module, None)
    if started is not None and started.process.poll() is not None:  # died meanwhile, as when memory runs out
        _end(started)
        started = None
    started = started or _start(module)
    with started.scratch, started.stderr, started.process as process:
        try:
            if process.stdin is not None:
                # Left open: that it closes tells the process that nobody waits for it any more.
                with suppress(BrokenPipeError):  # it has died already: `result` says how
                    process.stdin.write(json.dumps(dict(job)) + "\n")
                    process.stdin.flush()
            yield started
        finally:
            process.kill()
            if process.stdin is not None:
                with suppress(BrokenPipeError):  # it would stand in the place of how the process ended
                    process.stdin.close()


def prestart(module: str) -> None:
    """Start ``python -m module`` now, for the next `run_worker` of it: meanwhile it prepares itself."""
    if module not in _waiting:
        _waiting[module] = _start(module)


def stop_idle() -> None:
    """End what `prestart` started and nobody had work for."""
    while _waiting:
        _end(_waiting.popitem()[1])


def _end(started: WorkerProcess) -> None:
    with started.scratch, started.stderr, started.process as process:
        process.kill()


def _start(module: str) -> WorkerProcess:
    # Closed with the process, by whoever has that.
    stderr = tempfile.TemporaryFile()  # noqa: SIM115
    _sweep_scratch(module)
    # What a process that it started writes there while we remove it must not stand in the place of the result.
    scratch = tempfile.TemporaryDirectory(prefix=f"{_scratch_of(module)}{os.getpid()}-", ignore_cleanup_errors=True)
    process = subprocess.Popen(  # noqa: S603  # our own interpreter and module
        [sys.executable, "-m", module],
        cwd=PROJECT_ROOT,
        env={**os.environ, "TMPDIR": scratch.name},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        encoding="utf-8",
        # Ctrl-C is ours to handle.
        process_group=0,
    )
    return WorkerProcess(module, process, stderr, scratch)


def _scratch_of(module: str) -> str:
    return f"{module}-{platform.node()}-"


def _sweep_scratch(module: str) -> None:
    """Remove what killed processes of this machine left of theirs."""
    for left in Path(tempfile.gettempdir()).glob(f"{glob.escape(_scratch_of(module))}*"):
        owner = left.name.split("-")[-2]
        if owner.isdigit() and not psutil.pid_exists(int(owner)):
            shutil.rmtree(left, ignore_errors=True)  # somebody else's, perhaps


def serve_job(work: Callable[[dict[str, Any], Emit], Any], prepare: Callable[[], object] = lambda: None) -> None:
    """The other side, for the module's main: read the job, call ``work(job, tell)`` and send what it returns.

    ``prepare()`` comes first: what can be done before the job is known, see `prestart`.
    What is printed meanwhile, by a library say, goes to stderr. Records of our own loggers are sent, from INFO on.
    """
    gc.disable()  # among all that is about to be imported it would find nothing
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
            if not line:  # there was no work, or whoever had some has died
                os._exit(0)
            threading.Thread(target=_end_with_parent, daemon=True).start()
            result = work(json.loads(line), lambda event: send("event", event))
        except FashionAnnError as error:
            send("fault", {"type": type(error).__name__, "message": str(error)})
        except OSError as error:
            send("os_error", [error.errno, error.strerror, error.filename])
        else:
            send("result", result)
    # Nothing is left to be done, and tearing the backend down takes a while.
    sys.stderr.flush()
    os._exit(0)


def _end_with_parent() -> None:
    sys.stdin.read()
    os._exit(1)
