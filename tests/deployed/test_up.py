"""`up`, `down`, `status` with real processes, on a copy of the checkout: what it writes there is no other's."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.deployed.postgres import Postgres
from tests.processes.kill import wait_until_gone
from tests.sample import SAMPLE

ROOT = Path(__file__).resolve().parents[2]
LEFT_OUT = shutil.ignore_patterns(".*", "__pycache__", "artifacts", "data", "*.egg-info", "prefect.toml")
PASSWORD = "somebody:secret"  # noqa: S105  # of a server that lives as long as a test
QUICK = {
    "training": {"epochs": 2, "batch_size": 64, "validation_size": 100},
    "promotion": {"minimum_accuracy": 0, "minimum_recall": 0},
}


class Checkout:
    """A copy of this checkout, with artifacts of its own."""

    def __init__(self, folder: Path) -> None:
        shutil.copytree(ROOT, folder, ignore=LEFT_OUT)
        self.folder = folder
        # Else it would announce the sample in the middle of some test.
        self.watch("0 0 1 1 *")
        self.services = folder / "artifacts" / "services"
        ours = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "FASHION_ANN_"))}
        self.environment = {
            **ours,
            "PYTHONPATH": str(folder),
            "PREFECT_HOME": str(folder.parent / "home-of-the-user"),
            "FASHION_ANN_DATA_DIR": str(SAMPLE),
        }

    def watch(self, cron: str) -> None:
        """When watch-data looks, from the next `up` on."""
        path, entrypoint = self.folder / "prefect.yaml", "entrypoint: flows/watch_data.py"
        before, after = path.read_text().split(entrypoint)
        path.write_text(before + entrypoint + re.sub("cron: .*", f'cron: "{cron}"', after))

    def run(self, *arguments: str, module: str = "cli.main", **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", module, *arguments],
            cwd=self.folder,
            env={**self.environment, **variables},
            capture_output=True,
            text=True,
            timeout=600,
            # As a shell does with what it runs in the background.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
        )

    def services_of(self, command: str, **variables: str) -> dict[str, Any]:
        """The answer of `up` or `status`, its services by name."""
        done = self.run(command, "--json", **variables)
        assert done.stdout, done.stderr
        told: dict[str, Any] = json.loads(done.stdout)
        return {
            **told,
            "services": {service["name"]: service for service in told["services"]},
            "status": done.returncode,
        }

    def up(self, **variables: str) -> dict[str, Any]:
        done = self.run("up", "--json", **variables)
        assert done.returncode == 0, done.stderr
        told = self.services_of("status", **variables)
        assert told["status"] == 0
        return told

    def processes(self) -> list[psutil.Process]:
        """Those that are there because of `up`, whoever their parents are by now."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("FASHION_ANN_SERVICES") == str(self.services):
                    found.append(process)
            except psutil.Error:
                continue
        return found


@pytest.fixture
def checkout(tmp_path: Path) -> Iterator[Checkout]:
    made = Checkout(tmp_path / "checkout")
    yield made
    made.run("down")
    for process in made.processes():
        process.kill()


def _pids(told: dict[str, Any]) -> dict[str, int]:
    return {name: service["pid"] for name, service in told["services"].items()}


def _kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    wait_until_gone(pid)


def _runs(url: str) -> dict[str, str]:
    """State by id of every flow run of the main flow, but for the nights to come."""
    return {run["id"]: run["state_type"] for run in _runs_of("train-fashion-mnist", url) if not run["auto_scheduled"]}


def _runs_of(flow: str, url: str) -> list[dict[str, Any]]:
    asked = {"flows": {"name": {"any_": [flow]}}}
    answer = httpx.post(f"{url}/flow_runs/filter", json=asked, timeout=120)  # sqlite may be locked for a minute
    found: list[dict[str, Any]] = answer.raise_for_status().json()
    return found


def _soon(look: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 600
    while not (found := look()):
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.3)
    return found


