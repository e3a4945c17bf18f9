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


def test_the_job_goes_there_and_events_and_the_result_come_back_whatever_is_printed() -> None:
    events: list[Any] = []
    with run_worker(WORKER, {"text": "é\n"}) as process:
        found = process.result(events.append)
    assert (found["prefect"], found["job"]) == (False, {"text": "é\n"})
    assert events == [{"n": 1}]


@pytest.mark.parametrize(
    ("end", "error", "says"),
    [
        ("fault", DeviceUnavailable, "^there is none$"),
        ("full", OSError, "No space left on device"),
        ("kill", ProcessDied, "was ended by SIGKILL, as the system does when memory runs out"),
        ("status", ProcessDied, "ended with status 1: no more. What was finished is kept"),
    ],
)
def test_how_it_ended_is_raised_here(end: str, error: type[Exception], says: str) -> None:
    with run_worker(WORKER, {"end": end}) as process, pytest.raises(error, match=says):
        process.result()


def test_temporary_files_that_it_leaves_are_removed() -> None:
    with run_worker(WORKER, {}) as process:
        left = Path(process.result()["left"])
        assert left.exists()
    assert not left.parent.exists()


def test_what_cannot_be_removed_does_not_stand_in_the_place_of_the_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with run_worker(WORKER, {"end": "grandchild"}) as process:
        assert process.result()["job"] == {"end": "grandchild"}


def children() -> set[int]:
    return {child.pid for child in psutil.Process().children() if not gone(child.pid)}


def test_one_that_was_begun_is_given_the_next_job_and_the_one_after_it_is_another() -> None:
    before = children()
    prestart(WORKER)
    prestart(WORKER)
    (begun,) = children() - before
    found = []
    for number in range(2):
        with run_worker(WORKER, {"number": number}) as process:
            found.append(process.result())
    assert found[0]["pid"] == begun != found[1]["pid"]
    assert found[0]["prepared"] == ["before the job"]
    assert children() == before


def test_one_that_was_begun_and_not_needed_is_ended() -> None:
    before = children()
    prestart(WORKER)
    (pid,) = children() - before
    stop_idle()
    assert gone(pid)
    with run_worker(WORKER, {}) as process:
        assert process.result()["pid"] != pid


def test_one_that_died_before_its_job_is_replaced() -> None:
    before = children()
    prestart(WORKER)
    (pid,) = children() - before
    os.kill(pid, signal.SIGKILL)
    wait_until_gone(pid)
    with run_worker(WORKER, {}) as process:
        assert process.result()["pid"] != pid


def test_how_one_that_cannot_start_ended_is_told_also_when_the_job_never_reached_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(subprocess.Popen, "poll", lambda self: None)  # it dies just after it was looked at
    before = children()
    prestart("tasks.nowhere")
    while children() - before:
        time.sleep(0.02)
    with pytest.raises(ProcessDied, match="No module named"), run_worker("tasks.nowhere", {}) as process:
        process.result()


def test_one_that_was_begun_ends_when_whoever_began_it_is_killed(tmp_path: Path) -> None:
    program = (
        "import psutil\nfrom tasks.runtime.worker_process import prestart\n"
        f"prestart({WORKER!r})\nprint(psutil.Process().children()[0].pid, flush=True)\ninput()"
    )
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    # Its folder for temporary files stays: who would remove it is dead.
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen([sys.executable, "-c", program], cwd=PROJECT_ROOT, env=environment, **pipes) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert not gone(pid)
        parent.kill()
    wait_until_gone(pid)


def test_a_module_that_is_not_there_is_told() -> None:
    with run_worker("tasks.nowhere", {}) as process, pytest.raises(ProcessDied, match="No module named"):
        process.result()


def test_it_ends_with_the_block_that_started_it() -> None:
    pids: list[int] = []

    def stop(pid: int) -> None:
        pids.append(pid)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), run_worker(WORKER, {"sleep": 600}) as process:
        process.result(stop)
    assert gone(pids[0])


def test_it_ends_when_whoever_started_it_is_killed(tmp_path: Path) -> None:
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


def test_ctrl_c_on_the_terminal_is_left_to_whoever_started_it() -> None:
    with run_worker(WORKER, {"sleep": 0.2}) as process:
        groups: list[int] = []
        process.result(lambda event: groups.append(os.getpgid(event)) if isinstance(event, int) else None)
    assert groups != [os.getpgid(0)]


def test_what_a_killed_process_left_for_temporary_files_is_removed_with_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    left, used = (tmp_path / f"{WORKER}-{platform.node()}-{pid}-abcdefgh" for pid in (dead.pid, os.getpid()))
    for folder in (left, used):
        (folder / "below").mkdir(parents=True)
    with run_worker(WORKER, {}) as process:
        assert Path(process.result()["left"]).exists()
    assert list(tmp_path.iterdir()) == [used]
