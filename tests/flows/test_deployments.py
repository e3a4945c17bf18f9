"""prefect.yaml and the automations, put on a real Prefect server and read back."""

import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import ConcurrencyLimitStrategy, FlowRun
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.states import InfrastructurePending, Pending, Submitting

from cli.automations import MARK_DEAD, MARK_NOT_STARTED, NOTIFY, NOTIFY_VARIABLE, apply_automations
from cli.deploy import _create_pool, deploy_all, enter_checkout
from cli.server_process import project_settings
from flows.states import NOTHING_NEW, SUPERSEDED
from schemas.config import PROJECT_ROOT, PromotionConfig, TrainingConfig
from schemas.errors import NoGpuWorker, NotDeployed, WrongUsage
from tasks.watch import EVENT
from tests.sample import SAMPLE

DEPLOYMENTS = {
    "train-fashion-mnist/on-demand",
    "train-fashion-mnist/nightly",
    "train-fashion-mnist/on-new-data",
    "fit-model/gpu",
    "predict-fashion-mnist/batch",
    "watch-data/scheduled",
}
TRIGGER = "train-fashion-mnist on new data"


def _clear() -> None:
    """Leave the session's server as it was: other tests count its pools."""
    with get_client(sync_client=True) as client:
        for automation in client.read_automations():
            client.delete_automation(automation.id)
        for deployment in client.read_deployments():
            client.delete_deployment(deployment.id)
        for pool in ("cpu", "gpu"):
            client.delete_work_pool(pool)


@pytest.fixture(scope="module")
def deployed(server: str) -> Iterator[None]:
    """Everything deployed twice: the second time has to change nothing."""
    with pytest.MonkeyPatch.context() as patch:
        # A default pool is on many people's profiles; it must not take the place of ours.
        patch.setenv("PREFECT_DEFAULT_WORK_POOL_NAME", "elsewhere")
        patch.setenv(NOTIFY_VARIABLE, "http://127.0.0.1:9/first")
        deploy_all()
        patch.setenv(NOTIFY_VARIABLE, "http://127.0.0.1:9/second")
        deploy_all()
    yield
    _clear()


def _read(name: str) -> Any:
    with get_client(sync_client=True) as client:
        return client.read_deployment_by_name(name)


@pytest.mark.usefixtures("deployed")
def test_the_pools_and_deployments_are_those_of_prefect_yaml() -> None:
    with get_client(sync_client=True) as client:
        pools = {pool.name: pool for pool in client.read_work_pools()}
        flows = {flow.id: flow.name for flow in client.read_flows()}
        found = {f"{flows[deployment.flow_id]}/{deployment.name}" for deployment in client.read_deployments()}
    assert found == DEPLOYMENTS
    assert {"cpu", "gpu"} <= set(pools)
    for name in ("cpu", "gpu"):
        assert pools[name].type == "process"
        assert not pools[name].is_paused
        assert pools[name].base_job_template["job_configuration"]["env"] == "{{ env }}"


@pytest.mark.parametrize("name", sorted(DEPLOYMENTS))
@pytest.mark.usefixtures("deployed")
def test_every_deployment_runs_the_checkout_of_its_worker_with_a_heartbeat(name: str) -> None:
    deployment = _read(name)
    flow = name.partition("/")[0].replace("-", "_")
    assert deployment.entrypoint == f"flows/{flow}.py:{flow}"
    assert deployment.work_pool_name == ("gpu" if name == "fit-model/gpu" else "cpu")
    assert deployment.pull_steps == [{"cli.deploy.enter_checkout": {}}]
    needed = ("PREFECT_FLOWS_HEARTBEAT_FREQUENCY", "PREFECT_CLIENT_RETRY_EXTRA_CODES")
    assert deployment.job_variables == {"env": {name: project_settings()[name] for name in needed}}
    assert deployment.enforce_parameter_schema
    assert deployment.parameters == {}
    assert deployment.description
    assert not deployment.paused