def test_up_starts_what_is_missing_and_down_leaves_no_process_and_all_history(checkout: Checkout) -> None:
    first = checkout.up()
    assert set(first["services"]) == {"server", "worker-cpu", "worker-gpu"}
    assert {process.pid for process in checkout.processes()} == set(_pids(first).values())
    assert all(Path(service["log"]).parent == Path(first["logs"]) for service in first["services"].values())
    assert _pids(checkout.up()) == _pids(first)

    _kill(_pids(first)["server"])
    found = checkout.services_of("status")
    assert found["status"] == 1
    assert [name for name, service in found["services"].items() if not service["running"]] == ["server"]
    second = checkout.up()
    assert second["url"] == first["url"]
    assert {name for name, pid in _pids(second).items() if pid != _pids(first)[name]} == {"server"}

    _kill(_pids(second)["worker-cpu"])
    third = checkout.up()
    assert {name for name, pid in _pids(third).items() if pid != _pids(second)[name]} == {"worker-cpu"}

    # A bare command in the checkout finds the server, and so does a run.
    asked = checkout.run("deployment", "ls", module="prefect", COLUMNS="200")
    assert "train-fashion-mnist/on-demand" in asked.stdout, asked.stderr
    flags = ("--epochs", "1", "--batch-size", "64", "--validation-size", "100")
    trained = checkout.run("train", *flags, "--minimum-accuracy", "0", "--minimum-recall", "0")
    assert trained.returncode == 0, trained.stderr
    assert list(_runs(first["url"]).values()) == ["COMPLETED"]

    done = checkout.run("down", "--json")
    assert json.loads(done.stdout) == {"stopped": ["worker-cpu", "worker-gpu", "server"]}
    for name in ("worker-cpu", "worker-gpu"):  # by themselves: nobody had to kill them
        _, _, since = Path(third["services"][name]["log"]).read_text(encoding="utf-8").rpartition("started!")
        assert "stopped!" in since
    assert checkout.processes() == []
    assert not (checkout.folder / "prefect.toml").exists()
    with pytest.raises(httpx.TransportError):
        httpx.get(f"{first['url']}/health")

    again = checkout.up()
    assert again["url"] == first["url"]
    assert list(_runs(again["url"]).values()) == ["COMPLETED"]


def test_two_ups_at_once_start_one_of_each(checkout: Checkout) -> None:
    command = [sys.executable, "-m", "cli.main", "up", "--json"]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    both = [subprocess.Popen(command, cwd=checkout.folder, env=checkout.environment, **pipes) for _ in range(2)]
    told = [json.loads(process.communicate(timeout=600)[0]) for process in both]
    assert told[0] == told[1]
    assert {process.pid for process in checkout.processes()} == {service["pid"] for service in told[0]["services"]}


def test_up_refuses_to_leave_workers_on_other_data_and_changes_nothing(checkout: Checkout) -> None:
    before = _pids(checkout.up())
    other = checkout.run("up", FASHION_ANN_DATA_DIR=str(checkout.folder))
    assert other.returncode == 1
    assert str(SAMPLE) in other.stderr
    assert str(checkout.folder) in other.stderr
    assert _pids(checkout.services_of("status")) == before
    assert _pids(checkout.up(FASHION_ANN_DATA_DIR=f"{SAMPLE}/../data")) == before


def test_up_keeps_its_history_in_postgres_where_it_is_told_to(checkout: Checkout, postgres: Postgres) -> None:
    there = {"PREFECT_API_DATABASE_CONNECTION_URL": postgres.new_database("up")}
    url = checkout.up(**there)["url"]
    parameters = [f"{name}={json.dumps(value)}" for name, value in QUICK.items()]
    run = ["deployment", "run", "train-fashion-mnist/on-demand", *(f"-p{text}" for text in parameters), "--watch"]
    done = checkout.run(*run, module="prefect")
    assert done.returncode == 0, done.stderr
    assert list(checkout.services.rglob("*.db")) == []
    refused = checkout.run("up")
    assert refused.returncode == 1
    assert "PREFECT_API_DATABASE_CONNECTION_URL" in refused.stderr
    checkout.run("down")
    assert checkout.processes() == []
    assert list(_runs(checkout.up(**there)["url"]).values()) == ["COMPLETED"]
    assert checkout.services_of("status")["url"] == url


