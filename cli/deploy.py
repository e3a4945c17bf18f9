"""Create the work pools, deployments and automations of the project on the configured Prefect API."""

import json
import os
from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any
from uuid import UUID

import httpx

from cli.server_process import api_problem, prefect_settings
from schemas.config import PROJECT_ROOT, RESULT_FOLDER_VARIABLE
from schemas.errors import NotDeployed, WrongUsage

if TYPE_CHECKING:
    from prefect import Flow
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import DeploymentSchedule
    from prefect.client.schemas.responses import DeploymentResponse

    from cli.last_deploy import LastDeploy, Report

_SOURCE = "prefect.yaml"
_KEYS = {
    *("name", "description", "entrypoint", "work_pool", "parameters", "tags"),
    *("paused", "concurrency_limit", "schedules", "triggers"),
}
_DEFAULT_QUEUE = "default"
# Keys of a work pool, and the suffixes of the variables that replace them.
_POOL_VARIABLES = {"name": "", "type": "_TYPE", "job_template": "_TEMPLATE"}


def enter_checkout() -> dict[str, str]:
    """Change to the checkout that this package was installed from: the pull step of prefect.yaml."""
    os.chdir(PROJECT_ROOT)
    return {"directory": str(PROJECT_ROOT)}


def deploy_all(*, reset: bool = False) -> "Report":
    """Create or update work pools, deployments and automations, and return what changed. Repeating it changes nothing.

    An operator's changes on the server stay, unless ``reset`` is true.
    The API is that of PREFECT_API_URL and PREFECT_API_AUTH_STRING, or of the profile. Raises `NotDeployed`.
    """
    from prefect.client.orchestration import get_client

    from cli.automations import apply_automations
    from cli.last_deploy import Report

    url = prefect_settings().api.url
    if not url:
        raise NotDeployed(
            "No Prefect API is configured, and `deploy` needs a running server. Set PREFECT_API_URL. `fashion-ann up` "
            "starts a server and prints its address."
        )
    if (problem := api_problem()) is not None:
        raise NotDeployed(f"Nothing was deployed. {problem}")
    report = Report(reset)
    try:
        with get_client(sync_client=True) as client:
            _apply_pools(client, report)
            _apply_deployments(client, report)
        apply_automations(report)
    except httpx.HTTPStatusError as error:
        raise NotDeployed(
            f"{error.request.method} {error.request.url} was rejected with status {error.response.status_code}: "
            f"{error.response.text}. Fix the cause, and run `fashion-ann deploy` again."
        ) from error
    return report


def _definitions() -> dict[str, Any]:
    """Return the content of prefect.yaml. Variables FASHION_ANN_ROLE_POOL* replace properties of the work pools."""
    import yaml

    content: dict[str, Any] = yaml.safe_load((PROJECT_ROOT / _SOURCE).read_bytes())
    names = {}
    for pool in content["definitions"]["work_pools"]:
        before = pool["name"]
        for key, suffix in _POOL_VARIABLES.items():
            if value := os.environ.get(f"FASHION_ANN_{pool['role'].upper()}_POOL{suffix}"):
                pool[key] = value
        names[before] = pool["name"]
    if len(set(names.values())) < len(names):
        raise WrongUsage(
            f"Expected one work pool per role, received the name {pool['name']} for both of them. Set another name "
            "with FASHION_ANN_CPU_POOL or FASHION_ANN_GPU_POOL."
        )
    for queue in content["definitions"]["work_queues"]:
        queue["work_pool_name"] = names[queue["work_pool_name"]]
    for deployment in content["deployments"]:
        deployment["work_pool"] = {**deployment["work_pool"], "name": names[deployment["work_pool"]["name"]]}
    return content


def deployments() -> dict[str, dict[str, Any]]:
    """Return what prefect.yaml defines for each deployment by its name, such as "watch-data/scheduled"."""
    specs: list[dict[str, Any]] = _definitions()["deployments"]
    return {f"{_flow_name(spec)}/{spec['name']}": spec for spec in specs}


def flow_names() -> list[str]:
    """Return the name of each flow that has a deployment."""
    return list(dict.fromkeys(map(_flow_name, deployments().values())))


def _flow_name(spec: Mapping[str, Any]) -> str:
    return str(spec["entrypoint"]).rpartition(":")[2].replace("_", "-")


def work_pools() -> dict[str, dict[str, Any]]:
    """Return the project's work pools by role, cpu or gpu: name, type, description, maybe job_template."""
    return {pool["role"]: pool for pool in _definitions()["definitions"]["work_pools"]}


