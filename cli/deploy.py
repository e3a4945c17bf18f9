"""Create the work pools, deployments and automations of the project on the configured Prefect API."""

import contextlib
import os
import subprocess
import sys
from typing import Any

from cli.server_process import last_words
from schemas.config import PROJECT_ROOT
from schemas.errors import NotDeployed

_SECONDS_TO_DEPLOY = 300


def enter_checkout() -> dict[str, str]:
    """Change to the checkout that this package was installed from: the pull step of prefect.yaml."""
    os.chdir(PROJECT_ROOT)
    return {"directory": str(PROJECT_ROOT)}


def deploy_all() -> None:
    """Create or update work pools, deployments and automations. Repeating it changes nothing.

    The API is that of PREFECT_API_URL and PREFECT_API_AUTH_STRING, or of the profile. Raises `NotDeployed`.
    """
    from prefect.settings import get_current_settings

    from cli.automations import apply_automations

    url = get_current_settings().api.url
    if url is None:
        raise NotDeployed(
            "No Prefect API is configured, and `deploy` needs a running server. Set PREFECT_API_URL. `make up` starts "
            "a server and prints its address."
        )
    for pool in _work_pools():
        create_pool(pool)
    create_queues()
    # In a subprocess, because the command changes the working directory and sys.path of its process.
    done = subprocess.run(
        [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"],
        cwd=PROJECT_ROOT,  # contains prefect.yaml, pyproject.toml and the entrypoints
        env={**os.environ, "PREFECT_API_URL": url, "NO_COLOR": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=_SECONDS_TO_DEPLOY,
    )
    if done.returncode:
        raise NotDeployed(
            f"`prefect deploy --all` ended with status {done.returncode} on {url}. Its last output: "
            f"{last_words(done.stdout)}"
        )
    apply_automations()


def _definitions() -> dict[str, Any]:
    """Return the content of prefect.yaml."""
    import yaml

    content: dict[str, Any] = yaml.safe_load((PROJECT_ROOT / "prefect.yaml").read_bytes())
    return content


def _work_pools() -> list[dict[str, Any]]:
    """Return the work pools that prefect.yaml defines: name, type, description."""
    pools: list[dict[str, Any]] = _definitions()["definitions"]["work_pools"]
    return pools


def create_queues() -> None:
    """Create the work queues of prefect.yaml, or keep existing ones as they are: an operator may have changed them."""
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectAlreadyExists

    with get_client(sync_client=True) as client:
        for queue in _definitions()["definitions"]["work_queues"]:
            with contextlib.suppress(ObjectAlreadyExists):
                client.create_work_queue(**queue)


def pool_names() -> tuple[str, ...]:
    """Return the names of the project's work pools, in the order of prefect.yaml."""
    return tuple(pool["name"] for pool in _work_pools())


def create_pool(pool: dict[str, Any]) -> None:
    """Create a work pool, or keep an existing one as it is: an operator may have paused or limited it."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import ObjectAlreadyExists
    from prefect.workers.process import ProcessWorker

    if pool["type"] != ProcessWorker.type:
        raise NotDeployed(f"prefect.yaml: work pool {pool['name']} is of type {pool['type']}, expected process.")
    with get_client(sync_client=True) as client:
        try:
            client.create_work_pool(
                WorkPoolCreate(**pool, base_job_template=ProcessWorker.get_default_base_job_template())
            )
        except ObjectAlreadyExists as error:
            if (existing := client.read_work_pool(pool["name"]).type) != pool["type"]:
                raise NotDeployed(
                    f"A work pool {pool['name']} of type {existing} already exists, expected type {pool['type']}. Use "
                    "a separate Prefect server or workspace for this project."
                ) from error
