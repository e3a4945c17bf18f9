"""An operator's changes on a real server stay through `deploy`, until `deploy --reset`."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from prefect.automations import AutomationCore
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import DeploymentUpdate, GlobalConcurrencyLimitUpdate, WorkPoolUpdate
from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule

from cli.automations import MARK_DEAD, MARK_NOT_STARTED, NOTIFY_NO_WORKER, NOTIFY_VARIABLE
from cli.deploy import deploy_all
from cli.last_deploy import Report
from schemas.config import PROJECT_ROOT
from tests.field_faults import field_fault
from tests.flows.test_deployments import TRIGGER, remove_everything

NIGHTLY, WATCH, ON_DEMAND = "train-fashion-mnist/nightly", "watch-data/scheduled", "train-fashion-mnist/on-demand"
VERIFY = "verify-store/nightly"
Snapshot = dict[str, Any]


@pytest.fixture(scope="module")
def client(server: str) -> Iterator[SyncPrefectClient]:
    with pytest.MonkeyPatch.context() as patch, get_client(sync_client=True) as client:
        patch.setenv(NOTIFY_VARIABLE, "http://127.0.0.1:9/")
        yield client
    remove_everything()


def snapshot(client: SyncPrefectClient) -> Snapshot:
    """Return everything that `deploy` manages, by name, without ids and times."""
    kept = {"description", "paused", "parameters", "tags", "job_variables", "work_pool_name", "concurrency_options"}
    values: Snapshot = {}
    for deployment in client.read_deployments():
        flow = client.read_flow(deployment.flow_id).name
        limit = deployment.global_concurrency_limit
        schedules = [each.model_dump(include={"schedule", "active", "parameters"}) for each in deployment.schedules]
        fields = deployment.model_dump(include=kept)
        fields["limit"] = limit and (limit.limit, limit.active)
        values[f"{flow}/{deployment.name}"] = {**fields, "schedules": schedules}
    for automation in client.read_automations():
        actions = [action.model_dump(exclude={"deployment_id", "block_document_id"}) for action in automation.actions]
        fields = automation.model_dump(include={"enabled", "description", "trigger"})
        values[automation.name] = {**fields, "actions": actions}
    for name in ("fashion-ann-cpu", "fashion-ann-gpu"):
        values[f"pool {name}"] = client.read_work_pool(name).model_dump(include={"is_paused", "concurrency_limit"})
        queue = client.read_work_queue_by_name("default", name)
        values[f"queue {name}"] = queue.model_dump(include={"is_paused", "concurrency_limit"})
    return values


def pause_schedule(client: SyncPrefectClient) -> None:
    deployment = client.read_deployment_by_name(NIGHTLY)
    client.update_deployment_schedule(deployment.id, deployment.schedules[0].id, active=False)


def edit_cron(client: SyncPrefectClient) -> None:
    deployment = client.read_deployment_by_name(WATCH)
    schedule = CronSchedule(cron="*/30 * * * *", timezone="Europe/Zurich")
    client.update_deployment_schedule(deployment.id, deployment.schedules[0].id, schedule=schedule)


def add_schedule(client: SyncPrefectClient) -> None:
    deployment = client.read_deployment_by_name(ON_DEMAND)
    client.create_deployment_schedules(deployment.id, [(IntervalSchedule(interval=timedelta(days=9)), True)])


def replace_schedule(client: SyncPrefectClient) -> None:
    """Do what `prefect deployment schedule create --replace` does: the new schedule has no slug."""
    deployment = client.read_deployment_by_name(WATCH)
    client.delete_deployment_schedule(deployment.id, deployment.schedules[0].id)
    client.create_deployment_schedules(deployment.id, [(CronSchedule(cron="5 5 * * *"), True)])


def pause_deployment(client: SyncPrefectClient) -> None:
    client.pause_deployment(client.read_deployment_by_name(ON_DEMAND).id)


def change_limit(client: SyncPrefectClient) -> None:
    limit = f"deployment:{client.read_deployment_by_name(NIGHTLY).id}"
    client.update_global_concurrency_limit(limit, GlobalConcurrencyLimitUpdate(limit=3))


def disable_limit(client: SyncPrefectClient) -> None:
    limit = f"deployment:{client.read_deployment_by_name(VERIFY).id}"
    client.update_global_concurrency_limit(limit, GlobalConcurrencyLimitUpdate(active=False))


def change_parameters(client: SyncPrefectClient) -> None:
    deployment = client.read_deployment_by_name(NIGHTLY).id
    client.update_deployment(deployment, DeploymentUpdate(parameters={"training": {"epochs": 3}}))


def delete_deployment(client: SyncPrefectClient) -> None:
    client.delete_deployment(client.read_deployment_by_name("fit-model/gpu").id)


def disable(name: str) -> Callable[[SyncPrefectClient], None]:
    return lambda client: client.pause_automation(client.read_automations_by_name(name)[0].id)


def edit_automation(client: SyncPrefectClient) -> None:
    (automation,) = client.read_automations_by_name(MARK_NOT_STARTED)
    automation.trigger.within = timedelta(seconds=900)  # type: ignore[union-attr]
    client.update_automation(
        automation.id, AutomationCore.model_validate(automation.model_dump(exclude={"id", "owner_resource"}))
    )


def delete_automation(client: SyncPrefectClient) -> None:
    client.delete_automation(client.read_automations_by_name(NOTIFY_NO_WORKER)[0].id)


def pause_pool(client: SyncPrefectClient) -> None:
    client.update_work_pool("fashion-ann-cpu", WorkPoolUpdate(is_paused=True))


def limit_pool(client: SyncPrefectClient) -> None:
    client.update_work_pool("fashion-ann-gpu", WorkPoolUpdate(concurrency_limit=7))


def pause_queue(client: SyncPrefectClient) -> None:
    queue = client.read_work_queue_by_name("default", "fashion-ann-gpu")
    client.request("PATCH", "/work_queues/{id}", path_params={"id": queue.id}, json={"is_paused": True})


@dataclass(frozen=True)
class Edit:
    """An operator's change of the object ``name``, and the start of the line with which `deploy` reports it."""

    edit: Callable[[SyncPrefectClient], None]
    name: str
    line: str


