"""Compare containers and systemd units with `fashion-ann up`: commands, pools, ports, variables. Validate manifests."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import prefect.settings
import pytest
import yaml

from cli import services
from cli.automations import NOTIFY_VARIABLE
from cli.deploy import base_job_template, job_template, pool_names
from cli.server_process import project_settings, ui_origins
from schemas.config import artifacts_folder, data_folder, datasets_folder
from tests.field_faults import field_fault

ROOT = Path(__file__).resolve().parents[1]
COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
UNITS = {path.name: path for path in sorted((ROOT / "deploy" / "systemd").glob("*.service"))}
POOLS = pool_names()
UI_FOLDER = "PREFECT_SERVER_UI_STATIC_DIRECTORY"
TEMPLATES = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("deploy/*/job-template*.json"))
MANIFESTS = sorted((ROOT / "deploy" / "kubernetes" / "manifests").glob("*.yaml"))
KUBERNETES = "1.37"


def _stages() -> dict[str, list[tuple[str, str]]]:
    """Return the instructions of each stage of the Dockerfile, with their arguments."""
    stages: dict[str, list[tuple[str, str]]] = {}
    stage = "arguments"
    text = re.sub(r"(?m)^\s*#.*\n", "", DOCKERFILE).replace("\\\n", " ")
    for line in filter(None, map(str.strip, text.splitlines())):
        instruction, _, argument = line.partition(" ")
        if instruction == "FROM":
            stage = argument.split()[-1]
        stages.setdefault(stage, []).append((instruction, argument))
    return stages


def _unit(name: str) -> dict[str, list[str]]:
    """Return the [Service] section of a unit; a key may occur several times."""
    values: dict[str, list[str]] = {}
    section = ""
    for line in UNITS[name].read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            section = line
        elif section == "[Service]" and "=" in line and not line.startswith("#"):
            key, _, value = line.partition("=")
            values.setdefault(key, []).append(value)
    return values


def _environment(unit: dict[str, list[str]]) -> dict[str, str]:
    return dict(line.split("=", 1) for line in unit["Environment"])


def _image_environment() -> dict[str, str]:
    (text,) = (argument for instruction, argument in _stages()["base"] if instruction == "ENV")
    return dict(word.split("=", 1) for word in shlex.split(text))


def _worker(pool: str) -> list[str]:
    return ["prefect", "worker", "start", "--pool", pool, "--type", "process"]


@pytest.mark.parametrize("role", POOLS)
def test_each_pool_has_an_image_target_with_its_lock(role: str) -> None:
    stage = _stages()[role]
    (command,) = (yaml.safe_load(argument) for instruction, argument in stage if instruction == "CMD")
    assert command[:2] == ["sh", "-c"]
    # The variable that names the pool for `deploy` names it for the worker.
    variable = f"${{FASHION_ANN_{role.upper()}_POOL:-{POOLS[role]}}}"
    assert command[2].startswith(f"exec {' '.join(_worker(variable))} ")
    assert "--with-healthcheck" in command[2]
    assert "HEALTHCHECK" in dict(_stages()["base"])
    assert stage[0] == ("FROM", f"base AS {role}")
    assert dict(stage)["USER"].isdigit()
    assert dict(stage)["USER"] != "0"
    assert ("COPY", f"--from={role}-packages /opt/venv /opt/venv") in stage
    assert "RUN" not in dict(stage)  # pip and uv stay in the stages above
    packages = _stages()[f"{role}-packages"]
    locks = " ".join(f"requirements/{name}.lock" for name in (role, "remote", "dask"))
    assert ("COPY", f"{locks} requirements/") in packages
    assert dict(packages)["RUN"] == f"./install-packages.sh {role}"


def test_images_install_locked_packages_only() -> None:
    script = (ROOT / "deploy/docker/install-packages.sh").read_text().replace("\\\n", "")
    locked, project = (line for line in script.splitlines() if " pip install " in line)
    locks = ["requirements/$1.lock", "requirements/remote.lock", "requirements/dask.lock"]
    assert "--require-hashes" in locked
    assert re.findall(r'-r "?([^"\s]+)"?', locked) == locks
    assert "--no-deps" in project


def test_the_classic_builder_reaches_cpu_first() -> None:
    """It builds every stage above its target."""
    assert list(_stages()).index("cpu") < min(number for number, name in enumerate(_stages()) if "gpu" in name)
    assert DOCKERFILE.splitlines()[-1] == "FROM cpu"  # the default target


def test_base_image_can_be_replaced() -> None:
    assert dict(_stages()["base"])["FROM"] == "${PYTHON_IMAGE} AS base"
    (default,) = re.findall(r"^ARG PYTHON_IMAGE=(\S+)\n\nFROM", DOCKERFILE, re.MULTILINE)
    assert COMPOSE["services"]["worker-cpu"]["build"]["args"]["PYTHON_IMAGE"] == f"${{PYTHON_IMAGE:-{default}}}"


def test_images_contain_only_runtime_files() -> None:
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert lines.index("*") < min(number for number, line in enumerate(lines) if line.startswith("!"))
    included = {line[1:] for line in lines if line.startswith("!")}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    setuptools = project["tool"]["setuptools"]
    packages = {name.rstrip("*") for name in setuptools["packages"]["find"]["include"]}
    packages |= {f"{name}.py" for name in setuptools["py-modules"]}
    assert packages | {"requirements", "pyproject.toml", "prefect.yaml", project["project"]["readme"]} <= included
    assert not included & {".env", "data", "artifacts", "tests", ".git"}


def test_compose_volumes_are_the_folders_of_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in _image_environment().items():
        monkeypatch.setenv(name, value)
    kept = {volume.rpartition(":")[2] for volume in COMPOSE["services"]["worker-cpu"]["volumes"]}
    assert kept == {str(artifacts_folder()), str(data_folder()), str(datasets_folder())}
    (created,) = (argument for instruction, argument in _stages()["base"] if "useradd" in argument)
    assert f" {os.environ['PREFECT_HOME']} " in created  # a new volume has it, too
    # The same folder as with `up`: workers read each other's flow run results there.
    assert os.environ["PREFECT_HOME"] == str(services.ServicePaths(artifacts_folder()).home)


def test_compose_starts_the_services_of_up_in_order() -> None:
    defined = COMPOSE["services"]
    assert set(defined) == {"settings", "database", "server", "deploy", *map(services.service_of, POOLS)}
    port = str(services.PREFECT_DEFAULT_PORT)
    assert defined["server"]["command"][:3] == ["prefect", "server", "start"]
    assert defined["server"]["command"][-1] == port
    assert defined["server"]["ports"] == [f"127.0.0.1:${{FASHION_ANN_PORT:-{port}}}:{port}"]
    address = f"http://127.0.0.1:${{FASHION_ANN_PORT:-{port}}}"
    for name in ("server", "deploy", "worker-cpu", "worker-gpu"):  # links in notifications and logs
        assert defined[name]["environment"]["PREFECT_UI_URL"] == address
    assert defined["server"]["environment"]["PREFECT_SERVER_UI_API_URL"] == f"{address}/api"
    assert defined["deploy"]["command"] == ["fashion-ann", "deploy"]
    assert defined["deploy"]["restart"] == "no"
    after = {name: service.get("depends_on", {}) for name, service in defined.items()}
    assert after["settings"] == {}
    assert after["database"] == {"settings": {"condition": "service_completed_successfully"}}
    assert after["server"] == {"database": {"condition": "service_healthy"}}
    assert after["deploy"] == {"server": {"condition": "service_healthy"}}
    for role in POOLS:
        worker = defined[services.service_of(role)]
        assert worker["build"]["target"] == role  # its command is the image's
        assert "command" not in worker
        assert after[services.service_of(role)] == {"deploy": {"condition": "service_completed_successfully"}}
    (device,) = defined["worker-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]


def test_servers_have_a_writable_ui_folder() -> None:
    for environment in (
        COMPOSE["services"]["server"]["environment"],
        _environment(_unit("fashion-ann-server.service")),
    ):
        assert Path(environment[UI_FOLDER]).parent == Path(environment["PREFECT_HOME"])
    assert UI_FOLDER in _named_settings()


@field_fault(
    "operator's decision overwritten",
    "Compose or the systemd unit deploys again with FASHION_ANN_NOTIFY unset",
    "The variable reaches the container only if it is set, so the notifications stay",
)
def test_unset_recipient_stays_unset_in_containers_and_units() -> None:
    # No value, not even an empty one: compose then passes the variable only if it is set.
    assert COMPOSE["services"]["deploy"]["environment"][NOTIFY_VARIABLE] is None
    example = (ROOT / "deploy" / "systemd" / "fashion-ann.env.example").read_text(encoding="utf-8")
    assert f"\n#{NOTIFY_VARIABLE}=" in example


def test_only_the_server_of_compose_has_secrets() -> None:
    text = (ROOT / "compose.yaml").read_text(encoding="utf-8")
    for name in ("POSTGRES_PASSWORD", "PREFECT_SERVER_API_AUTH_STRING"):
        assert f"${{{name}:?" in text  # compose fails if it is not set
    for name, service in COMPOSE["services"].items():
        secrets = set(services.SERVER_SECRETS) & set(service.get("environment", {}))
        assert bool(secrets) == (name in ("settings", "server"))


def test_containers_have_no_privileges() -> None:
    for name, service in COMPOSE["services"].items():
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["read_only"] is True, name
        assert not {"privileged", "cap_add", "pid", "ipc", "devices"} & set(service), name


def test_only_the_server_reaches_the_database() -> None:
    networks = {name: service.get("networks", []) for name, service in COMPOSE["services"].items()}
    assert [name for name, joined in networks.items() if "database" in joined] == ["database", "server"]
    assert networks["database"] == ["database"]
    assert networks["settings"] == []
    assert COMPOSE["services"]["settings"]["network_mode"] == "none"
    assert COMPOSE["networks"]["database"] == {"internal": True}
    assert [name for name, service in COMPOSE["services"].items() if "ports" in service] == ["server"]


def test_passwords_are_checked_before_a_start() -> None:
    check = "-m cli.placeholders"
    settings = COMPOSE["services"]["settings"]
    assert settings["command"] == ["python", *check.split()]
    assert set(settings["environment"]) == {"POSTGRES_PASSWORD", "PREFECT_SERVER_API_AUTH_STRING"}
    for name in UNITS:
        (before,) = _unit(name)["ExecStartPre"]
        assert before.partition(" ")[2].startswith(check)
    # An unset variable would start a server without a password.
    assert _unit("fashion-ann-server.service")["ExecStartPre"][0].endswith(f"{check} PREFECT_SERVER_API_AUTH_STRING")


def _named_settings() -> set[str]:
    units = [_unit(name) for name in UNITS]
    example = (ROOT / "deploy" / "systemd" / "fashion-ann.env.example").read_text(encoding="utf-8")
    named = set(_image_environment()) | set(re.findall(r"(?m)^(\w+)=", example))
    named |= {name for service in COMPOSE["services"].values() for name in service.get("environment", {})}
    named |= {name for unit in units for name in _environment(unit)}
    return {name for name in named | set(project_settings()) if name.startswith("PREFECT_")}


def test_servers_start_where_prefect_reads_the_settings() -> None:
    """Prefect reads [tool.prefect.server] only from the working directory: leases, dead runs and the vacuum need it."""
    assert "WORKDIR" in dict(_stages()["base"])
    assert dict(_stages()["cpu"])["COPY"] == ". ."  # the last one copies the checkout into it
    assert "working_dir" not in COMPOSE["services"]["server"]
    (folder,) = _unit("fashion-ann-server.service")["WorkingDirectory"]
    assert _unit("fashion-ann-server.service")["ExecStart"][0].startswith(f"{folder}/.venv/")


def test_servers_are_closed_like_that_of_up() -> None:
    """`test_servers_start_where_prefect_reads_the_settings` proves that they read these settings."""
    settings = project_settings()
    environment = {
        name: value.replace("${FASHION_ANN_PORT:-4200}", "4200")
        for name, value in COMPOSE["services"]["server"]["environment"].items()
    }
    origins = ",".join(ui_origins(environment["PREFECT_SERVER_UI_API_URL"]))
    assert settings["PREFECT_SERVER_API_CORS_ALLOWED_ORIGINS"] == origins
    assert environment["PREFECT_SERVER_API_CORS_ALLOWED_ORIGINS"] == origins
    assert settings["PREFECT_SERVER_API_CSRF_PROTECTION_ENABLED"] == "True"
    required = COMPOSE["services"]["server"]["environment"]["PREFECT_SERVER_API_AUTH_STRING"]
    assert required.startswith("${PREFECT_SERVER_API_AUTH_STRING:?")


def test_servers_home_survives_a_new_container() -> None:
    """The volume has the concurrency leases of active runs."""
    server = COMPOSE["services"]["server"]
    (volume,) = server["volumes"]
    name, _, folder = volume.partition(":")
    assert name in COMPOSE["volumes"]
    assert folder == server["environment"]["PREFECT_HOME"]
    (created,) = (argument for instruction, argument in _stages()["base"] if "useradd" in argument)
    assert re.search(
        rf"chown -R 10001:10001 .*{folder}( |$)", created
    )  # a new volume has the owner of the image's folder


def test_every_prefect_setting_exists() -> None:
    assert {name for name in _named_settings() if not hasattr(prefect.settings, name)} == set()
    assert not hasattr(prefect.settings, "PREFECT_NO_SUCH_SETTING")


def test_workers_poll_equally_often_everywhere(tmp_path: Path) -> None:
    name = "PREFECT_WORKER_QUERY_SECONDS"
    ours = services.worker_environment(tmp_path, "http://127.0.0.1:4200/api", {})
    for place in (_image_environment(), _environment(_unit("fashion-ann-worker@.service"))):
        assert place[name] == ours[name]


def test_units_start_the_services_of_up() -> None:
    assert set(UNITS) == {"fashion-ann-server.service", "fashion-ann-deploy.service", "fashion-ann-worker@.service"}
    commands = {}
    for name in UNITS:
        unit = _unit(name)
        assert unit["User"] == ["fashion-ann"]
        assert unit["EnvironmentFile"] == ["/etc/fashion-ann.env"]
        (checkout,) = unit["WorkingDirectory"]
        binary, _, rest = unit["ExecStart"][0].removeprefix(f"{checkout}/.venv/bin/").partition(" ")
        commands[name] = [binary, *shlex.split(rest)]
    assert commands["fashion-ann-server.service"] == [
        *("prefect", "server", "start", "--host", "127.0.0.1", "--port", str(services.PREFECT_DEFAULT_PORT))
    ]
    assert commands["fashion-ann-deploy.service"] == ["fashion-ann", "deploy"]
    assert commands["fashion-ann-worker@.service"][:7] == _worker("fashion-ann-%i")
    hidden = _unit("fashion-ann-worker@.service")["UnsetEnvironment"][0].split()
    assert set(hidden) <= set(services.SERVER_SECRETS)
    assert set(hidden) >= set(services.SERVER_SECRETS) & _named_settings()


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd")
def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    here = str(Path(sys.executable).parent)
    for name, path in UNITS.items():
        # systemd-analyze requires that the commands exist.
        (tmp_path / name).write_text(path.read_text(encoding="utf-8").replace("/opt/fashion-ann/.venv/bin", here))
    done = subprocess.run(
        ["systemd-analyze", "verify", *sorted(map(str, tmp_path.iterdir()))], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd")
@pytest.mark.parametrize("name", UNITS)
def test_exposure_of_a_unit_is_at_most_3_5(name: str) -> None:
    command = ["systemd-analyze", "security", "--offline=true", "--threshold=35", str(UNITS[name])]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", UNITS)
def test_units_keep_their_files_to_themselves(name: str) -> None:
    unit = _unit(name)
    assert unit["UMask"] == ["0077"]
    assert unit["StateDirectoryMode"] == ["0750"]
    assert unit["CapabilityBoundingSet"] == [""]
    assert set(unit["RestrictAddressFamilies"][0].split()) <= {"AF_UNIX", "AF_INET", "AF_INET6", "AF_NETLINK"}


@pytest.mark.parametrize("target", ["cpu", "gpu"])
@field_fault(
    "stray files and bad values",
    "The code is in an image, which has no git checkout",
    "The build argument REVISION becomes FASHION_ANN_REVISION, and compose passes it",
)
def test_an_image_has_the_revision_of_its_build(target: str) -> None:
    stage = _stages()[target]
    assert any(instruction == "ARG" and argument.startswith("REVISION") for instruction, argument in stage)
    assert any(instruction == "ENV" and "FASHION_ANN_REVISION=$REVISION" in argument for instruction, argument in stage)
    assert COMPOSE["services"][f"worker-{target}"]["build"]["args"]["REVISION"] == "${REVISION:-}"


@pytest.mark.parametrize("file", TEMPLATES)
def test_pools_of_other_types_accept_our_job_variables_only(file: str) -> None:
    template = job_template({"name": "a", "type": "docker", "role": "cpu", "job_template": file})
    ours = base_job_template()["variables"]
    accepted = template["variables"]
    assert set(accepted["properties"]) == {"env"} == set(ours["properties"])
    for key in ("properties", "additionalProperties"):
        assert accepted["properties"]["env"][key] == ours["properties"]["env"][key]
    assert accepted["additionalProperties"] is False
    included = re.findall(r"(?m)^!(\S+)", (ROOT / ".dockerignore").read_text(encoding="utf-8"))
    assert any(Path(file).match(pattern) for pattern in included)  # `deploy` in a container reads it


def test_docker_pool_runs_like_the_worker_of_compose() -> None:
    job = json.loads((ROOT / "deploy/docker/job-template.json").read_bytes())["job_configuration"]
    worker = COMPOSE["services"]["worker-cpu"]
    assert job["image"] == worker["image"]
    assert job["networks"] == [f"{COMPOSE['name']}_{name}" for name in worker["networks"]]
    assert [volume.rpartition(":")[2] for volume in job["volumes"]] == [
        volume.rpartition(":")[2] for volume in worker["volumes"]
    ]
    assert {volume.partition(":")[0] for volume in job["volumes"]} <= {
        f"{COMPOSE['name']}_{name}" for name in COMPOSE["volumes"]
    }
    options = job["container_create_kwargs"]
    for key in ("init", "read_only", "cap_drop", "security_opt"):
        assert options[key] == worker[key], key
    assert list(options["tmpfs"]) == [worker["tmpfs"]]
    environment = {name: worker["environment"][name] for name in ("PREFECT_API_URL", "NO_PROXY", "no_proxy")}
    # The worker's own home would replace that of the image.
    assert job["env"] == {**environment, "PREFECT_HOME": _image_environment()["PREFECT_HOME"]}


def _resources() -> Iterator[Any]:
    """Yield each resource of Kubernetes as (id, resource): of the manifests, and the jobs of both templates."""
    for path in MANIFESTS:
        for resource in yaml.safe_load_all(path.read_text(encoding="utf-8")):
            if resource["kind"] == "DaskCluster":
                # Its schema is that of Dask's operator; those of its parts are the API's.
                for role in ("worker", "scheduler"):
                    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {}, "spec": resource["spec"][role]["spec"]}
                    yield pytest.param(pod, id=f"dask-{role}")
            else:
                yield pytest.param(resource, id=f"{path.stem}-{resource['kind']}-{resource['metadata']['name']}")
    for file in TEMPLATES:
        if "kubernetes" in file:
            job = json.loads((ROOT / file).read_bytes())["job_configuration"]["job_manifest"]
            pod = job["spec"]["template"]["spec"]
            # Prefect requires both here, where the API ignores them.
            assert (pod.pop("parallelism"), pod.pop("completions")) == (1, 1)
            yield pytest.param(job, id=Path(file).stem)


@pytest.mark.parametrize("resource", _resources())
def test_kubernetes_accepts_a_resource(resource: dict[str, Any]) -> None:
    kubernetes_validate.validate(resource, KUBERNETES, strict=True)
    spec = resource.get("spec", {})
    pod = spec if resource["kind"] == "Pod" else spec.get("template", {}).get("spec")
    if pod is None:
        return
    # The Pod Security Standard "restricted", and a read-only image as with compose.
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["enableServiceLinks"] is False  # a service would set variables such as PREFECT_SERVER_PORT
    for container in pod["containers"]:
        security = container["securityContext"]
        assert security["allowPrivilegeEscalation"] is False
        assert security["readOnlyRootFilesystem"] is True
        assert security["capabilities"] == {"drop": ["ALL"]}


def test_a_wrong_resource_is_rejected() -> None:
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(
            {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a"}, "spec": {"port": []}},
            KUBERNETES,
            strict=True,
        )


def test_kubernetes_names_what_exists() -> None:
    settings, *_ = yaml.safe_load_all((MANIFESTS[0].parent / "settings.yaml").read_text(encoding="utf-8"))
    for role in POOLS:
        template = settings["data"][f"FASHION_ANN_{role.upper()}_POOL_TEMPLATE"].removeprefix("/app/")
        assert template in TEMPLATES
        job = json.loads((ROOT / template).read_bytes())["job_configuration"]["job_manifest"]
        (container,) = job["spec"]["template"]["spec"]["containers"]
        assert container["image"] == f"fashion-ann:{role}"
        assert ("nvidia.com/gpu" in container["resources"]["limits"]) == (role == "gpu")
    workers = (MANIFESTS[0].parent / "workers.yaml").read_text(encoding="utf-8")
    assert set(re.findall(r"--pool, ([\w-]+),", workers)) == set(POOLS.values())
    (version,) = set(re.findall(r"image: prefecthq/prefect:([\d.]+)-", workers))
    assert version == prefect.__version__
    (dask,) = yaml.safe_load_all((MANIFESTS[0].parent / "dask.yaml").read_text(encoding="utf-8"))
    port = dask["spec"]["scheduler"]["service"]["ports"][0]["port"]
    assert settings["data"]["FASHION_ANN_DASK_ADDRESS"] == f"tcp://{dask['metadata']['name']}-scheduler:{port}"
