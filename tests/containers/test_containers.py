"""Compose on a real engine: the image, a training, doctor, a power cut in mid-training, and a run per container.

The tests run in order: the later ones find the versions of the earlier ones.
"""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from schemas.config import PROJECT_ROOT
from tests.containers.conftest import QUICK, REVISION, Stack, wait_for
from tests.containers.engine import PYTHON_IMAGE

LARGEST_IMAGE = 2_200_000_000  # bytes
DOCKER_TEMPLATE = "deploy/docker/job-template.json"


def _layers(stack: Stack, image: str) -> list[str]:
    layers: list[str] = json.loads(stack.engine.docker("image", "inspect", "--format={{json .RootFS.Layers}}", image))
    return layers


def test_image_is_small_and_cannot_install_packages(stack: Stack) -> None:
    size = int(stack.engine.docker("image", "inspect", "--format={{.Size}}", "fashion-ann:cpu"))
    assert size <= LARGEST_IMAGE
    found = stack.in_worker("sh", "-c", "command -v uv pip git; python -m pip --version 2>/dev/null || echo none")
    assert found == "none\n"


def test_image_has_every_locked_package(stack: Stack) -> None:
    program = "from cli.doctor import check_lock; print(check_lock())"
    assert re.fullmatch(r"\d+ packages match cpu.lock\n", stack.in_worker("python", "-c", program))


def test_changed_code_changes_one_layer(stack: Stack, tmp_path: Path) -> None:
    for name in subprocess.run(["git", "ls-files"], cwd=PROJECT_ROOT, capture_output=True, text=True).stdout.split(
        "\n"
    ):
        if name and not name.startswith(("tests/", "docs/")) and (PROJECT_ROOT / name).is_file():
            target = tmp_path / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(PROJECT_ROOT / name, target)
    with (tmp_path / "cli" / "doctor.py").open("a") as file:
        file.write("\n# changed\n")
    arguments = ("--target=cpu", f"--build-arg=PYTHON_IMAGE={PYTHON_IMAGE}", "--tag=changed", str(tmp_path))
    stack.engine.docker("build", *arguments)
    before, after = _layers(stack, "fashion-ann:cpu"), _layers(stack, "changed")
    assert before[:-1] == after[:-1]
    assert before[-1] != after[-1]


def test_trains_by_deployment(stack: Stack) -> None:
    run = stack.end_of(stack.start("train-fashion-mnist/on-demand", **QUICK))
    assert run.state is not None
    assert run.state.is_completed(), run.state
    manifest = stack.in_worker("cat", "/artifacts/models/fashion-mnist/versions/0001/manifest.json")
    assert json.loads(manifest)["code"]["revision"] == REVISION


def test_logs_have_a_home_and_links_that_a_browser_can_open(stack: Stack) -> None:
    logs = stack.compose("logs", "--no-color", "--no-log-prefix", "deploy", "server", "worker-cpu")
    assert f"http://127.0.0.1:{stack.port}/runs/flow-run/" in logs
    assert "http://server:4200/runs" not in logs
    # Prefect warns in each process that cannot create its home.
    assert re.findall(r"(?im)^.*prefect home.*$|^.*permission denied.*$", logs) == []


def test_server_is_on_its_port_and_open_to_its_own_pages_only(stack: Stack) -> None:
    address = f"http://127.0.0.1:{stack.port}"
    for origin, allowed in ((address, address), ("http://127.0.0.1:1", None)):
        answer = httpx.get(f"{address}/api/health", headers={"Origin": origin})
        assert answer.headers.get("access-control-allow-origin") == allowed
    assert httpx.get(f"{address}/ui-settings").json()["api_url"] == f"{address}/api"


def test_doctor_accepts_a_stack_without_a_gpu(stack: Stack) -> None:
    checks = json.loads(stack.in_worker("fashion-ann", "doctor", "--json"))  # status 0
    assert [check["name"] for check in checks if check["ok"] and check["cure"]] == ["pools"]


def test_everything_comes_back_after_a_power_cut(stack: Stack) -> None:
    long = QUICK | {"training": {"epochs": 300, "validation_size": 100}}
    killed = stack.start("train-fashion-mnist/on-demand", **long)
    wait_for(lambda: "npz" in stack.in_worker("sh", "-c", "ls /artifacts/checkpoints || true"))
    stack.engine.cut_power()
    stack.engine.start()

    def answers() -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{stack.port}/api/ready", timeout=5).is_success
        except httpx.TransportError:
            return False

    wait_for(answers)
    next_run = stack.end_of(stack.start("train-fashion-mnist/on-demand", **long))
    assert next_run.state is not None
    assert next_run.state.is_completed(), next_run.state
    assert "resuming after epoch" in stack.compose("logs", "--no-color", "worker-cpu")
    crashed = stack.end_of(killed)
    assert crashed.state is not None
    assert crashed.state.is_crashed(), crashed.state
    # The one-shot container did not run again, and nothing depends on it.
    assert stack.compose("ps", "--services", "--status=exited").split() == ["deploy", "settings"]


@pytest.fixture
def docker_worker(stack: Stack) -> Iterator[None]:
    """Move the deployments to a work pool of type docker, and serve it from this host until the end of the test."""
    pool = {"FASHION_ANN_CPU_POOL": "docker", "FASHION_ANN_CPU_POOL_TYPE": "docker"}
    stack.compose("run", "--rm", "--no-deps", "deploy", FASHION_ANN_CPU_POOL_TEMPLATE=DOCKER_TEMPLATE, **pool)
    with stack.worker("docker", "docker"):
        yield


@pytest.mark.usefixtures("docker_worker")
def test_docker_pool_runs_each_flow_run_in_a_container(stack: Stack) -> None:
    run = stack.start("train-fashion-mnist/on-demand", **QUICK | {"training": {**QUICK["training"], "seed": 1}})
    container = wait_for(
        lambda: stack.engine.docker("ps", "--quiet", "--filter", f"label=io.prefect.flow-run-id={run.id}")
    )
    settings = json.loads(stack.engine.docker("inspect", container.strip()))[0]["HostConfig"]
    assert (settings["ReadonlyRootfs"], settings["CapDrop"], settings["Privileged"]) == (True, ["ALL"], False)
    ended = stack.end_of(run)
    assert ended.state is not None
    assert ended.state.is_completed(), ended.state
    # In the same store, and no container is left.
    stack.in_worker("test", "-f", "/artifacts/models/fashion-mnist/versions/0003/manifest.json")
    wait_for(lambda: not stack.engine.docker("ps", "--all", "--quiet", "--filter", "label=io.prefect.flow-run-id"))