@pytest.mark.parametrize(
    ("name", "strategy"),
    [
        ("train-fashion-mnist/nightly", ConcurrencyLimitStrategy.CANCEL_NEW),
        ("train-fashion-mnist/on-new-data", ConcurrencyLimitStrategy.ENQUEUE),
        ("fit-model/gpu", ConcurrencyLimitStrategy.ENQUEUE),
        ("watch-data/scheduled", ConcurrencyLimitStrategy.CANCEL_NEW),
        ("train-fashion-mnist/on-demand", None),
        ("predict-fashion-mnist/batch", None),
    ],
)
@pytest.mark.usefixtures("deployed")
def test_what_runs_at_once_is_limited(name: str, strategy: ConcurrencyLimitStrategy | None) -> None:
    deployment = _read(name)
    limit = deployment.global_concurrency_limit
    assert (limit and limit.limit) == (None if strategy is None else 1)
    options = deployment.concurrency_options
    assert (options and options.collision_strategy) == strategy


@pytest.mark.parametrize(
    ("name", "crons"),
    [
        ("train-fashion-mnist/nightly", ["0 3 * * *"]),
        ("watch-data/scheduled", ["*/10 * * * *"]),
        ("train-fashion-mnist/on-demand", []),
        ("train-fashion-mnist/on-new-data", []),
        ("fit-model/gpu", []),
        ("predict-fashion-mnist/batch", []),
    ],
)
@pytest.mark.usefixtures("deployed")
def test_the_schedules_are_active_and_there_once(name: str, crons: list[str]) -> None:
    schedules = _read(name).schedules
    assert [schedule.schedule.cron for schedule in schedules] == crons
    assert all(schedule.active and schedule.schedule.timezone == "UTC" for schedule in schedules)


@pytest.mark.usefixtures("deployed")
def test_there_is_one_of_each_automation_after_two_deployments() -> None:
    with get_client(sync_client=True) as client:
        automations = {automation.name: automation for automation in client.read_automations()}
        assert len(client.read_automations()) == len(automations)
    assert set(automations) == {MARK_DEAD, MARK_NOT_STARTED, NOTIFY, TRIGGER}
    assert all(automation.enabled for automation in automations.values())

    dead: Any = automations[MARK_DEAD]
    assert dead.trigger.within == timedelta(seconds=100)
    assert dead.trigger.after == {"prefect.flow-run.heartbeat"}
    # Events carry the names of states: those that our flows end in under names of their own, too.
    ended = {f"prefect.flow-run.{name}" for name in ("Completed", NOTHING_NEW, SUPERSEDED, "Failed", "Crashed")}
    assert ended | {"prefect.flow-run.heartbeat"} <= dead.trigger.expect
    assert dead.trigger.for_each == {"prefect.resource.id"}
    assert dead.actions[0].state == "CRASHED"

    taken: Any = automations[MARK_NOT_STARTED]
    names = {state.name for state in (Pending(), Submitting(), InfrastructurePending())}
    assert taken.trigger.after == {f"prefect.flow-run.{name}" for name in names}

    trigger: Any = automations[TRIGGER]
    assert trigger.trigger.expect == {EVENT}
    (action,) = trigger.actions
    assert action.deployment_id == _read("train-fashion-mnist/on-new-data").id
    assert set(action.parameters) == {"dataset", "data_digest", "data_dir"}
    # Another project's runs beat when they like.
    for automation in (dead, taken):
        assert "train-fashion-mnist" in automation.trigger.match_related["prefect.resource.name"]


@pytest.mark.usefixtures("deployed")
def test_the_notification_goes_where_the_last_deployment_said() -> None:
    with get_client(sync_client=True) as client:
        (automation,) = client.read_automations_by_name(NOTIFY)
        action: Any = automation.actions[0]
        block = client.read_block_document(action.block_document_id)
    assert block.data["url"] == "http://127.0.0.1:9/second"


@pytest.mark.usefixtures("deployed")
def test_the_notification_stays_unset_and_goes_when_emptied(monkeypatch: pytest.MonkeyPatch) -> None:
    def there() -> int:
        with get_client(sync_client=True) as client:
            return len(client.read_automations_by_name(NOTIFY))

    monkeypatch.delenv(NOTIFY_VARIABLE, raising=False)
    apply_automations()
    assert there() == 1
    monkeypatch.setenv(NOTIFY_VARIABLE, "custom-webhook/fashion-ann")
    apply_automations()
    assert there() == 1
    monkeypatch.setenv(NOTIFY_VARIABLE, "slack-webhook/nobody")
    with pytest.raises(WrongUsage, match="slack-webhook/nobody"):
        apply_automations()
    monkeypatch.setenv(NOTIFY_VARIABLE, "")
    apply_automations()
    assert there() == 0


