"""prefect.yaml and the automations, deployed to a real Prefect server and read back."""

import json
import re
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
from prefect.workers.process import ProcessWorker

from cli.automations import MARK_DEAD, MARK_NOT_STARTED, NOTIFICATIONS, NOTIFY, NOTIFY_VARIABLE, apply_automations
from cli.deploy import create_pool, deploy_all, deployments, enter_checkout, pool_names, work_pools
from cli.server_process import project_settings
from cli.services import up
from flows.states import NOTHING_NEW, RUN_ACTIVE, SUPERSEDED, WAITING
from schemas.config import PROJECT_ROOT, PromotionConfig, TrainingConfig
from schemas.errors import NoGpuWorker, NotDeployed, WrongUsage
from tasks.watch_data import EVENT
from tests.field_faults import field_fault
from tests.sample import SAMPLE

DEPLOYMENTS = deployments()
TRIGGER = "train-fashion-mnist on new data"
DRIFT_TRIGGER = "train-fashion-mnist on drifted predictions"


def remove_everything() -> None:
    """Clean the session's server, because other tests count its pools."""
    with get_client(sync_client=True) as client:
        for automation in client.read_automations():
            client.delete_automation(automation.id)
        for deployment in client.read_deployments():
            client.delete_deployment(deployment.id)
        for pool in pool_names().values():
            client.delete_work_pool(pool)
        for variable in client.read_variables():  # the records of the deploys
            client.delete_variable_by_name(variable.name)


@pytest.fixture(scope="module")
def deployed(server: str) -> Iterator[None]:
    """Deploy everything twice. The second time must change nothing."""
    with pytest.MonkeyPatch.context() as patch:
        # Many profiles have a default pool. It must not replace the pools of prefect.yaml.
        patch.setenv("PREFECT_DEFAULT_WORK_POOL_NAME", "elsewhere")
        patch.setenv(NOTIFY_VARIABLE, "http://127.0.0.1:9/first")
        deploy_all()
        patch.setenv(NOTIFY_VARIABLE, "http://127.0.0.1:9/second")
        deploy_all()
    yield
    remove_everything()


def read_deployment(name: str) -> Any:
    with get_client(sync_client=True) as client:
        return client.read_deployment_by_name(name)


@pytest.mark.usefixtures("deployed")
def test_creates_the_pools_and_deployments_of_prefect_yaml() -> None:
    with get_client(sync_client=True) as client:
        pools = {pool.name: pool for pool in client.read_work_pools()}
        flows = {flow.id: flow.name for flow in client.read_flows()}
        names = {f"{flows[deployment.flow_id]}/{deployment.name}" for deployment in client.read_deployments()}
    assert names == set(DEPLOYMENTS)
    assert {"fashion-ann-cpu", "fashion-ann-gpu"} <= set(pools)
    for name in pool_names().values():
        assert pools[name].type == "process"
        assert not pools[name].is_paused
        assert pools[name].base_job_template["job_configuration"]["env"] == "{{ env }}"


@pytest.mark.parametrize("name", sorted(DEPLOYMENTS))
@pytest.mark.usefixtures("deployed")
def test_deployment_runs_the_checkout_with_a_heartbeat(name: str) -> None:
    deployment = read_deployment(name)
    flow = name.partition("/")[0].replace("-", "_")
    assert deployment.entrypoint == f"flows/{flow}.py:{flow}"
    assert deployment.work_pool_name == ("fashion-ann-gpu" if name == "fit-model/gpu" else "fashion-ann-cpu")
    assert deployment.pull_steps == [{"cli.deploy.enter_checkout": {}}]
    needed = ("PREFECT_FLOWS_HEARTBEAT_FREQUENCY", "PREFECT_CLIENT_RETRY_EXTRA_CODES")
    assert deployment.job_variables == {"env": {name: project_settings()[name] for name in needed}}
    assert deployment.enforce_parameter_schema
    assert deployment.parameters == DEPLOYMENTS[name].get("parameters", {})
    assert deployment.description
    assert not deployment.paused


