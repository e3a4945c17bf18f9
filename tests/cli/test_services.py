"""State file and process identity of `up`, `down` and `status`. No service is started."""

import fcntl
import json
import os
import platform
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from cli import services
from cli.printed_commands import runnable
from cli.server_process import start_mark
from cli.services import Process, State
from schemas.errors import ServiceFailed
from tests.cli.conftest import Run
from tests.field_faults import field_fault

URL = "http://127.0.0.1:2/api"  # of no server, because `down` removes the prefect.toml of this checkout that names it


def this_process() -> Process:
    return known(psutil.Process())


def known(process: psutil.Process) -> Process:
    return Process(pid=process.pid, started=start_mark(process), url=URL, logged=0)


@contextmanager
def waiting_process(**variables: str) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a Python process until the end of the block."""
    program = [sys.executable, "-c", "print(flush=True); input()"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(program, env={**os.environ, **variables}, **pipes) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.kill()


def test_state_is_read_as_written(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    assert State.read(path) == State(port=None, processes={})
    state = State(port=4711, processes={"server": this_process()})
    state.write(path)
    assert State.read(path) == state
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("text", ["", "{}", '{"port": 1, "processes": {"server": {"pid": 1}}}', "[]"])
def test_unreadable_state_is_an_error_with_its_path(tmp_path: Path, text: str) -> None:
    path = tmp_path / "state.json"
    path.write_text(text)
    with pytest.raises(ServiceFailed, match=r"state\.json"):
        State.read(path)


@field_fault(
    "identity by something that changes",
    "`state.json` was written by an earlier version, and its services run",
    "`status`, `up` and `down` end with one sentence that names the file and the processes",
)
@pytest.mark.parametrize("command", ["status", "up", "down"])
def test_state_of_an_earlier_version_is_reported(run: Run, tmp_path: Path, command: str) -> None:
    folder = tmp_path / "services"
    folder.mkdir()
    with waiting_process(FASHION_ANN_SERVICES=str(folder)) as process:
        server = {"pid": process.pid, "started": 1796052663.76, "url": URL}
        (folder / "state.json").write_text(json.dumps({"port": 4200, "processes": {"server": server}}))
        status, out, err = run(command, "--artifacts-dir", tmp_path)
        assert (status, out) == (1, "")
        assert "Traceback" not in err
        for part in ("state.json", "processes.server.started", str(process.pid), "Remove the file"):
            assert part in err
        assert process.poll() is None


def test_process_is_identified_by_pid_and_start() -> None:
    this = this_process()
    assert this.alive() == psutil.Process()
    with waiting_process() as other:
        assert known(psutil.Process(other.pid)).started != this.started
        assert this.model_copy(update={"pid": other.pid}).alive() is None


@field_fault(
    "identity by something that changes",
    "The clock is set by ten seconds or by hours, as by NTP or after a suspend",
    "A process that `up` started is still recognized, so no second server starts on its database",
)
@pytest.mark.parametrize("seconds", [10, -86_400])
@pytest.mark.skipif(platform.system() != "Linux", reason="only Linux computes start times from the clock")
def test_process_is_known_after_the_clock_was_set(seconds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with waiting_process() as process:
        recorded = known(psutil.Process(process.pid))
        before = psutil.boot_time()
        # The kernel computes the boot time from the clock and the uptime.
        monkeypatch.setattr("psutil._pslinux.boot_time", lambda: before + seconds)
        assert psutil.Process(process.pid).create_time() >= before + seconds
        assert recorded.alive() is not None


@field_fault(
    "identity by something that changes",
    "After a reboot another process has the pid and the start time after boot of a service",
    "The process is not taken for the service",
)
@pytest.mark.skipif(platform.system() != "Linux", reason="only Linux counts start times from the boot")
def test_start_of_another_boot_is_another_process() -> None:
    this = this_process()
    boot = re.sub("[0-9a-f]{8}-", "00000000-", this.started)
    assert this.model_copy(update={"started": boot}).alive() is None


def test_zombie_is_not_alive() -> None:
    with waiting_process() as child:
        process = psutil.Process(child.pid)
        recorded = known(process)
        assert recorded.alive() is not None
        child.kill()
        while process.status() != psutil.STATUS_ZOMBIE:
            os.sched_yield()
        assert recorded.alive() is None
    assert recorded.alive() is None


def run_json(run: Run, command: str, artifacts: Path) -> tuple[int, Any, str]:
    """Return exit status, JSON output and stderr."""
    status, out, err = run(command, "--json", "--artifacts-dir", artifacts)
    return status, json.loads(out), err


def test_status_and_down_before_the_first_up_create_nothing(run: Run, tmp_path: Path) -> None:
    artifacts = tmp_path / "artifacts"
    status, output, err = run_json(run, "status", artifacts)
    assert (status, output["url"]) == (1, None)
    assert [(service["name"], service["running"]) for service in output["services"]] == [
        *(("server", False), ("worker-cpu", False), ("worker-gpu", False))
    ]
    assert "fashion-ann up" in err
    assert run_json(run, "down", artifacts)[:2] == (0, {"stopped": []})
    assert not artifacts.exists()


def test_down_after_a_reboot_spares_a_reused_pid(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "services" / "state.json"
    path.parent.mkdir()
    with waiting_process() as unrelated:
        earlier = this_process().model_copy(update={"pid": unrelated.pid})
        names = ("server", "worker-cpu", "worker-gpu")
        State(port=4711, processes=dict.fromkeys(names, earlier)).write(path)
        status, output, _ = run_json(run, "status", tmp_path)
        assert (status, {service["says"] for service in output["services"]}) == (1, {"died"})
        assert run_json(run, "down", tmp_path)[:2] == (0, {"stopped": []})
        assert unrelated.poll() is None
    assert State.read(path) == State(port=4711, processes={})  # the port stays the same


@field_fault(
    "identity by something that changes",
    "The artifacts folder is reached through a link",
    "`down` still finds the processes of its services",
)
def test_down_stops_orphans_of_this_folder_only(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "services"
    folder.mkdir()
    (tmp_path / "link").symlink_to(tmp_path)
    with (
        waiting_process(FASHION_ANN_SERVICES=str(folder)) as orphan,
        waiting_process(FASHION_ANN_SERVICES=str(tmp_path / "other")) as other,
    ):
        assert run_json(run, "down", tmp_path / "link")[:2] == (0, {"stopped": ["1 processes of flow runs"]})
        assert orphan.wait(timeout=10) != 0
        assert other.poll() is None


def test_workers_get_no_secret_of_the_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PREFECT_SERVER_API_AUTH_STRING", "a:b")
    monkeypatch.setenv("PREFECT_API_DATABASE_CONNECTION_URL", "postgresql+asyncpg://u:hidden@127.0.0.1/prefect")
    variables = services.worker_environment(tmp_path, URL, {"PREFECT_SERVER_API_AUTH_STRING": "a:b"})
    assert variables["PREFECT_API_AUTH_STRING"] == "a:b"
    assert "PREFECT_SERVER_API_AUTH_STRING" not in variables
    assert not any("hidden" in value for value in variables.values())
    assert variables["FASHION_ANN_ARTIFACTS_DIR"] == str(tmp_path)


@field_fault(
    "identity by something that changes",
    "The host name changes, or another machine has the same one",
    "A worker keeps the name that `state.json` records, and no other machine has it",
)
def test_worker_names_do_not_depend_on_the_host_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = State(port=None, machine="first-host-1f2e", processes={})
    state.write(tmp_path / "state.json")
    monkeypatch.setattr(platform, "node", lambda: "renamed")
    assert services.worker_name("cpu", State.read(tmp_path / "state.json")) == "cpu-first-host-1f2e"


@field_fault(
    "environment of the machine",
    "The PREFECT_HOME of the services is a file",
    "`up` names it before it starts a server",
)
def test_up_names_a_file_in_place_of_its_home(run: Run, tmp_path: Path) -> None:
    home = tmp_path / "services" / "prefect"
    home.parent.mkdir()
    home.touch()
    assert run("up", "--artifacts-dir", tmp_path) == (1, "", f"fashion-ann up: {home}: File exists.\n")


@field_fault(
    "identity by something that changes",
    "A server that was started by hand, as after a reboot, uses the database of the services",
    "`up` starts no second server and names the database",
)
def test_up_notices_a_server_started_by_hand(run: Run, tmp_path: Path) -> None:
    database = tmp_path / "services" / "prefect" / "prefect.db"
    database.parent.mkdir(parents=True)
    program = (
        "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute('PRAGMA journal_mode=WAL');"
        "c.execute('CREATE TABLE t (x)'); print(flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", program, str(database)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        server.stdout.readline()
        status, _, err = run("up", "--artifacts-dir", tmp_path)
        server.kill()
    assert (status, f"uses {database}" in err) == (1, True)


@field_fault(
    "identity by something that changes",
    "`state.json` is lost while the services run",
    "`status` names their processes, `up` names `down`, and `down` ends them",
)
def test_down_ends_the_services_of_a_lost_state(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "services"
    folder.mkdir()
    with (folder / "server.lock").open("wb") as lock, waiting_process(FASHION_ANN_SERVICES=str(folder)) as server:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert str(server.pid) in run("status", "--artifacts-dir", tmp_path)[1]
        status, _, err = run("up", "--artifacts-dir", tmp_path)
        assert (
            status,
            f"fashion-ann down --artifacts-dir {tmp_path}` to end the processes of its services: {server.pid}" in err,
        ) == (1, True)
        assert run_json(run, "down", tmp_path)[:2] == (0, {"stopped": ["1 processes"]})
        assert server.wait(timeout=10) != 0


@field_fault(
    "identity by something that changes",
    "`down` runs in another container on the same volume",
    "It ends with an error and keeps `state.json`, because a running server holds a lock",
)
def test_server_of_another_container_is_noticed(run: Run, tmp_path: Path) -> None:
    (tmp_path / "services").mkdir()
    state = State(port=4711, processes={"server": this_process().model_copy(update={"started": "elsewhere"})})
    state.write(tmp_path / "services" / "state.json")
    with (tmp_path / "services" / "server.lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        status, _, err = run("down", "--artifacts-dir", tmp_path)
    assert status == 1
    assert "server.lock is locked" in err
    assert State.read(tmp_path / "services" / "state.json") == state


@field_fault(
    "failure without a message",
    "`up` or `down` waits for another one",
    "One line on stderr names the lock",
)
def test_waiting_for_another_up_is_reported(run: Run, tmp_path: Path) -> None:
    (tmp_path / "services").mkdir()
    with (tmp_path / "services" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        threading.Timer(0.5, fcntl.flock, (lock, fcntl.LOCK_UN)).start()
        status, out, err = run("down", "--artifacts-dir", tmp_path)
    assert (status, out) == (0, "Nothing was running.\n")
    assert err == runnable(f"waiting for another `fashion-ann up` or `down`, which holds {tmp_path}/services/lock\n")
