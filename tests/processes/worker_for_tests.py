"""A worker whose job names what it does; see test_worker_process."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any

from schemas.errors import DeviceUnavailable
from tasks.runtime.worker_process import Emit, serve_jobs


def main(job: dict[str, Any], emit: Emit) -> Any:
    if "sleep" in job:
        emit(os.getpid())
        time.sleep(job["sleep"])
    if job.get("end") == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if job.get("end") == "status":
        sys.exit("no more")
    if job.get("end") == "fault":
        raise DeviceUnavailable("there is none")
    if job.get("end") == "full":
        raise OSError(28, "No space left on device")
    os.write(1, b"a library prints\n")
    emit({"n": 1})
    left = tempfile.mkstemp()[1]
    if job.get("end") == "grandchild":  # that writes on when we are killed
        subprocess.Popen(["sh", "-c", "while [ $((n += 1)) -lt 20000 ]; do : > $TMPDIR/$n; done"], stdout=2)
        time.sleep(0.1)
    _jobs.append(job)
    return {
        **{"left": left, "prefect": "prefect" in sys.modules, "job": job, "prepared": _prepared, "jobs": _jobs},
        **{"pid": os.getpid(), "worker": os.getppid()},
    }


_prepared: list[int] = []
_jobs: list[dict[str, Any]] = []

if __name__ == "__main__":
    serve_jobs({"tests.processes.worker_for_tests": main}, lambda: _prepared.append(os.getpid()))