@pytest.mark.parametrize(
    ("name", "strategy"),
    [
        ("train-fashion-mnist/nightly", ConcurrencyLimitStrategy.CANCEL_NEW),
        ("train-fashion-mnist/on-new-data", ConcurrencyLimitStrategy.ENQUEUE),
        ("fit-model/gpu", ConcurrencyLimitStrategy.ENQUEUE),
        ("watch-data/scheduled", ConcurrencyLimitStrategy.CANCEL_NEW),
        ("watch-predictions/hourly", ConcurrencyLimitStrategy.CANCEL_NEW),
        ("train-fashion-mnist/on-drift", ConcurrencyLimitStrategy.ENQUEUE),
        ("verify-store/nightly", ConcurrencyLimitStrategy.CANCEL_NEW),
        ("collect-garbage/weekly", ConcurrencyLimitStrategy.CANCEL_NEW),
        ("promote-version/by-hand", ConcurrencyLimitStrategy.ENQUEUE),
        ("rollback-champion/by-hand", ConcurrencyLimitStrategy.ENQUEUE),
        ("train-fashion-mnist/on-demand", None),
        ("predict-fashion-mnist/batch", None),
        ("export-model/on-demand", None),
    ],
)
@pytest.mark.usefixtures("deployed")
def test_concurrency_is_limited(name: str, strategy: ConcurrencyLimitStrategy | None) -> None:
    deployment = read_deployment(name)
    limit = deployment.global_concurrency_limit
    assert (limit and limit.limit) == (None if strategy is None else 1)
    options = deployment.concurrency_options
    assert (options and options.collision_strategy) == strategy


@pytest.mark.parametrize(
    ("name", "crons"),
    [
        ("train-fashion-mnist/nightly", ["0 3 * * *"]),
        ("watch-data/scheduled", ["*/10 * * * *"]),
        ("verify-store/nightly", ["0 5 * * *"]),
        ("collect-garbage/weekly", ["0 6 * * 0"]),
        ("promote-version/by-hand", []),
        ("rollback-champion/by-hand", []),
        ("train-fashion-mnist/on-demand", []),
        ("train-fashion-mnist/on-new-data", []),
        ("fit-model/gpu", []),
        ("predict-fashion-mnist/batch", []),
        ("export-model/on-demand", []),
    ],
)
@pytest.mark.usefixtures("deployed")
def test_schedules_are_active_and_exist_once(name: str, crons: list[str]) -> None:
    schedules = read_deployment(name).schedules
    assert [schedule.schedule.cron for schedule in schedules] == crons
    assert all(schedule.active and schedule.schedule.timezone == "UTC" for schedule in schedules)


@pytest.mark.usefixtures("deployed")
def test_two_deployments_leave_one_of_each_automation() -> None:
    with get_client(sync_client=True) as client:
        automations = {automation.name: automation for automation in client.read_automations()}
        assert len(client.read_automations()) == len(automations)
    assert set(automations) == {MARK_DEAD, MARK_NOT_STARTED, TRIGGER, DRIFT_TRIGGER, *NOTIFICATIONS}
    assert [name for name, automation in automations.items() if not automation.enabled] == [DRIFT_TRIGGER]

    dead: Any = automations[MARK_DEAD]
    assert dead.trigger.within == timedelta(seconds=100)
    assert dead.trigger.after == {"prefect.flow-run.heartbeat", "prefect.flow-run.Running"}
    # Events carry the names of states, also the custom ones.
    ended = {
        f"prefect.flow-run.{name}" for name in ("Completed", NOTHING_NEW, SUPERSEDED, WAITING, RUN_ACTIVE, "Failed")
    }
    assert ended | {"prefect.flow-run.heartbeat"} <= dead.trigger.expect
    assert dead.trigger.for_each == {"prefect.resource.id"}
    assert dead.actions[0].state == "CRASHED"

    taken: Any = automations[MARK_NOT_STARTED]
    names = {state.name for state in (Pending(), Submitting(), InfrastructurePending())}
    assert taken.trigger.after == {f"prefect.flow-run.{name}" for name in names}

    trigger: Any = automations[TRIGGER]
    assert trigger.trigger.expect == {EVENT}
    (action,) = trigger.actions
    assert action.deployment_id == read_deployment("train-fashion-mnist/on-new-data").id
    assert set(action.parameters) == {"dataset", "data_digest", "data_dir"}
    # Runs of other projects have other heartbeat intervals.
    for automation in (dead, taken):
        flows = {name.partition("/")[0] for name in DEPLOYMENTS}
        assert set(automation.trigger.match_related["prefect.resource.name"]) == flows


@pytest.mark.usefixtures("deployed")
def test_last_deployment_sets_the_recipient() -> None:
    with get_client(sync_client=True) as client:
        (automation,) = client.read_automations_by_name(NOTIFY)
        action: Any = automation.actions[0]
        block = client.read_block_document(action.block_document_id)
    assert block.data["url"] == "http://127.0.0.1:9/second"


@pytest.mark.usefixtures("deployed")
def test_notification_stays_if_unset_and_is_removed_if_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    def count() -> int:
        with get_client(sync_client=True) as client:
            counts = {len(client.read_automations_by_name(name)) for name in NOTIFICATIONS}
        (count,) = counts
        return count

    monkeypatch.delenv(NOTIFY_VARIABLE, raising=False)
    apply_automations()
    assert count() == 1
    monkeypatch.setenv(NOTIFY_VARIABLE, "custom-webhook/fashion-ann")
    apply_automations()
    assert count() == 1
    monkeypatch.setenv(NOTIFY_VARIABLE, "slack-webhook/nobody")
    with pytest.raises(WrongUsage, match="slack-webhook/nobody"):
        apply_automations()
    monkeypatch.setenv(NOTIFY_VARIABLE, "")
    apply_automations()
    assert count() == 0