_KEPT = "`deploy` keeps and prints it; `--reset` restores our files"
EDITS = {
    "pauses a schedule": Edit(
        pause_schedule, NIGHTLY, f"{NIGHTLY}, schedule nightly: paused on the server; prefect.yaml"
    ),
    "edits cron and timezone": Edit(edit_cron, WATCH, f"{WATCH}, schedule scheduled: schedule "),
    "adds a schedule": Edit(add_schedule, ON_DEMAND, f"{ON_DEMAND}, schedule "),
    "pauses a deployment": Edit(pause_deployment, ON_DEMAND, f"{ON_DEMAND}: paused on the server; prefect.yaml"),
    "changes a concurrency limit": Edit(change_limit, NIGHTLY, f"{NIGHTLY}: concurrency_limit is 3 on the server; "),
    "disables a concurrency limit": Edit(disable_limit, VERIFY, f'{VERIFY}: concurrency_limit is "disabled" on the '),
    "changes default parameters": Edit(change_parameters, NIGHTLY, f"{NIGHTLY}: parameters is "),
    "deletes a deployment": Edit(delete_deployment, "fit-model/gpu", "fit-model/gpu: deleted on the server; "),
    "disables a trigger": Edit(disable(TRIGGER), TRIGGER, f"automation {TRIGGER}: disabled on the server; "),
    "disables an automation": Edit(disable(MARK_DEAD), MARK_DEAD, f"automation {MARK_DEAD}: disabled on the server; "),
    "edits an automation": Edit(edit_automation, MARK_NOT_STARTED, f"automation {MARK_NOT_STARTED}: trigger "),
    "deletes an automation": Edit(delete_automation, NOTIFY_NO_WORKER, f"automation {NOTIFY_NO_WORKER}: deleted on "),
    "pauses a work pool": Edit(pause_pool, "pool fashion-ann-cpu", "work pool fashion-ann-cpu: paused on the server; "),
    "limits a work pool": Edit(
        limit_pool, "pool fashion-ann-gpu", "work pool fashion-ann-gpu: concurrency_limit is 7 on the server; "
    ),
    "pauses a work queue": Edit(
        pause_queue, "queue fashion-ann-gpu", "work queue fashion-ann-gpu/default: paused on the server; "
    ),
}


