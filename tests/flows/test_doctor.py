"""doctor's checks of a real Prefect server."""

from collections.abc import Iterator

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate

from cli.doctor import Broken, Pool, check_pools, check_prefect, read_pools, server_version


@pytest.fixture
def gpu_deployment(server: str) -> Iterator[None]:
    with get_client(sync_client=True) as client:
        client.create_work_pool(WorkPoolCreate(name="gpu", type="process"), overwrite=True)
        flow = client.create_flow_from_name("fit-model")
        deployment = client.create_deployment(flow_id=flow, name="doctor-test", work_pool_name="gpu")
        yield
        client.delete_deployment(deployment)
        client.delete_work_pool("gpu")


def test_server_of_our_version_passes(server: str) -> None:
    assert f"also {server_version()}" in check_prefect()


@pytest.mark.usefixtures("gpu_deployment")
def test_pool_is_broken_until_a_worker_sends_a_heartbeat() -> None:
    assert Pool("gpu", deployments=1, online=0) in read_pools()
    with pytest.raises(Broken, match="0 workers online"):
        check_pools()
    with get_client(sync_client=True) as client:
        client.send_worker_heartbeat("gpu", "worker 1", heartbeat_interval_seconds=30)
    assert Pool("gpu", deployments=1, online=1) in read_pools()
    assert "gpu: 1 deployment, 1 worker online" in check_pools()
