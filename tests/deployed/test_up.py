"""`up`, `down`, `status` with real processes, on a copy of the checkout."""

import contextlib
import json
import os
import re
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from prefect.client.base import PrefectHttpxSyncClient

from cli.automations import MARK_DEAD
from cli.server_process import authorization
from tests.deployed.postgres import Postgres
from tests.field_faults import field_fault
from tests.processes.kill import wait_until_gone
from tests.sample import SAMPLE

ROOT = Path(__file__).resolve().parents[2]
LEFT_OUT = shutil.ignore_patterns(".*", "__pycache__", "artifacts", "data", "*.egg-info", "prefect.toml")
PASSWORD = "user:secret"  # noqa: S105  # of a server that exists only during a test
QUICK = {
    "training": {"epochs": 2, "batch_size": 64, "validation_size": 100},
    "promotion": {"minimum_accuracy": 0, "minimum_recall": 0},
}


class Checkout:
    """A copy of this checkout, with its own artifacts."""

    def __init__(self, folder: Path) -> None:
        shutil.copytree(ROOT, folder, ignore=LEFT_OUT)
        self.folder = folder
        # Never, because it would announce the sample during a test.
        self.set_watch_schedule("0 0 1 1 *")
        self.services = folder / "artifacts" / "services"
        base = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "FASHION_ANN_"))}
        self.environment = {
            **base,
            "PYTHONPATH": str(folder),
            "PREFECT_HOME": str(folder.parent / "home-of-the-user"),
            "FASHION_ANN_DATA_DIR": str(SAMPLE),
        }

    def set_watch_schedule(self, cron: str) -> None:
        """Change the schedule of watch-data, from the next `up` on."""
        path, entrypoint = self.folder / "prefect.yaml", "entrypoint: flows/watch_data.py"
        before, after = path.read_text().split(entrypoint)
        path.write_text(before + entrypoint + re.sub("cron: .*", f'cron: "{cron}"', after))

    def run(
        self, *arguments: str, module: str = "cli.main", within: Sequence[str] = (), **variables: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*within, sys.executable, "-m", module, *arguments],
            cwd=self.folder,
            env={**self.environment, **variables},
            capture_output=True,
            text=True,
            timeout=600,
            # As a shell does for a background job.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
        )

    def services_of(self, command: str, **variables: str) -> dict[str, Any]:
        """Return the JSON of `up` or `status`, with its services by name and its exit status."""
        done = self.run(command, "--json", **variables)
        assert done.stdout, done.stderr
        output: dict[str, Any] = json.loads(done.stdout)
        services = {service["name"]: service for service in output["services"]}
        return {**output, "services": services, "status": done.returncode}

    def up(self, **variables: str) -> dict[str, Any]:
        done = self.run("up", "--json", **variables)
        assert done.returncode == 0, done.stderr
        output = self.services_of("status", **variables)
        assert output["status"] == 0
        return output

    def api(self) -> httpx.Client:
        """Return a client for the server of the last `up`, with its password and a CSRF token."""
        settings = tomllib.loads((self.folder / "prefect.toml").read_text())["api"]
        return PrefectHttpxSyncClient(
            base_url=settings["url"],
            headers=authorization(settings.get("auth_string")),
            timeout=120,  # sqlite may be locked for a minute
            enable_csrf_support=True,
            raise_on_all_errors=False,
        )

    def processes(self) -> list[psutil.Process]:
        """Return the processes that `up` started, and their descendants."""
        processes = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get("FASHION_ANN_SERVICES") == str(self.services):
                    processes.append(process)
        return processes


@contextlib.contextmanager
def stopped_at_the_end(checkout: Checkout) -> Iterator[Checkout]:
    """Yield the checkout, and stop its services after the block."""
    try:
        yield checkout
    finally:
        checkout.run("down")
        for process in checkout.processes():
            process.kill()


@pytest.fixture
def checkout(tmp_path: Path) -> Iterator[Checkout]:
    with stopped_at_the_end(Checkout(tmp_path / "checkout")) as checkout:
        yield checkout


def _pids(status: dict[str, Any]) -> dict[str, int]:
    return {name: service["pid"] for name, service in status["services"].items()}


def _kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    wait_until_gone(pid)