@dataclass(frozen=True)
class Edited:
    """Snapshots around an operator's changes, with the reports of the deploys."""

    deployed: Snapshot
    edited: Snapshot
    redeployed: Snapshot
    reset: Snapshot
    reports: list[Report]


@pytest.fixture(scope="module")
def edited(client: SyncPrefectClient) -> Edited:
    """Deploy, make all changes of `EDITS`, deploy twice, and reset."""
    deploy_all()
    deployed = snapshot(client)
    for edit in EDITS.values():
        edit.edit(client)
    edited = snapshot(client)
    reports = [deploy_all(), deploy_all()]
    redeployed = snapshot(client)
    reports += [deploy_all(reset=True)]
    return Edited(deployed, edited, redeployed, snapshot(client), reports)


@field_fault("operator's decision overwritten", "An operator pauses a schedule, deployment, work pool or queue", _KEPT)
@field_fault("operator's decision overwritten", "An operator edits a schedule, limit, parameters or automation", _KEPT)
@field_fault(
    "operator's decision overwritten", "An operator disables or deletes a trigger, automation or deployment", _KEPT
)
@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_decision_stands_until_a_reset(edited: Edited, edit: Edit) -> None:
    assert edited.edited.get(edit.name) != edited.deployed[edit.name]
    assert edited.redeployed.get(edit.name) == edited.edited.get(edit.name)
    assert edited.reset[edit.name] == edited.deployed[edit.name]
    for report in edited.reports[:2]:
        (line,) = (line for line in report.kept if line.startswith(edit.line))
        assert line.endswith("Kept; `fashion-ann deploy --reset` restores the file.")


def test_deploy_changes_and_reports_nothing_else(edited: Edited) -> None:
    assert edited.redeployed == edited.edited
    assert edited.reset == edited.deployed
    assert [(report.changed, len(report.kept)) for report in edited.reports[:2]] == [([], len(EDITS))] * 2
    assert edited.reports[2].kept == []


@pytest.mark.usefixtures("edited")
def test_repeated_deploy_does_nothing(client: SyncPrefectClient) -> None:
    def ids() -> set[Any]:
        deployments = client.read_deployments()
        schedules = {schedule.id for deployment in deployments for schedule in deployment.schedules}
        return {(each.id, each.updated) for each in [*deployments, *client.read_work_pools()]} | schedules

    before = ids()
    report = deploy_all()
    assert (report.changed, report.kept) == ([], [])
    assert ids() == before


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, edited: Edited) -> Iterator[Path]:
    """Deploy from a copy of prefect.yaml, which a test may change, and restore the server afterwards."""
    copy = tmp_path / "prefect.yaml"
    copy.write_text((PROJECT_ROOT / "prefect.yaml").read_text())
    monkeypatch.setattr("cli.deploy.PROJECT_ROOT", tmp_path)
    yield copy
    monkeypatch.undo()
    monkeypatch.setenv(NOTIFY_VARIABLE, "http://127.0.0.1:9/")
    deploy_all(reset=True)


def rewrite(path: Path, pattern: str, replacement: str) -> None:
    text, count = re.subn(pattern, replacement, path.read_text(), flags=re.DOTALL)
    assert count == 1
    path.write_text(text)


def test_unedited_values_follow_a_new_release(client: SyncPrefectClient, checkout: Path) -> None:
    rewrite(checkout, r'cron: "0 3', 'cron: "0 4')
    rewrite(checkout, r"(name: fit-model.*?|name: gpu\n    description: Train.*?)limit: 1", r"\1limit: 2")
    rewrite(checkout, "fashion-ann.data.updated", "fashion-ann.data.changed")
    assert len(deploy_all().changed) == 3
    nightly, gpu = (client.read_deployment_by_name(name) for name in (NIGHTLY, "fit-model/gpu"))
    assert [schedule.schedule.cron for schedule in nightly.schedules] == ["0 4 * * *"]  # type: ignore[union-attr]
    assert gpu.global_concurrency_limit is not None
    assert gpu.global_concurrency_limit.limit == 2
    (trigger,) = client.read_automations_by_name(TRIGGER)
    assert trigger.trigger.expect == {"fashion-ann.data.changed"}  # type: ignore[union-attr]


