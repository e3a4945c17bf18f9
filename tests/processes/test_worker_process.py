import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from schemas.config import PROJECT_ROOT
from schemas.errors import DeviceUnavailable, ProcessDied
from tasks.runtime.worker_process import keep_workers, prestart, run_worker, stop_idle
from tests.processes.kill import gone, wait_until_gone

WORKER = "tests.processes.worker_for_tests"


def test_returns_events_and_result_despite_printed_output() -> None:
    events: list[Any] = []
    with run_worker(WORKER, {"text": "é\n"}) as process:
        result = process.result(events.append)
    assert (result["prefect"], result["job"]) == (False, {"text": "é\n"})
    assert events == [{"n": 1}]


@pytest.mark.parametrize(
    ("module", "end", "error", "message"),
    [
        (WORKER, "fault", DeviceUnavailable, "^there is none$"),
        (WORKER, "full", OSError, "No space left on device"),
        (WORKER, "kill", ProcessDied, "was ended by SIGKILL, which the kernel also sends when memory runs out"),
        (WORKER, "status", ProcessDied, "ended with status 1: no more. Finished stages are kept"),
        ("tasks.nowhere", "", ProcessDied, "No module named"),
    ],
)
def test_raises_how_the_worker_ended(module: str, end: str, error: type[Exception], message: str) -> None:
    with run_worker(module, {"end": end}) as process, pytest.raises(error, match=message):
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
    assert results[0]["worker"] == prestarted != results[1]["worker"]
    assert results[0]["prepared"] == [prestarted]
    assert children() == before


def test_a_kept_worker_forks_a_fresh_process_for_each_job() -> None:
    before, results = children(), []
    with keep_workers():
        for number in range(3):
            with run_worker(WORKER, {"number": number}) as process:
                results.append(process.result())
    assert len({result["pid"] for result in results}) == 3
    assert len({result["worker"] for result in results}) == 1
    assert [result["jobs"] for result in results] == [[{"number": number}] for number in range(3)]
    assert {pid for result in results for pid in result["prepared"]} == {results[0]["worker"]}
    assert children() == before


@pytest.mark.parametrize("end", ["fault", "kill", "status"])
def test_a_worker_whose_job_failed_is_not_kept(end: str) -> None:
    before = children()
    with keep_workers():
        with pytest.raises((DeviceUnavailable, ProcessDied)), run_worker(WORKER, {"end": end}) as process:
            process.result()
        assert children() == before
        with run_worker(WORKER, {}) as process:
            assert process.result()["job"] == {}


def test_the_process_of_a_job_ends_with_a_killed_worker() -> None:
    def kill_worker(pid: int) -> None:
        psutil.Process(pid).parent().kill()

    with run_worker(WORKER, {"sleep": 600}) as process, pytest.raises(ProcessDied, match="SIGKILL"):
        process.result(kill_worker)


@pytest.mark.parametrize(
    "end", [lambda pid: stop_idle(), lambda pid: os.kill(pid, signal.SIGKILL)], ids=["stop", "kill"]
)
def test_replaces_a_prestarted_worker_that_ended(end: Callable[[int], None]) -> None:
    before = children()
    prestart(WORKER)
    (pid,) = children() - before
    end(pid)
    wait_until_gone(pid)
    with run_worker(WORKER, {}) as process:
        assert process.result()["worker"] != pid


def test_raises_how_a_worker_ended_that_never_read_its_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess.Popen, "poll", lambda self: None)  # it dies just after this check
    before = children()
    prestart("tasks.nowhere")
    while children() - before:
        time.sleep(0.02)
    with pytest.raises(ProcessDied, match="No module named"), run_worker("tasks.nowhere", {}) as process:
        process.result()


def test_a_worker_of_another_group_ends_with_its_block() -> None:
    pids: list[int] = []

    def stop(pid: int) -> None:
        assert os.getpgid(pid) != os.getpgid(0)  # Ctrl-C reaches only this process
        pids.append(pid)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), run_worker(WORKER, {"sleep": 600}) as process:
        process.result(stop)
    wait_until_gone(pids[0])


@pytest.mark.parametrize(
    "program",
    [
        f"prestart({WORKER!r})\nprint(psutil.Process().children()[0].pid, flush=True)\ninput()",
        f"with run_worker({WORKER!r}, {{'sleep': 600}}) as process:\n"
        "    process.result(lambda pid: print(pid, flush=True))",
    ],
    ids=["idle", "working"],
)
def test_a_worker_ends_with_a_killed_parent(program: str, tmp_path: Path) -> None:
    program = f"import psutil\nfrom tasks.runtime.worker_process import prestart, run_worker\n{program}"
    # The scratch folder stays: the parent that would remove it is dead.
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "env": {**os.environ, "TMPDIR": str(tmp_path)}}
    with subprocess.Popen([sys.executable, "-c", program], cwd=PROJECT_ROOT, **pipes) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert not gone(pid)
        parent.kill()
    wait_until_gone(pid)


def test_removes_the_scratch_folder_of_a_killed_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    program = f"import time\nfrom tasks.runtime.worker_process import prestart\nprestart({WORKER!r})\n"
    pipes: Any = {"stdout": subprocess.PIPE, "env": {**os.environ, "TMPDIR": str(tmp_path)}}
    program += "print(flush=True)\ntime.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", program], cwd=PROJECT_ROOT, **pipes) as other:
        other.stdout.readline()  # type: ignore[union-attr]
        with run_worker(WORKER, {}) as process:
            assert process.result()["job"] == {}
        (used,) = tmp_path.iterdir()  # of a process that lives
        other.kill()
    with run_worker(WORKER, {}) as process:
        assert Path(process.result()["left"]).exists()
        assert not used.exists()
    assert list(tmp_path.iterdir()) == []
