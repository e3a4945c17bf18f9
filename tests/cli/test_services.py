"""What `up`, `down` and `status` go by: the state file, whose pid it is, and prefect.toml. No service is started."""

import json
import os
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from cli import services
from cli.main import main
from cli.services import Process, ServiceFailed, State, alive, read_state, write_state

URL = "http://127.0.0.1:4200/api"


def _ourselves() -> Process:
    return Process(os.getpid(), psutil.Process().create_time(), URL)


def test_the_state_survives_being_written(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    assert read_state(path) == State()
    state = State(4711, {"server": _ourselves()})
    write_state(path, state)
    assert read_state(path) == state
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("text", ["", "{}", '{"port": 1, "processes": {"server": {"pid": 1}}}', "[]"])
def test_a_state_that_cannot_be_read_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "state.json"
    path.write_text(text)
    with pytest.raises(ServiceFailed, match=r"state\.json"):
        read_state(path)


def test_a_process_is_ours_by_its_start_and_not_by_its_number_alone() -> None:
    ours = _ourselves()
    found = alive(ours)
    assert found is not None
    assert found.pid == os.getpid()
    assert alive(replace(ours, started=ours.started - 60)) is None


def test_a_process_that_ended_is_not_alive_although_nobody_asked_for_its_status() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        process = psutil.Process(child.pid)
        known = Process(child.pid, process.create_time(), URL)
        assert alive(known) is not None
        child.kill()
        while process.status() != psutil.STATUS_ZOMBIE:
            os.sched_yield()
        assert alive(known) is None
    assert alive(known) is None


def test_prefect_toml_is_written_and_removed_unless_it_is_the_users(tmp_path: Path) -> None:
    path = tmp_path / "prefect.toml"
    services.write_prefect_toml(path, "http://127.0.0.1:1/api")
    services.write_prefect_toml(path, URL)  # our own is replaced
    assert tomllib.loads(path.read_text()) == {"api": {"url": URL}}
    services.remove_prefect_toml(path, {"http://127.0.0.1:1/api"})  # of another server: stays
    assert path.exists()
    services.remove_prefect_toml(path, {URL})
    assert not path.exists()
    for text in ("[api]\nurl = 'http://elsewhere/api'\n", ""):
        path.write_text(text)
        services.write_prefect_toml(path, URL)
        services.remove_prefect_toml(path, {URL})
        assert path.read_text() == text


def _run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    out, err = capsys.readouterr()
    assert isinstance(caught.value.code, int)
    return caught.value.code, out, err


def test_before_the_first_up_nothing_runs_and_nothing_is_made(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    artifacts = tmp_path / "artifacts"
    status, out, err = _run(capsys, "status", "--json", "--artifacts-dir", str(artifacts))
    told = json.loads(out)
    assert status == 1
    assert told["url"] is None
    assert [service["name"] for service in told["services"]] == ["server", "worker-cpu", "worker-gpu"]
    assert not any(service["running"] for service in told["services"])
    assert "fashion-ann up" in err
    status, out, _ = _run(capsys, "down", "--json", "--artifacts-dir", str(artifacts))
    assert (status, json.loads(out)) == (0, {"stopped": []})
    assert not artifacts.exists()


def test_after_a_reboot_the_port_is_kept_and_a_strangers_pid_is_left_alone(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "services" / "state.json"
    path.parent.mkdir()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as stranger:
        then = psutil.Process(stranger.pid).create_time() - 86_400
        names = ("server", "worker-cpu", "worker-gpu")
        write_state(path, State(4711, dict.fromkeys(names, Process(stranger.pid, then, URL))))
        status, out, _ = _run(capsys, "status", "--json", "--artifacts-dir", str(tmp_path))
        assert status == 1
        assert {service["says"] for service in json.loads(out)["services"]} == {"died"}
        status, out, _ = _run(capsys, "down", "--json", "--artifacts-dir", str(tmp_path))
        assert (status, json.loads(out)["stopped"]) == (0, [])
        assert stranger.poll() is None
        stranger.kill()
    assert read_state(path) == State(4711)


def test_down_ends_a_flow_run_whose_worker_is_gone(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = tmp_path / "services"
    folder.mkdir()
    program = [sys.executable, "-c", "print('on', flush=True); input()"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with (
        subprocess.Popen(program, env={**os.environ, "FASHION_ANN_SERVICES": str(folder)}, **pipes) as orphan,
        subprocess.Popen(
            program, env={**os.environ, "FASHION_ANN_SERVICES": str(tmp_path / "other")}, **pipes
        ) as others,
    ):
        for process in (orphan, others):
            assert process.stdout is not None
            process.stdout.readline()
        status, out, _ = _run(capsys, "down", "--json", "--artifacts-dir", str(tmp_path))
        assert (status, json.loads(out)["stopped"]) == (0, ["1 processes of flow runs"])
        assert orphan.wait(timeout=10) != 0
        assert others.poll() is None
        others.kill()


def test_the_passwords_of_the_server_are_not_given_to_flow_runs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PREFECT_SERVER_API_AUTH_STRING", "a:b")
    monkeypatch.setenv("PREFECT_API_DATABASE_CONNECTION_URL", "postgresql+asyncpg://u:hidden@127.0.0.1/prefect")
    given = services._environment(services._Place(tmp_path), URL, {"PREFECT_SERVER_API_AUTH_STRING": "a:b"})
    assert given["PREFECT_API_AUTH_STRING"] == "a:b"
    assert "PREFECT_SERVER_API_AUTH_STRING" not in given
    assert not any("hidden" in value for value in given.values())
    assert given["FASHION_ANN_ARTIFACTS_DIR"] == str(tmp_path)