def _train_for_long(checkout: Checkout, url: str) -> str:
    """The id of a run whose training goes on, and that nobody waits for the end of."""
    parameters = {**QUICK, "training": {**QUICK["training"], "epochs": 10_000}}
    run = checkout.run(
        *("deployment", "run", "train-fashion-mnist/on-demand", "--params", json.dumps(parameters)), module="prefect"
    )
    assert run.returncode == 0, run.stderr
    _soon(lambda: list((checkout.folder / "artifacts").glob("checkpoints/*.npz")))
    (run_id,) = (run["id"] for run in _runs_of("train-fashion-mnist", url) if run["parameters"].get("training"))
    return str(run_id)


def test_a_cron_fires_and_up_after_a_power_cut_resumes_it_and_ends_what_was_running(checkout: Checkout) -> None:
    checkout.watch("* * * * *")
    url = checkout.up()["url"]

    def fired_since(moment: datetime) -> list[str]:
        ended = [run for run in _runs_of("watch-data", url) if run["state_type"] == "COMPLETED"]
        return [run["id"] for run in ended if datetime.fromisoformat(run["expected_start_time"]) > moment]

    training = _train_for_long(checkout, url)
    trained = datetime.now(UTC)
    _soon(lambda: fired_since(trained))  # one that is over, so that its end frees the place of the next
    for process in checkout.processes():
        process.kill()
    power_cut = datetime.now(UTC)

    assert checkout.up()["url"] == url
    _soon(lambda: fired_since(power_cut))
    _soon(lambda: _runs(url)[training] == "CRASHED")


def test_down_in_the_middle_of_a_run_leaves_it_crashed_and_no_process(checkout: Checkout) -> None:
    _train_for_long(checkout, checkout.up()["url"])
    assert len(checkout.processes()) > 3
    done = checkout.run("down")
    assert done.returncode == 0, done.stderr
    assert checkout.processes() == []
    assert list(_runs(checkout.up()["url"]).values()) == ["CRASHED"]


def test_a_server_with_a_password_refuses_whoever_has_none(checkout: Checkout) -> None:
    protected = {"PREFECT_SERVER_API_AUTH_STRING": PASSWORD}
    url = checkout.up(**protected)["url"]
    flows = f"{url}/flows/filter"
    assert httpx.post(flows, json={}).status_code == 401
    assert httpx.post(flows, json={}, auth=("somebody", "else")).status_code == 401
    assert httpx.post(flows, json={}, auth=("somebody", "secret")).status_code == 200
    refused = checkout.run("train")
    assert refused.returncode == 1
    assert "PREFECT_API_AUTH_STRING" in refused.stderr
    assert checkout.run("deployment", "ls", module="prefect").returncode != 0
    assert checkout.run("deployment", "ls", module="prefect", PREFECT_API_AUTH_STRING=PASSWORD).returncode == 0
    assert PASSWORD not in (checkout.folder / "prefect.toml").read_text()
    assert PASSWORD not in (checkout.services / "state.json").read_text()
    # Another password would be believed to hold, and would not.
    for variables in ({}, {"PREFECT_SERVER_API_AUTH_STRING": "somebody:new"}):
        other = checkout.run("up", **variables)
        assert other.returncode == 1
        assert "PREFECT_SERVER_API_AUTH_STRING" in other.stderr
        assert "secret" not in other.stderr


def test_a_server_that_cannot_start_is_told_with_its_log_and_not_kept(checkout: Checkout) -> None:
    nowhere = {"PREFECT_API_DATABASE_CONNECTION_URL": "postgresql+asyncpg://nobody:hidden@127.0.0.1:9/prefect"}
    done = checkout.run("up", **nowhere)
    assert done.returncode == 1
    assert "server.log" in done.stderr
    assert "hidden" not in done.stderr
    assert checkout.processes() == []
    assert checkout.services_of("status")["services"]["server"]["says"] == "not started"