def _runs(checkout: Checkout) -> dict[str, str]:
    """Return the state by id of every run of the main flow, without those scheduled for coming nights."""
    runs = _runs_of("train-fashion-mnist", checkout)
    return {run["id"]: run["state_type"] for run in runs if not run["auto_scheduled"]}


def _runs_of(flow: str, checkout: Checkout) -> list[dict[str, Any]]:
    body = {"flows": {"name": {"any_": [flow]}}}
    with checkout.api() as api:
        return list(api.post("/flow_runs/filter", json=body).raise_for_status().json())


def _wait_for(check: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 600
    while not check():
        assert time.monotonic() < deadline, "the condition was not met in time"
        time.sleep(0.3)


def test_up_starts_what_is_missing_and_down_stops_all(checkout: Checkout) -> None:
    first = checkout.up()
    assert set(first["services"]) == {"server", "worker-cpu", "worker-gpu"}
    assert {process.pid for process in checkout.processes()} == set(_pids(first).values())
    assert all(Path(service["log"]).parent == Path(first["logs"]) for service in first["services"].values())
    logs = [checkout.services / "state.json", *Path(first["logs"]).iterdir()]
    assert {oct(stat.S_IMODE(path.stat().st_mode) & ~0o640) for path in logs} == {"0o0"}
    assert _pids(checkout.up()) == _pids(first)

    _kill(_pids(first)["server"])
    status = checkout.services_of("status")
    assert status["status"] == 1
    assert [name for name, service in status["services"].items() if not service["running"]] == ["server"]
    second = checkout.up()
    assert second["url"] == first["url"]
    assert {name for name, pid in _pids(second).items() if pid != _pids(first)[name]} == {"server"}

    _kill(_pids(second)["worker-cpu"])
    third = checkout.up()
    assert {name for name, pid in _pids(third).items() if pid != _pids(second)[name]} == {"worker-cpu"}

    # `prefect` in the checkout finds the server, and so does a run.
    listed = checkout.run("deployment", "ls", module="prefect", COLUMNS="200")
    assert "train-fashion-mnist/on-demand" in listed.stdout, listed.stderr
    flags = ("--epochs", "1", "--batch-size", "64", "--validation-size", "100")
    trained = checkout.run("train", *flags, "--minimum-accuracy", "0", "--minimum-recall", "0")
    assert trained.returncode == 0, trained.stderr
    assert list(_runs(checkout).values()) == ["COMPLETED"]

    done = checkout.run("down", "--json")
    assert json.loads(done.stdout) == {"stopped": ["worker-cpu", "worker-gpu", "server"]}
    for name in ("worker-cpu", "worker-gpu"):  # they were not killed
        _, _, since = Path(third["services"][name]["log"]).read_text(encoding="utf-8").rpartition("started!")
        assert "stopped!" in since
    assert checkout.processes() == []
    assert not (checkout.folder / "prefect.toml").exists()
    with pytest.raises(httpx.TransportError):
        httpx.get(f"{first['url']}/health")

    again = checkout.up()
    assert again["url"] == first["url"]
    assert list(_runs(checkout).values()) == ["COMPLETED"]


def test_two_ups_at_once_start_one_of_each(checkout: Checkout) -> None:
    command = [sys.executable, "-m", "cli.main", "up", "--json"]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    both = [subprocess.Popen(command, cwd=checkout.folder, env=checkout.environment, **pipes) for _ in range(2)]
    first, second = (json.loads(process.communicate(timeout=600)[0]) for process in both)
    assert first == second
    assert {process.pid for process in checkout.processes()} == {service["pid"] for service in first["services"]}


@field_fault(
    "environment of the machine",
    "Two checkouts run `up` at once, choose the same port, and HTTP_PROXY is set",
    "Each has its own server, on its own port, and is reached without the proxy",
)
def test_two_checkouts_at_once_have_two_servers(checkout: Checkout, tmp_path: Path) -> None:
    other = Checkout(tmp_path / "other")
    command = [sys.executable, "-m", "cli.main", "up", "--json"]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    proxies = {"HTTP_PROXY": "http://127.0.0.1:9", "all_proxy": "socks5://127.0.0.1:9"}
    both = [
        subprocess.Popen(command, cwd=one.folder, env={**one.environment, **proxies}, **pipes)
        for one in (checkout, other)
    ]
    try:
        outputs = [process.communicate(timeout=600) for process in both]
        assert [process.returncode for process in both] == [0, 0], outputs
        first, second = (json.loads(out) for out, _ in outputs)
        assert first["url"] != second["url"]
        for one, output in ((checkout, first), (other, second)):
            assert {process.pid for process in one.processes()} == {service["pid"] for service in output["services"]}
            assert one.services_of("status", **proxies)["status"] == 0
    finally:
        other.run("down")
    assert checkout.services_of("status")["status"] == 0


# Linux adds the uptime to the boot time of /proc/stat, which setting the clock moves.
_SET_CLOCK = "sed 's/^btime .*/btime 1700000000/' /proc/stat > stat && mount --bind stat /proc/stat"


@field_fault(
    "identity by something that changes",
    "The clock and the host name change, a worker is killed, and later state.json is lost",
    "`up` keeps what runs and restarts the worker under its old name; without state.json it starts nothing",
)
def test_up_after_the_clock_was_set_and_the_host_renamed(checkout: Checkout) -> None:
    renamed = ["unshare", "--mount", "--uts", "sh", "-c", f'hostname renamed && {_SET_CLOCK} && exec "$@"', "sh"]
    if subprocess.run([*renamed, "true"], cwd=checkout.folder, capture_output=True).returncode:
        pytest.skip("needs permission for namespaces")
    before = _pids(checkout.up())
    status = checkout.run("status", "--json", within=renamed)
    assert status.returncode == 0, status.stderr
    _kill(before["worker-cpu"])
    again = checkout.run("up", "--json", within=renamed)
    assert again.returncode == 0, again.stderr
    after = _pids(checkout.services_of("status"))
    assert {name for name in before if after[name] != before[name]} == {"worker-cpu"}
    assert {process.pid for process in checkout.processes()} == set(after.values())
    with checkout.api() as api:
        workers = api.post("/work_pools/fashion-ann-cpu/workers/filter", json={}).raise_for_status().json()
    assert len(workers) == 1

    state = checkout.services / "state.json"
    state.rename(state.with_suffix(".lost"))
    lost = checkout.run("up")
    assert (lost.returncode, "server.lock is locked" in lost.stderr) == (1, True)
    assert {process.pid for process in checkout.processes()} == set(after.values())
    assert str(after["server"]) in checkout.run("status").stdout
    assert checkout.run("down").stdout == "stopped: 3 processes\n"
    assert not checkout.processes()


@field_fault(
    "environment of the machine",
    "The database of the services was written by a newer Prefect",
    "`up` ends with one sentence on the database, and leaves no process",
)
def test_up_names_a_database_of_a_newer_prefect(checkout: Checkout) -> None:
    (checkout.services / "prefect").mkdir(parents=True)
    with contextlib.closing(sqlite3.connect(checkout.services / "prefect" / "prefect.db")) as database:
        database.execute("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL PRIMARY KEY)")
        database.execute("INSERT INTO alembic_version VALUES ('abcdefabcdef')")
        database.commit()
    done = checkout.run("up")
    assert (done.returncode, "Traceback" in done.stderr) == (1, False)
    assert "another version of Prefect" in done.stderr
    assert "abcdefabcdef" in done.stderr
    assert checkout.processes() == []


def test_up_rejects_other_data_while_workers_run(checkout: Checkout) -> None:
    before, folder = _pids(checkout.up()), checkout.folder.with_name("other-data")
    other = checkout.run("up", FASHION_ANN_DATA_DIR=str(folder))
    assert other.returncode == 1
    assert str(SAMPLE) in other.stderr
    assert str(folder) in other.stderr
    assert _pids(checkout.services_of("status")) == before
    assert _pids(checkout.up(FASHION_ANN_DATA_DIR=f"{SAMPLE}/../data")) == before


def test_up_uses_the_configured_postgres(checkout: Checkout, postgres: Postgres) -> None:
    database = {"PREFECT_API_DATABASE_CONNECTION_URL": postgres.new_database("up")}
    url = checkout.up(**database)["url"]
    parameters = [f"{name}={json.dumps(value)}" for name, value in QUICK.items()]
    run = ["deployment", "run", "train-fashion-mnist/on-demand", *(f"-p{text}" for text in parameters), "--watch"]
    done = checkout.run(*run, module="prefect")
    assert done.returncode == 0, done.stderr
    assert list(checkout.services.rglob("*.db")) == []
    rejected = checkout.run("up")
    assert rejected.returncode == 1
    assert "PREFECT_API_DATABASE_CONNECTION_URL" in rejected.stderr
    checkout.run("down")
    assert checkout.processes() == []
    checkout.up(**database)
    assert list(_runs(checkout).values()) == ["COMPLETED"]
    assert checkout.services_of("status")["url"] == url


def _train_for_long(checkout: Checkout) -> str:
    """Start a run that trains for a long time, and return its id."""
    parameters = {**QUICK, "training": {**QUICK["training"], "epochs": 10_000}}
    run = checkout.run(
        *("deployment", "run", "train-fashion-mnist/on-demand", "--params", json.dumps(parameters)), module="prefect"
    )
    assert run.returncode == 0, run.stderr
    _wait_for(lambda: list((checkout.folder / "artifacts").glob("checkpoints/*.npz")))
    (run_id,) = (run["id"] for run in _runs_of("train-fashion-mnist", checkout) if run["parameters"].get("training"))
    return str(run_id)


def test_up_after_a_power_cut_resumes_schedules_and_ends_runs(checkout: Checkout) -> None:
    checkout.set_watch_schedule("* * * * *")
    url = checkout.up()["url"]

    def fired_since(moment: datetime) -> list[str]:
        ended = [run for run in _runs_of("watch-data", checkout) if run["state_type"] == "COMPLETED"]
        return [run["id"] for run in ended if datetime.fromisoformat(run["expected_start_time"]) > moment]

    training = _train_for_long(checkout)
    started = datetime.now(UTC)
    _wait_for(lambda: fired_since(started))  # one that has ended, because only one may run at a time
    for process in checkout.processes():
        process.kill()
    power_cut = datetime.now(UTC)

    assert checkout.up()["url"] == url
    _wait_for(lambda: fired_since(power_cut))
    _wait_for(lambda: _runs(checkout)[training] == "CRASHED")


def test_down_during_a_run_marks_it_crashed(checkout: Checkout) -> None:
    checkout.up()
    _train_for_long(checkout)
    assert len(checkout.processes()) > 3
    done = checkout.run("down")
    assert done.returncode == 0, done.stderr
    assert checkout.processes() == []
    checkout.up()
    assert list(_runs(checkout).values()) == ["CRASHED"]


def test_server_with_a_password_rejects_other_clients(checkout: Checkout) -> None:
    protected = {"PREFECT_SERVER_API_AUTH_STRING": PASSWORD}
    url = checkout.up(**protected)["url"]
    flows = f"{url}/flows/filter"
    assert httpx.post(flows, json={}, auth=("user", "secret")).status_code == 403  # no CSRF token
    token = f"{url}/csrf-token?client=test"
    assert httpx.get(token, auth=("user", "wrong")).status_code == 401
    assert httpx.get(token, auth=("user", "secret")).status_code == 200
    rejected = checkout.run("train")
    assert rejected.returncode == 1
    assert "PREFECT_API_AUTH_STRING" in rejected.stderr
    assert checkout.run("deployment", "ls", module="prefect").returncode != 0
    assert checkout.run("deployment", "ls", module="prefect", PREFECT_API_AUTH_STRING=PASSWORD).returncode == 0
    assert PASSWORD not in (checkout.folder / "prefect.toml").read_text()
    assert PASSWORD not in (checkout.services / "state.json").read_text()
    # A running server keeps its password, so `up` with another one is an error.
    for variables in ({}, {"PREFECT_SERVER_API_AUTH_STRING": "user:new"}):
        other = checkout.run("up", **variables)
        assert other.returncode == 1
        assert "PREFECT_SERVER_API_AUTH_STRING" in other.stderr
        assert "secret" not in other.stderr


@field_fault(
    "cause named but not observed",
    "A server cannot start, and the log of an earlier start ends with another error",
    "The message quotes the exception of this start only",
)
def test_server_that_cannot_start_is_reported_and_stopped(checkout: Checkout) -> None:
    log = checkout.services / "logs" / "server.log"
    log.parent.mkdir(parents=True)
    log.write_text("ValueError: of an earlier start\n")
    unreachable = {"PREFECT_API_DATABASE_CONNECTION_URL": "postgresql+asyncpg://user:hidden@127.0.0.1:9/prefect"}
    done = checkout.run("up", **unreachable)
    assert done.returncode == 1
    assert "server.log" in done.stderr
    assert "Connect call failed ('127.0.0.1', 9)" in done.stderr
    assert "earlier start" not in done.stderr
    assert "hidden" not in done.stderr
    assert checkout.processes() == []
    assert checkout.services_of("status")["services"]["server"]["says"] == "not started"


@field_fault(
    "operator's decision overwritten",
    "An operator pauses the nightly schedule, a deployment and a pool, and runs `down` and `up`",
    "All three stay paused, and the log of `deploy` has a line for each",
)
def test_up_keeps_what_an_operator_paused(checkout: Checkout) -> None:
    checkout.up()
    api = checkout.api()

    def read(name: str) -> Any:
        return api.get(f"/deployments/name/train-fashion-mnist/{name}").raise_for_status().json()

    nightly, on_demand = read("nightly"), read("on-demand")
    schedule = f"/deployments/{nightly['id']}/schedules/{nightly['schedules'][0]['id']}"
    for path, change in (
        (schedule, {"active": False}),
        (f"/deployments/{on_demand['id']}", {"paused": True}),
        ("/work_pools/fashion-ann-gpu", {"is_paused": True}),
    ):
        api.patch(path, json=change).raise_for_status()
    for command in ("up", "down", "up"):
        done = checkout.run(command)
        assert done.returncode == 0, done.stderr
    assert [schedule["active"] for schedule in read("nightly")["schedules"]] == [False]
    assert read("on-demand")["paused"]
    assert api.get("/work_pools/fashion-ann-gpu").json()["is_paused"]
    log = next(checkout.services.rglob("deploy.log")).read_text()
    assert log.count("paused on the server; prefect.yaml has it active. Kept;") == 6


@field_fault(
    "operator's decision overwritten",
    "A person suspends a run in Prefect's UI while it trains",
    "After its process ended it stays Suspended, and the automation for dead runs no longer waits for a heartbeat",
)
def test_suspended_run_stays_suspended(checkout: Checkout) -> None:
    checkout.up()
    api = checkout.api()
    body = {"parameters": {**QUICK, "training": {**QUICK["training"], "epochs": 300}}}
    deployment = api.get("/deployments/name/train-fashion-mnist/on-demand").json()["id"]
    path = f"/flow_runs/{api.post(f'/deployments/{deployment}/create_flow_run', json=body).json()['id']}"

    def wait_until(condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 300
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.5)

    def processes(module: str) -> list[psutil.Process]:
        return [process for process in checkout.processes() if module in process.cmdline()]

    wait_until(lambda: bool(processes("tasks.model.worker")))
    suspended = {"type": "PAUSED", "name": "Suspended", "state_details": {"pause_reschedule": True}}
    api.post(f"{path}/set_state", json={"state": suspended}).raise_for_status()
    wait_until(lambda: not processes("prefect.engine"))
    resource = {"id": [f"prefect.{path[1:].replace('flow_runs/', 'flow-run.')}"]}

    def event_names() -> list[str]:  # newest first
        body = {"filter": {"resource": resource, "order": "DESC"}}
        return [event["event"] for event in api.post("/events/filter", json=body).json()["events"]]

    # One event of the state and one of the process that ended. The server stores events some time after it took them.
    wait_until(lambda: event_names().count("prefect.flow-run.Suspended") == 2)
    assert event_names()[0] == "prefect.flow-run.Suspended"
    automations = {automation["name"]: automation for automation in api.post("/automations/filter", json={}).json()}
    assert "prefect.flow-run.Suspended" in automations[MARK_DEAD]["trigger"]["expect"]
    assert api.get(path).json()["state"]["name"] == "Suspended"
