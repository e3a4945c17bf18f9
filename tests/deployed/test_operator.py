"""An operator's decisions through `down` and `up`, with real processes."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.deployed.test_up import Checkout
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
