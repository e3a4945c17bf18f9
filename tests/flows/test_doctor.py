"""doctor's questions to a real Prefect server."""

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate

from cli.doctor import Pool, _pools, _server_version, check_pools, check_prefect


@pytest.fixture
def gpu_deployment(server: str) -> None:
    with get_client(sync_client=True) as client:
        client.create_work_pool(WorkPoolCreate(name="gpu", type="process"), overwrite=True)
        flow = client.create_flow_from_name("fit-model")
        client.create_deployment(flow_id=flow, name="doctor-test", work_pool_name="gpu")


def test_a_server_of_our_version_answers(server: str) -> None:
    check = check_prefect()
    assert check.ok
    assert f"{_server_version()} as here" in check.says


@pytest.mark.usefixtures("gpu_deployment")
def test_a_pool_without_a_worker_is_broken_until_one_sends_a_heartbeat() -> None:
    assert Pool("gpu", deployments=1, online=0) in _pools()
    assert check_pools().ok is False
    with get_client(sync_client=True) as client:
        client.send_worker_heartbeat("gpu", "worker 1", heartbeat_interval_seconds=30)
    assert Pool("gpu", deployments=1, online=1) in _pools()
    assert check_pools().ok
    with get_client(sync_client=True) as client:
        client.delete_work_pool("gpu")
