import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from schemas.config import PROJECT_ROOT
from schemas.errors import DeviceUnavailable, ProcessDied
from tasks.runtime.worker_process import prestart, run_worker, stop_idle
from tests.processes.kill import gone, wait_until_gone

WORKER = "tests.processes.worker_for_tests"


def test_returns_events_and_result_despite_printed_output() -> None:
    events: list[Any] = []
    with run_worker(WORKER, {"text": "é\n"}) as process:
        result = process.result(events.append)
    assert (result["prefect"], result["job"]) == (False, {"text": "é\n"})
    assert events == [{"n": 1}]


@pytest.mark.parametrize(
    ("end", "error", "message"),
    [
        ("fault", DeviceUnavailable, "^there is none$"),
        ("full", OSError, "No space left on device"),
        ("kill", ProcessDied, "was ended by SIGKILL, which the kernel also sends when memory runs out"),
        ("status", ProcessDied, "ended with status 1: no more. Finished stages are kept"),
    ],
)
def test_raises_how_the_worker_ended(end: str, error: type[Exception], message: str) -> None:
    with run_worker(WORKER, {"end": end}) as process, pytest.raises(error, match=message):
        process.result()


def test_removes_the_temporary_files_of_a_worker() -> None:
    with run_worker(WORKER, {}) as process:
        left = Path(process.result()["left"])
        assert left.exists()
    assert not left.parent.exists()


def test_a_file_that_cannot_be_removed_does_not_mask_the_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with run_worker(WORKER, {"end": "grandchild"}) as process:
        assert process.result()["job"] == {"end": "grandchild"}


def children() -> set[int]:
    return {child.pid for child in psutil.Process().children() if not gone(child.pid)}


def test_a_prestarted_worker_takes_one_job() -> None:
    before = children()
    prestart(WORKER)
    prestart(WORKER)
    (prestarted,) = children() - before
    results = []
    for number in range(2):
        with run_worker(WORKER, {"number": number}) as process:
            results.append(process.result())
    assert results[0]["pid"] == prestarted != results[1]["pid"]
    assert results[0]["prepared"] == ["before the job"]
    assert children() == before


def test_stop_idle_ends_a_prestarted_worker() -> None:
    before = children()
    prestart(WORKER)
    (pid,) = children() - before
    stop_idle()
    assert gone(pid)
    with run_worker(WORKER, {}) as process:
        assert process.result()["pid"] != pid


def test_replaces_a_prestarted_worker_that_died() -> None:
    before = children()
    prestart(WORKER)
    (pid,) = children() - before
    os.kill(pid, signal.SIGKILL)
    wait_until_gone(pid)
    with run_worker(WORKER, {}) as process:
        assert process.result()["pid"] != pid


def test_raises_how_a_worker_ended_that_never_read_its_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess.Popen, "poll", lambda self: None)  # it dies just after this check
    before = children()
    prestart("tasks.nowhere")
    while children() - before:
        time.sleep(0.02)
    with pytest.raises(ProcessDied, match="No module named"), run_worker("tasks.nowhere", {}) as process:
        process.result()


def test_a_prestarted_worker_ends_with_a_killed_parent(tmp_path: Path) -> None:
    program = (
        "import psutil\nfrom tasks.runtime.worker_process import prestart\n"
        f"prestart({WORKER!r})\nprint(psutil.Process().children()[0].pid, flush=True)\ninput()"
    )
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    # The scratch folder stays: the parent that would remove it is dead.
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen([sys.executable, "-c", program], cwd=PROJECT_ROOT, env=environment, **pipes) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert not gone(pid)
        parent.kill()
    wait_until_gone(pid)


def test_raises_for_a_module_that_does_not_exist() -> None:
    with run_worker("tasks.nowhere", {}) as process, pytest.raises(ProcessDied, match="No module named"):
        process.result()


def test_a_worker_ends_with_its_block() -> None:
    pids: list[int] = []

    def stop(pid: int) -> None:
        pids.append(pid)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), run_worker(WORKER, {"sleep": 600}) as process:
        process.result(stop)
    assert gone(pids[0])


def test_a_worker_ends_with_a_killed_parent(tmp_path: Path) -> None:
    program = (
        "from tasks.runtime.worker_process import run_worker\n"
        f"with run_worker({WORKER!r}, {{'sleep': 600}}) as process:\n"
        "    process.result(lambda pid: print(pid, flush=True))\n"
    )
    pipes: Any = {"stdout": subprocess.PIPE, "text": True, "env": {**os.environ, "TMPDIR": str(tmp_path)}}
    parent = subprocess.Popen([sys.executable, "-c", program], cwd=PROJECT_ROOT, **pipes)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert not gone(pid)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    wait_until_gone(pid)


def test_a_worker_is_in_another_process_group() -> None:
    with run_worker(WORKER, {"sleep": 0.2}) as process:
        groups: list[int] = []
        process.result(lambda event: groups.append(os.getpgid(event)) if isinstance(event, int) else None)
    assert groups != [os.getpgid(0)]


def test_removes_the_scratch_folder_of_a_killed_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    left, used = (tmp_path / f"{WORKER}-{platform.node()}-{pid}-abcdefgh" for pid in (dead.pid, os.getpid()))
    for folder in (left, used):
        (folder / "below").mkdir(parents=True)
    with run_worker(WORKER, {}) as process:
        assert Path(process.result()["left"]).exists()
    assert list(tmp_path.iterdir()) == [used]
