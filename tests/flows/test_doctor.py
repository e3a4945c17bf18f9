"""doctor's checks of a real Prefect server."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate, WorkPoolCreate
from prefect.client.schemas.schedules import CronSchedule
from prefect.states import Scheduled

from cli import doctor
from cli.doctor import (
    Broken,
    Check,
    Pool,
    check_pools,
    check_prefect,
    check_schedules,
    read_pools,
    run_check,
    server_version,
)
from tests.field_faults import field_fault


@pytest.fixture
def gpu_deployment(server: str) -> Iterator[None]:
    with get_client(sync_client=True) as client:
        client.create_work_pool(WorkPoolCreate(name="fashion-ann-gpu", type="process"), overwrite=True)
        flow = client.create_flow_from_name("fit-model")
        schedule = DeploymentScheduleCreate(schedule=CronSchedule(cron="0 3 * * *"), active=True)
        deployment = client.create_deployment(
            flow_id=flow, name="doctor-test", work_pool_name="fashion-ann-gpu", schedules=[schedule]
        )
        yield
        client.delete_deployment(deployment)
        client.delete_work_pool("fashion-ann-gpu")


def test_server_of_our_version_passes(server: str) -> None:
    check = run_check("prefect", check_prefect)
    assert f"also {server_version()}" in check.says
    # The test server has no password.
    assert (check.ok, "NO PASSWORD" in check.says, "PREFECT_SERVER_API_AUTH_STRING" in check.cure) == (True, True, True)


@pytest.mark.usefixtures("gpu_deployment")
def test_pool_is_broken_until_a_worker_sends_a_heartbeat() -> None:
    assert Pool("fashion-ann-gpu", deployments=1, online=0, needed=True) in read_pools()
    with pytest.raises(Broken, match="0 workers online"):
        check_pools()
    with get_client(sync_client=True) as client:
        client.send_worker_heartbeat("fashion-ann-gpu", "worker 1", heartbeat_interval_seconds=30)
    assert Pool("fashion-ann-gpu", deployments=1, online=1, needed=True) in read_pools()
    assert "gpu: 1 deployment, 1 worker online" in check_pools()


@pytest.mark.usefixtures("gpu_deployment")
@field_fault(
    "cause named but not observed",
    "No machine has a GPU, so the gpu pool has no worker",
    "`doctor` warns, and fails only if a run waits for a worker or a schedule will start one",
)
def test_pool_that_nothing_waits_for_is_a_warning() -> None:
    with get_client(sync_client=True) as client:
        deployment = client.read_deployment_by_name("fit-model/doctor-test")
        client.pause_deployment(deployment.id)
        check = run_check("pools", check_pools)
        assert (check.ok, "fashion-ann-gpu: 1 deployment, 0 workers online" in check.says) == (True, True)
        assert "`prefect worker start --pool fashion-ann-gpu`" in check.cure
        late = client.create_flow_run_from_deployment(deployment.id, state=Scheduled(name="Late"))
        assert run_check("pools", check_pools).ok is False
        client.delete_flow_run(late.id)


@pytest.mark.usefixtures("gpu_deployment")
@field_fault(
    "failure without a message",
    "Schedules run unattended on a server with sqlite",
    "`doctor` warns and names Postgres, but not with another database or while all schedules are paused",
)
def test_schedules_on_sqlite_are_a_warning(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor, "database_file", lambda: None)
    assert run_check("schedules", check_schedules) == Check("schedules", True, "1 active schedule")
    monkeypatch.setattr(doctor, "database_file", lambda: tmp_path / "prefect.db")
    check = run_check("schedules", check_schedules)
    assert (check.ok, "Postgres" in check.cure) == (True, True)
    assert check.says == f"1 active schedule on the sqlite database {tmp_path / 'prefect.db'}"
    with get_client(sync_client=True) as client:
        client.pause_deployment(client.read_deployment_by_name("fit-model/doctor-test").id)
    assert run_check("schedules", check_schedules) == Check("schedules", True, "0 active schedules")