def test_the_pull_step_finds_the_checkout_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert enter_checkout() == {"directory": str(PROJECT_ROOT)}
    assert (PROJECT_ROOT / "prefect.yaml").samefile("prefect.yaml")


@pytest.mark.usefixtures("deployed")
@pytest.mark.parametrize(
    ("parameters", "name"),
    [
        *(({"training": {"epoch": 3}}, "epoch"), ({"train_on": "cloud"}, "train_on")),
        *(({"data_digest": "x"}, "data_digest"), ({"bad_rows": "few"}, "bad_rows")),
    ],
)
def test_a_wrong_parameter_of_a_deployment_is_refused_by_name_and_no_run_is_made(
    parameters: dict[str, Any], name: str
) -> None:
    deployment = _read("train-fashion-mnist/on-demand")
    with get_client(sync_client=True) as client:
        before = len(client.read_flow_runs())
        with pytest.raises(PrefectHTTPStatusError) as refused:
            client.create_flow_run_from_deployment(deployment.id, parameters=parameters)
        assert name in refused.value.response.text
        assert len(client.read_flow_runs()) == before


def _train_on_gpu(artifacts: Path) -> None:
    from flows.train_fashion_mnist import train_fashion_mnist

    train_fashion_mnist(
        data_dir=SAMPLE,
        artifacts_dir=artifacts,
        training=TrainingConfig(epochs=2, validation_size=100),
        promotion=PromotionConfig(minimum_accuracy=0, minimum_recall=0),
        train_on="gpu",
        gpu_worker_seconds=1,
    )


def _runs_on_gpu() -> list[FlowRun]:
    deployment = _read("fit-model/gpu").id
    with get_client(sync_client=True) as client:
        return [run for run in client.read_flow_runs() if run.deployment_id == deployment]


@pytest.mark.usefixtures("deployed")
def test_without_a_gpu_worker_the_run_fails_saying_so_and_leaves_nothing_queued(tmp_path: Path) -> None:
    with pytest.raises(NoGpuWorker, match=r"No worker picked up the training within 1 s.*work pool gpu"):
        _train_on_gpu(tmp_path)
    with get_client(sync_client=True) as client:
        children = _runs_on_gpu()
        assert [run.state_name for run in children] == ["Cancelled"]
        parent_task = client.read_task_run(children[0].parent_task_run_id)
        parent = client.read_flow_run(parent_task.flow_run_id)
        assert "NoGpuWorker" in parent.state.message  # the child is found from its parent, and the other way


@pytest.mark.usefixtures("deployed")
def test_a_run_that_is_told_to_end_while_it_waits_for_a_worker_leaves_nothing_queued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    known = {run.id for run in _runs_on_gpu()}
    monkeypatch.setattr("tasks.gpu_worker.time", SimpleNamespace(monotonic=time.monotonic, sleep=interrupted))
    with pytest.raises(KeyboardInterrupt):
        _train_on_gpu(tmp_path)
    assert [run.state_name for run in _runs_on_gpu() if run.id not in known] == ["Cancelled"]


@pytest.mark.usefixtures("deployed")
def test_a_pool_of_another_type_is_not_taken_for_ours() -> None:
    with get_client(sync_client=True) as client:
        client.create_work_pool(WorkPoolCreate(name="of-containers", type="docker"))
        with pytest.raises(NotDeployed, match="of-containers is there already and of type docker, expected process"):
            _create_pool({"name": "of-containers", "type": "process"})
        client.delete_work_pool("of-containers")


def test_without_the_deployment_the_run_fails_saying_how_to_deploy(server: str, tmp_path: Path) -> None:
    with get_client(sync_client=True) as client, suppress(ObjectNotFound):
        client.delete_deployment(client.read_deployment_by_name("fit-model/gpu").id)
    with pytest.raises(NoGpuWorker, match="fashion-ann deploy"):
        _train_on_gpu(tmp_path)