def test_pull_step_changes_to_the_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert enter_checkout() == {"directory": str(PROJECT_ROOT)}
    assert (PROJECT_ROOT / "prefect.yaml").samefile("prefect.yaml")


@pytest.mark.usefixtures("deployed")
@pytest.mark.parametrize(
    ("deployment_name", "parameters", "name"),
    [
        ("train-fashion-mnist/on-demand", {"training": {"epoch": 3}}, "epoch"),
        ("train-fashion-mnist/on-demand", {"train_on": "cloud"}, "train_on"),
        ("train-fashion-mnist/on-demand", {"data_digest": "x"}, "data_digest"),
        ("train-fashion-mnist/on-demand", {"bad_rows": "few"}, "bad_rows"),
        ("promote-version/by-hand", {"version": 1}, "reason"),
        ("promote-version/by-hand", {"version": 1, "reason": " "}, "reason"),
        ("promote-version/by-hand", {"reason": "a test"}, "version"),
        ("rollback-champion/by-hand", {}, "reason"),
        ("rollback-champion/by-hand", {"reason": ""}, "reason"),
        ("collect-garbage/weekly", {"keep": 0}, "keep"),
        ("export-model/on-demand", {"output": "exported", "format": "pickle"}, "format"),
    ],
)
def test_rejects_a_wrong_parameter_without_a_run(deployment_name: str, parameters: dict[str, Any], name: str) -> None:
    deployment = read_deployment(deployment_name)
    with get_client(sync_client=True) as client:
        before = len(client.read_flow_runs())
        with pytest.raises(PrefectHTTPStatusError) as rejected:
            client.create_flow_run_from_deployment(deployment.id, parameters=parameters)
        assert name in rejected.value.response.text
        assert len(client.read_flow_runs()) == before


@pytest.mark.usefixtures("deployed")
def test_a_new_dataset_is_accepted_after_the_next_deploy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASHION_ANN_DATASETS_DIR", str(tmp_path))
    (tmp_path / "mine.toml").write_text('height = 2\nwidth = 2\nlabels = { 1 = "a", 2 = "b" }\n')
    name = "train-fashion-mnist/on-demand"
    with get_client(sync_client=True) as client:
        with pytest.raises(PrefectHTTPStatusError, match=r"422|409"):
            client.create_flow_run_from_deployment(read_deployment(name).id, parameters={"dataset": "mine"})
        assert f"{name}: parameter_openapi_schema updated" in deploy_all().changed
        deployment = read_deployment(name)
        assert deployment.parameter_openapi_schema["properties"]["dataset"]["enum"] == [
            *("digits", "fashion-mnist", "mine"),
        ]
        run = client.create_flow_run_from_deployment(deployment.id, parameters={"dataset": "mine"})
        client.delete_flow_run(run.id)
    monkeypatch.delenv("FASHION_ANN_DATASETS_DIR")
    deploy_all()


def train_on_gpu(artifacts: Path) -> None:
    from flows.train_fashion_mnist import train_fashion_mnist

    train_fashion_mnist(
        data_dir=SAMPLE,
        artifacts_dir=artifacts,
        training=TrainingConfig(epochs=2, validation_size=100),
        promotion=PromotionConfig(minimum_accuracy=0, minimum_recall=0),
        train_on="gpu",
        gpu_worker_seconds=1,
    )


def gpu_runs() -> list[FlowRun]:
    deployment = read_deployment("fit-model/gpu").id
    with get_client(sync_client=True) as client:
        return [run for run in client.read_flow_runs() if run.deployment_id == deployment]


@pytest.mark.usefixtures("deployed")
def test_no_gpu_worker_fails_the_run_and_cancels_training(tmp_path: Path) -> None:
    with pytest.raises(NoGpuWorker, match=r"No worker picked up the training within 1 s.*work pool fashion-ann-gpu"):
        train_on_gpu(tmp_path)
    with get_client(sync_client=True) as client:
        children = gpu_runs()
        assert [run.state_name for run in children] == ["Cancelled"]
        parent_task = client.read_task_run(children[0].parent_task_run_id)
        parent = client.read_flow_run(parent_task.flow_run_id)
        assert "NoGpuWorker" in parent.state.message  # parent and child refer to each other


@pytest.mark.usefixtures("deployed")
def test_interrupt_while_waiting_cancels_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    known = {run.id for run in gpu_runs()}
    monkeypatch.setattr("tasks.train_on_worker.time", SimpleNamespace(monotonic=time.monotonic, sleep=interrupted))
    with pytest.raises(KeyboardInterrupt):
        train_on_gpu(tmp_path)
    assert [run.state_name for run in gpu_runs() if run.id not in known] == ["Cancelled"]