def test_paused_schedule_follows_a_new_cron_and_stays_paused(client: SyncPrefectClient, checkout: Path) -> None:
    pause_schedule(client)
    rewrite(checkout, r'cron: "0 3', 'cron: "0 4')
    deploy_all()
    (schedule,) = client.read_deployment_by_name(NIGHTLY).schedules
    assert (schedule.schedule.cron, schedule.active) == ("0 4 * * *", False)  # type: ignore[union-attr]


def test_replaced_schedule_gets_no_duplicate(client: SyncPrefectClient, checkout: Path) -> None:
    replace_schedule(client)
    rewrite(checkout, r'cron: "\*/10', 'cron: "*/20')
    assert len(deploy_all().kept) == 2
    (schedule,) = client.read_deployment_by_name(WATCH).schedules
    assert schedule.schedule.cron == "5 5 * * *"  # type: ignore[union-attr]


def test_removed_schedule_and_trigger_are_deleted(client: SyncPrefectClient, checkout: Path) -> None:
    rewrite(checkout, r"    schedules:\n      - slug: nightly.*?timezone: UTC\n", "")
    rewrite(checkout, r"    triggers:\n.*?(  - name: gpu\n)", r"\1")
    deploy_all()
    assert client.read_deployment_by_name(NIGHTLY).schedules == []
    assert client.read_automations_by_name(TRIGGER) == []


def test_new_schedule_and_deployment_are_created(client: SyncPrefectClient, checkout: Path) -> None:
    more = '    schedules: [{slug: more, cron: "0 1 * * *", timezone: UTC}]\n'
    batch = checkout.read_text().partition("  - name: batch\n")[2].partition("  - name:")[0]
    checkout.write_text(checkout.read_text() + f"\n  - name: second\n{batch.rstrip()}\n{more}")
    assert len(deploy_all().changed) == 2
    deployment = client.read_deployment_by_name("predict-fashion-mnist/second")
    assert [schedule.slug for schedule in deployment.schedules] == ["more"]
    client.delete_deployment(deployment.id)


def test_edited_recipient_stays(client: SyncPrefectClient, checkout: Path) -> None:
    block = client.read_block_document_by_name("fashion-ann", "custom-webhook")
    body = {"data": {**block.data, "url": "http://127.0.0.1:9/edited"}, "merge_existing_data": True}
    client.request("PATCH", "/block_documents/{id}", path_params={"id": block.id}, json=body)
    deploy_all()
    assert client.read_block_document(block.id).data["url"] == "http://127.0.0.1:9/edited"


def test_deploy_after_a_deletion_of_all_creates_all(client: SyncPrefectClient, checkout: Path) -> None:
    deployed = snapshot(client)
    for deployment in client.read_deployments():
        client.delete_deployment(deployment.id)
    deploy_all()
    assert snapshot(client) == deployed


def test_deleted_pool_gets_its_queues_and_deployments_back(client: SyncPrefectClient, checkout: Path) -> None:
    client.delete_work_pool("fashion-ann-cpu")
    assert deploy_all().kept == []
    assert client.read_work_queue_by_name("checks", "fashion-ann-cpu").concurrency_limit == 1
    deployment = client.read_deployment_by_name(WATCH)
    assert (deployment.work_pool_name, deployment.work_queue_name) == ("fashion-ann-cpu", "checks")


@field_fault(
    "operator's decision overwritten",
    "A release that recorded nothing was deployed, and a schedule paused since",
    "The schedule stays paused, and no second one is created",
)
def test_server_without_a_record_keeps_its_schedules(client: SyncPrefectClient, checkout: Path) -> None:
    for variable in client.read_variables():
        client.delete_variable_by_name(variable.name)
    deployment = client.read_deployment_by_name(NIGHTLY)
    (schedule,) = deployment.schedules
    client.delete_deployment_schedule(deployment.id, schedule.id)
    client.create_deployment_schedules(deployment.id, [(schedule.schedule, False)])  # without a slug
    for _ in range(2):
        deploy_all()
        (kept,) = client.read_deployment_by_name(NIGHTLY).schedules
        assert (kept.schedule, kept.active) == (schedule.schedule, False)
