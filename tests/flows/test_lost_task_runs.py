"""Task runs that a killed flow run left Running."""

import pytest
from prefect import flow, task
from prefect.client.orchestration import get_client
from prefect.states import Crashed, Running, State

from flows.states import ON_RUNNING


@flow(on_running=ON_RUNNING)
def later() -> None: ...


@task
def shard() -> None: ...


@pytest.mark.parametrize(("state", "expected"), [(Crashed(), "CRASHED"), (Running(), "RUNNING")])
def test_a_flow_run_ends_those_of_killed_runs_only(server: str, state: State[None], expected: str) -> None:
    with get_client(sync_client=True) as client:
        killed = client.create_flow_run(later, state=Running())
        task_run = client.create_task_run(shard, killed.id, "shard-0", state=Running())
        client.set_flow_run_state(killed.id, state, force=True)
        later()
        found = client.read_task_run(task_run.id).state
    assert found is not None and found.type == expected
