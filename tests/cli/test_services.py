"""State file, process identity and prefect.toml of `up`, `down` and `status`. No service is started."""

import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from cli import services
from cli.services import Process, State
from schemas.errors import ServiceFailed
from tests.cli.conftest import Run

URL = "http://127.0.0.1:4200/api"
OTHER_URL = "http://127.0.0.1:1/api"


def this_process() -> Process:
    return Process(pid=os.getpid(), started=psutil.Process().create_time(), url=URL)


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


def test_process_is_identified_by_pid_and_start_time() -> None:
    known = this_process()
    assert known.alive() == psutil.Process()
    assert known.model_copy(update={"started": known.started - 60}).alive() is None


def test_zombie_is_not_alive() -> None:
    with waiting_process() as child:
        process = psutil.Process(child.pid)
        known = Process(pid=child.pid, started=process.create_time(), url=URL)
        assert known.alive() is not None
        child.kill()
        while process.status() != psutil.STATUS_ZOMBIE:
            os.sched_yield()
        assert known.alive() is None
    assert known.alive() is None


def test_prefect_toml_is_replaced_and_removed(tmp_path: Path) -> None:
    path = tmp_path / "prefect.toml"
    services.write_prefect_toml(path, OTHER_URL)
    services.write_prefect_toml(path, URL)
    assert tomllib.loads(path.read_text()) == {"api": {"url": URL}}
    services.remove_prefect_toml(path, {OTHER_URL})
    assert path.exists()
    services.remove_prefect_toml(path, {URL})
    assert not path.exists()


@pytest.mark.parametrize("text", ["[api]\nurl = 'http://elsewhere/api'\n", ""])
def test_prefect_toml_of_the_user_is_kept(tmp_path: Path, text: str) -> None:
    path = tmp_path / "prefect.toml"
    path.write_text(text)
    services.write_prefect_toml(path, URL)
    services.remove_prefect_toml(path, {URL})
    assert path.read_text() == text


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
        started = psutil.Process(unrelated.pid).create_time() - 86_400
        known = Process(pid=unrelated.pid, started=started, url=URL)
        names = ("server", "worker-cpu", "worker-gpu")
        State(port=4711, processes=dict.fromkeys(names, known)).write(path)
        status, output, _ = run_json(run, "status", tmp_path)
        assert (status, {service["says"] for service in output["services"]}) == (1, {"died"})
        assert run_json(run, "down", tmp_path)[:2] == (0, {"stopped": []})
        assert unrelated.poll() is None
    assert State.read(path) == State(port=4711, processes={})  # the port stays the same


def test_down_stops_orphans_of_this_folder_only(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "services"
    folder.mkdir()
    with (
        waiting_process(FASHION_ANN_SERVICES=str(folder)) as orphan,
        waiting_process(FASHION_ANN_SERVICES=str(tmp_path / "other")) as other,
    ):
        assert run_json(run, "down", tmp_path)[:2] == (0, {"stopped": ["1 processes of flow runs"]})
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