def pool_names() -> dict[str, str]:
    """Return the names of the project's work pools by role, in the order of prefect.yaml."""
    return {role: pool["name"] for role, pool in work_pools().items()}


def job_template(pool: Mapping[str, Any]) -> dict[str, Any]:
    """Return the base job template of a work pool: the file that it names, else `base_job_template`.

    Raises `NotDeployed` for a type other than process without a file, and for a file without a template.
    """
    name, kind, file = pool["name"], pool["type"], pool.get("job_template")
    if file is None and kind != "process":
        raise NotDeployed(
            f"Work pool {name} is of type {kind}: expected a job template, received none. Write one with `prefect "
            f"work-pool get-default-base-job-template --type {kind} --file FILE`, and name the file in job_template "
            f"of {_SOURCE} or FASHION_ANN_{pool['role'].upper()}_POOL_TEMPLATE."
        )
    if file is None:
        return base_job_template()
    try:
        template: dict[str, Any] = json.loads((PROJECT_ROOT / file).read_bytes())
        if "env" in template["variables"]["properties"] and isinstance(template["job_configuration"], dict):
            return template
        problem = "it has no variable env"
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        problem = f"it cannot be used ({type(error).__name__}: {error})"
    raise NotDeployed(
        f"{PROJECT_ROOT / file}: expected the base job template of work pool {name} as JSON, with job_configuration "
        f"and a variable env, but {problem}. Correct the file, or name another one."
    )


def base_job_template() -> dict[str, Any]:
    """Return the template of all pools: that of Prefect, reduced to the job variables that the deployments use.

    The server rejects other variables, and workers ignore them. A flow run can therefore not choose a command.
    """
    from prefect.workers.process import ProcessWorker

    template = ProcessWorker.get_default_base_job_template()
    used = [spec["work_pool"].get("job_variables", {}) for spec in _definitions()["deployments"]]
    names = {name for variables in used for name in variables} | {"env"}
    environment = {name for variables in used for name in variables.get("env", {})} | {RESULT_FOLDER_VARIABLE}
    properties = {name: template["variables"]["properties"][name] for name in sorted(names)}
    properties["env"] |= {
        "properties": {name: {"type": "string"} for name in sorted(environment)},
        "additionalProperties": False,
    }
    return {
        "job_configuration": {name: template["job_configuration"][name] for name in sorted(names)},
        "variables": {"type": "object", "properties": properties, "additionalProperties": False},
    }