@pytest.fixture
def other_pools(deployed: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Name other pools for the test, and restore ours."""
    monkeypatch.setenv("FASHION_ANN_CPU_POOL", "shop-cpu")
    monkeypatch.setenv("FASHION_ANN_GPU_POOL", "shop-gpu")
    yield
    names = pool_names().values()
    monkeypatch.undo()
    deploy_all()
    with get_client(sync_client=True) as client:
        for name in names:
            client.delete_work_pool(name)


@field_fault(
    "operator's decision overwritten",
    "Another team has a work pool with the configured name",
    "`deploy` uses it, keeps its job template and prints the difference",
)
@pytest.mark.usefixtures("other_pools")
def test_uses_pools_of_other_names_and_keeps_their_template() -> None:
    template = ProcessWorker.get_default_base_job_template()
    with get_client(sync_client=True) as client:
        client.create_work_pool(WorkPoolCreate(name="shop-cpu", type="process", base_job_template=template))
        kept = [line for line in deploy_all().kept if line.startswith("work pool")]
        pools = {pool.name: pool for pool in client.read_work_pools()}
        queue = client.read_work_queue_by_name("checks", "shop-cpu")
    assert [line.partition(" ")[0] for line in kept] == ["work"] * 2
    assert "work pool shop-cpu: base_job_template on the server differs from prefect.yaml" in kept[1]
    assert pools["shop-cpu"].base_job_template == template
    assert pools["shop-gpu"].base_job_template == pools["fashion-ann-gpu"].base_job_template
    assert queue.concurrency_limit == 1
    for name in DEPLOYMENTS:
        role = "gpu" if name == "fit-model/gpu" else "cpu"
        assert read_deployment(name).work_pool_name == f"shop-{role}"


@pytest.mark.usefixtures("other_pools")
def test_another_pool_type_needs_a_job_template(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASHION_ANN_GPU_POOL_TYPE", "kubernetes")
    with pytest.raises(NotDeployed, match="work-pool get-default-base-job-template --type kubernetes --file FILE"):
        deploy_all()
    file = tmp_path / "template.json"
    monkeypatch.setenv("FASHION_ANN_GPU_POOL_TEMPLATE", str(file))
    for content in ("", "[]", '{"variables": {"properties": {}}, "job_configuration": {}}'):
        file.write_text(content)
        with pytest.raises(NotDeployed, match=re.escape(str(file))):
            deploy_all()
    env = {"type": "object", "additionalProperties": {"type": "string"}}
    template = {"job_configuration": {"env": "{{ env }}"}, "variables": {"type": "object", "properties": {"env": env}}}
    file.write_text(json.dumps(template))
    assert deploy_all().kept == []
    with get_client(sync_client=True) as client:
        pool = client.read_work_pool("shop-gpu")
    assert (pool.type, pool.base_job_template) == ("kubernetes", template)
    assert read_deployment("fit-model/gpu").work_pool_name == "shop-gpu"
    with pytest.raises(WrongUsage, match="process workers"):
        up(tmp_path)


@pytest.mark.usefixtures("deployed")
def test_rejects_an_existing_pool_of_another_type() -> None:
    with get_client(sync_client=True) as client:
        client.create_work_pool(WorkPoolCreate(name="containers", type="docker"))
        with pytest.raises(NotDeployed, match="pool containers of type docker already exists, expected type process"):
            create_pool({**work_pools()["cpu"], "name": "containers"})
        client.delete_work_pool("containers")


def test_two_roles_need_two_pools(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASHION_ANN_GPU_POOL", "fashion-ann-cpu")
    with pytest.raises(WrongUsage, match="one work pool per role"):
        pool_names()


def test_missing_deployment_fails_with_the_command_to_deploy(server: str, tmp_path: Path) -> None:
    with get_client(sync_client=True) as client, suppress(ObjectNotFound):
        client.delete_deployment(client.read_deployment_by_name("fit-model/gpu").id)
    with pytest.raises(NoGpuWorker, match="fashion-ann deploy"):
        train_on_gpu(tmp_path)


@pytest.mark.usefixtures("deployed")
def test_checks_wait_in_a_queue_with_one_run() -> None:
    name, pool = "checks", "fashion-ann-cpu"
    assert read_deployment("watch-data/scheduled").work_queue_name == name
    with get_client(sync_client=True) as client:
        queue = client.read_work_queue_by_name(name, pool)
        assert queue.concurrency_limit == 1
        client.update_work_queue(queue.id, concurrency_limit=2)
        deploy_all()
        assert client.read_work_queue_by_name(name, pool).concurrency_limit == 2  # the operator's limit
        client.update_work_queue(queue.id, concurrency_limit=1)
