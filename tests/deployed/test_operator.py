"""An operator's decisions through `down` and `up`, with real processes."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from cli.automations import MARK_DEAD
from tests.deployed.test_up import QUICK, Checkout
from tests.field_faults import field_fault


@pytest.fixture
def checkout(tmp_path: Path) -> Iterator[Checkout]:
    checkout = Checkout(tmp_path / "checkout")
    yield checkout
    checkout.run("down")
    for process in checkout.processes():
        process.kill()


@field_fault(
    "operator's decision overwritten",
    "An operator pauses the nightly schedule, a deployment and a pool, and runs `down` and `up`",
    "All three stay paused, and the log of `deploy` has a line for each",
)
def test_up_keeps_what_an_operator_paused(checkout: Checkout) -> None:
    api = httpx.Client(base_url=checkout.up()["url"], timeout=120)

    def read(name: str) -> Any:
        return api.get(f"/deployments/name/train-fashion-mnist/{name}").raise_for_status().json()

    nightly, on_demand = read("nightly"), read("on-demand")
    schedule = f"/deployments/{nightly['id']}/schedules/{nightly['schedules'][0]['id']}"
    for path, change in (
        (schedule, {"active": False}),
        (f"/deployments/{on_demand['id']}", {"paused": True}),
        ("/work_pools/gpu", {"is_paused": True}),
    ):
        api.patch(path, json=change).raise_for_status()
    for command in ("up", "down", "up"):
        done = checkout.run(command)
        assert done.returncode == 0, done.stderr
    assert [schedule["active"] for schedule in read("nightly")["schedules"]] == [False]
    assert read("on-demand")["paused"]
    assert api.get("/work_pools/gpu").json()["is_paused"]
    log = next(checkout.services.rglob("deploy.log")).read_text()
    assert log.count("paused on the server; prefect.yaml has it active. Kept;") == 6


@field_fault(
    "operator's decision overwritten",
    "a person suspends a run in Prefect's UI while it trains",
    "after its process ended it stays Suspended, and the automation for dead runs no longer waits for a heartbeat",
)
def test_suspended_run_stays_suspended(checkout: Checkout) -> None:
    api = httpx.Client(base_url=checkout.up()["url"], timeout=120)
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

    wait_until(lambda: bool(processes("tasks.model.fit")))
    suspended = {"type": "PAUSED", "name": "Suspended", "state_details": {"pause_reschedule": True}}
    api.post(f"{path}/set_state", json={"state": suspended}).raise_for_status()
    wait_until(lambda: not processes("prefect.engine"))
    resource = {"id": [f"prefect.{path[1:].replace('flow_runs/', 'flow-run.')}"]}
    events = api.post("/events/filter", json={"filter": {"resource": resource, "order": "DESC"}}).json()["events"]
    names = [event["event"] for event in events]
    assert (names[0], names.count(names[0])) == ("prefect.flow-run.Suspended", 2)  # of the state and of the process
    automations = {automation["name"]: automation for automation in api.post("/automations/filter", json={}).json()}
    assert events[0]["event"] in automations[MARK_DEAD]["trigger"]["expect"]
    assert api.get(path).json()["state"]["name"] == "Suspended"