def create_pool(pool: Mapping[str, Any]) -> None:
    """Create a work pool, or keep an existing one as it is: an operator may have paused or limited it."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import ObjectAlreadyExists

    fields = {key: pool[key] for key in ("name", "type", "description")}
    with get_client(sync_client=True) as client:
        try:
            client.create_work_pool(WorkPoolCreate(**fields, base_job_template=job_template(pool)))
        except ObjectAlreadyExists as error:
            if (existing := client.read_work_pool(pool["name"]).type) != pool["type"]:
                raise NotDeployed(
                    f"A work pool {pool['name']} of type {existing} already exists, expected type {pool['type']}. "
                    f"Choose another name with FASHION_ANN_{pool['role'].upper()}_POOL, or that type with "
                    f"FASHION_ANN_{pool['role'].upper()}_POOL_TYPE and a job template."
                ) from error


def _apply_pools(client: "SyncPrefectClient", report: "Report") -> None:
    """Create the pools and their queues. None is paused, and most have no limit, unless an operator changed that."""
    from prefect.client.schemas.actions import WorkPoolUpdate
    from prefect.exceptions import ObjectNotFound

    from cli.last_deploy import LastDeploy

    last = LastDeploy(client, report, "work pools", _SOURCE)
    limits = {"is_paused": False, "concurrency_limit": None}
    for pool in work_pools().values():
        create_pool(pool)
        name, existing = pool["name"], client.read_work_pool(pool["name"]).model_dump()
        wanted = {"description": pool["description"], "base_job_template": job_template(pool), **limits}
        if f"work pool {name}" in last.parts:  # else it may be another team's, whose template stays
            last.adopt(f"work pool {name}", {"base_job_template": existing["base_job_template"]})
        if updates := last.updates(f"work pool {name}", existing, wanted):
            client.update_work_pool(name, WorkPoolUpdate(**updates))
    # Prefect creates the default queue with its pool.
    queues = [{"name": _DEFAULT_QUEUE, "work_pool_name": name} for name in pool_names().values()]
    for queue in [*queues, *_definitions()["definitions"]["work_queues"]]:
        name, pool_name = queue["name"], queue["work_pool_name"]
        wanted = limits | {key: value for key, value in queue.items() if key in limits}
        part = f"work queue {pool_name}/{name}"
        try:
            existing_queue = client.read_work_queue_by_name(name, pool_name)
        except ObjectNotFound:
            last.parts.pop(part, None)  # a deployment needs it, and the server would create it without a limit
            client.create_work_queue(name, work_pool_name=pool_name, **last.updates(part, None, wanted))
            continue
        if updates := last.updates(part, existing_queue.model_dump(), wanted):
            client.request("PATCH", "/work_queues/{id}", path_params={"id": existing_queue.id}, json=updates)
    last.save()


def _apply_deployments(client: "SyncPrefectClient", report: "Report") -> None:
    """Create or update each deployment with its schedules and triggers."""
    from cli.last_deploy import LastDeploy

    definitions = _definitions()
    flows = {}
    for spec in definitions["deployments"]:
        if unknown := set(spec) - _KEYS:
            raise NotDeployed(f"{_SOURCE}: {spec['name']} has {sorted(unknown)}, expected only {sorted(_KEYS)}.")
        path, _, function = spec["entrypoint"].partition(":")
        flow = getattr(import_module(path.removesuffix(".py").replace("/", ".")), function)
        flows[f"{flow.name}/{spec['name']}"] = (flow, spec)
    existing = {name: _read(client, name) for name in flows}
    for name, (flow, spec) in flows.items():
        last = LastDeploy(client, report, name, _SOURCE)
        if not any(existing.values()):
            last.parts = {}  # all were deleted, which is no decision on a single one
        _apply_deployment(client, last, name, existing[name], _Wanted(name, spec, flow, definitions["pull"]))
        last.save()


def _read(client: "SyncPrefectClient", name: str) -> "DeploymentResponse | None":
    from prefect.exceptions import ObjectNotFound

    try:
        return client.read_deployment_by_name(name)
    except ObjectNotFound:
        return None


class _Wanted:
    """A deployment of prefect.yaml, in the form of the Prefect API."""

    def __init__(self, name: str, spec: Mapping[str, Any], flow: "Flow[..., Any]", pull: list[dict[str, Any]]) -> None:
        from prefect.client.schemas.objects import ConcurrencyOptions
        from prefect.events import DeploymentTriggerTypes
        from prefect.utilities.callables import parameter_schema
        from pydantic import TypeAdapter

        limit, pool = spec.get("concurrency_limit"), spec["work_pool"]
        strategy = {key: value for key, value in limit.items() if key != "limit"} if isinstance(limit, dict) else None
        self.flow = flow.name
        # An operator cannot edit these in Prefect's UI: they belong to the code of this checkout.
        self.code = {
            "entrypoint": spec["entrypoint"],
            "pull_steps": pull,
            "parameter_openapi_schema": parameter_schema(flow).model_dump(exclude_unset=True),
            "version": flow.version,
        }
        self.fields = {
            "description": spec.get("description") or flow.description,
            "tags": spec.get("tags", []),
            "parameters": spec.get("parameters", {}),
            "paused": spec.get("paused", False),
            "enforce_parameter_schema": True,
            "concurrency_limit": limit["limit"] if isinstance(limit, dict) else limit,
            "concurrency_options": strategy and ConcurrencyOptions(**strategy).model_dump(mode="json"),
            "job_variables": pool.get("job_variables", {}),
            "work_pool": [pool["name"], pool.get("work_queue_name", _DEFAULT_QUEUE)],
        }
        self.schedules = {
            f"{name}, schedule {schedule.get('slug', spec['name'])}": _schedule(schedule)
            for schedule in spec.get("schedules", [])
        }
        self.triggers = TypeAdapter(list[DeploymentTriggerTypes]).validate_python(spec.get("triggers", []))


def _schedule(spec: Mapping[str, Any]) -> dict[str, Any]:
    from prefect.client.schemas.schedules import construct_schedule

    timing = {key: value for key, value in spec.items() if key not in ("slug", "active", "parameters")}
    if "interval" in timing:  # Prefect's default is the time of the deploy, which would be a change each time
        timing = {"anchor_date": "2020-01-01T00:00:00Z", **timing}
    return {
        "schedule": construct_schedule(**timing).model_dump(mode="json"),
        "active": spec.get("active", True),
        "parameters": spec.get("parameters", {}),
    }


def _fields_on_server(deployment: "DeploymentResponse") -> dict[str, Any]:
    """Return the fields of `_Wanted.fields` as they are on the server."""
    limit, options = deployment.global_concurrency_limit, deployment.concurrency_options
    same = ("description", "tags", "parameters", "paused", "enforce_parameter_schema", "job_variables")
    return {
        **{name: getattr(deployment, name) for name in same},
        "concurrency_limit": limit and (limit.limit if limit.active else "disabled"),
        "concurrency_options": options and options.model_dump(mode="json"),
        "work_pool": [deployment.work_pool_name, deployment.work_queue_name],
    }


def _apply_deployment(
    client: "SyncPrefectClient", last: "LastDeploy", name: str, existing: "DeploymentResponse | None", wanted: _Wanted
) -> None:
    from prefect.client.schemas.actions import GlobalConcurrencyLimitUpdate

    from cli.automations import apply_automations_of

    if existing is None:
        updates = last.updates(name, None, wanted.fields)
        if not updates:
            return
        last.parts = {}  # of the schedules and triggers
        schedules = [_new_schedule(last, part, wanted) for part in wanted.schedules]
        flow = {"flow_id": str(client.create_flow_from_name(wanted.flow)), "name": name.rpartition("/")[2]}
        body = {**flow, **wanted.code, **_for_api(updates), "schedules": schedules}
        deployment_id = UUID(client.request("POST", "/deployments/", json=body).json()["id"])
    else:
        deployment_id = existing.id
        code = {key: value for key, value in wanted.code.items() if getattr(existing, key) != value}
        fields = _fields_on_server(existing)
        if existing.work_pool_name is None:  # the pool was deleted, and `deploy` created it again
            code["work_pool"] = fields["work_pool"] = wanted.fields["work_pool"]
        if code:
            last.report.changed.append(f"{name}: {', '.join(code)} updated")
        if updates := code | last.updates(name, fields, wanted.fields):
            client.request("PATCH", "/deployments/{id}", path_params={"id": existing.id}, json=_for_api(updates))
        if fields["concurrency_limit"] == "disabled" and updates.get("concurrency_limit"):
            limit = GlobalConcurrencyLimitUpdate(active=True)
            client.update_global_concurrency_limit(f"deployment:{existing.id}", limit)
        _apply_schedules(client, last, existing, name, wanted)
    automations = []
    for trigger in wanted.triggers:
        trigger.set_deployment_id(deployment_id)
        automations.append(trigger.as_automation())
    apply_automations_of(client, last, automations)


def _for_api(updates: Mapping[str, Any]) -> dict[str, Any]:
    """Return the body of a request: the API has two fields for the work pool."""
    body = dict(updates)
    if "work_pool" in body:
        body["work_pool_name"], body["work_queue_name"] = body.pop("work_pool")
    return body


def _new_schedule(last: "LastDeploy", part: str, wanted: _Wanted) -> dict[str, Any]:
    return {**last.updates(part, None, wanted.schedules[part]), "slug": part.rpartition(" ")[2]}


def _apply_schedules(
    client: "SyncPrefectClient", last: "LastDeploy", existing: "DeploymentResponse", name: str, wanted: _Wanted
) -> None:
    """Create, update and delete schedules one by one: Prefect's own deploy replaces all of them."""
    path: dict[str, Any] = {"id": existing.id}
    names = {f"{name}, schedule {schedule.slug or schedule.id}": schedule for schedule in existing.schedules}
    if not last.known:
        # Deployed by something else, maybe without slugs: a schedule that is missing may be there under another name.
        last.parts |= {part: {"schedule": "unknown"} for part in wanted.schedules}
    for part, fields in wanted.schedules.items():
        if part not in names:
            if (new := _new_schedule(last, part, wanted)).keys() > {"slug"}:
                client.request("POST", "/deployments/{id}/schedules", path_params=path, json=[new])
        elif updates := last.updates(part, _schedule_on_server(names[part]), fields):
            path["schedule_id"] = names[part].id
            client.request("PATCH", "/deployments/{id}/schedules/{schedule_id}", path_params=path, json=updates)
    for part in names.keys() - wanted.schedules.keys():
        if last.removes(part, _schedule_on_server(names[part])):
            client.delete_deployment_schedule(existing.id, names[part].id)


def _schedule_on_server(schedule: "DeploymentSchedule") -> dict[str, Any]:
    return schedule.model_dump(mode="json", include={"schedule", "active", "parameters"})
