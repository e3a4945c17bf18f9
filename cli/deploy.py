"""Put what prefect.yaml says on the Prefect API that is configured: pools, deployments, automations."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from schemas.config import PROJECT_ROOT
from schemas.errors import NotDeployed

PREFECT_FILE = PROJECT_ROOT / "prefect.yaml"
_SECONDS_TO_DEPLOY = 300


def enter_checkout() -> dict[str, str]:
    """The pull step of prefect.yaml: go to the checkout that this package was installed from."""
    os.chdir(PROJECT_ROOT)
    return {"directory": str(PROJECT_ROOT)}


def deploy_all(prefect_file: Path = PREFECT_FILE) -> None:
    """Create or update work pools, deployments and automations; doing it again changes nothing.

    On the API of PREFECT_API_URL and PREFECT_API_AUTH_STRING, or of the profile. Raises `NotDeployed`.
    """
    from prefect.settings import get_current_settings

    from cli.automations import apply_automations

    url = get_current_settings().api.url
    if url is None:
        raise NotDeployed(
            "A running Prefect server is needed to deploy to, and none is configured. Set PREFECT_API_URL (`make up` "
            "starts one and says its address)."
        )
    for pool in work_pools(prefect_file):
        _create_pool(pool)
    _deploy(prefect_file, url)
    apply_automations()


def work_pools(prefect_file: Path = PREFECT_FILE) -> list[dict[str, Any]]:
    """The work pools that prefect.yaml defines: name, type, description."""
    import yaml

    defined: list[dict[str, Any]] = yaml.safe_load(prefect_file.read_bytes())["definitions"]["work_pools"]
    return defined


def pool_names() -> tuple[str, ...]:
    """The names of the project's work pools, in the order of prefect.yaml."""
    return tuple(pool["name"] for pool in work_pools())


def _create_pool(pool: dict[str, Any]) -> None:
    """Without touching one that is there: it may be paused, or have a limit, for a reason."""
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
            if (found := client.read_work_pool(pool["name"]).type) != pool["type"]:
                raise NotDeployed(
                    f"The work pool {pool['name']} is there already and of type {found}, expected {pool['type']}: it "
                    "is another project's. Use a Prefect server, or workspace, of its own for this one."
                ) from error


def _deploy(prefect_file: Path, url: str) -> None:
    # A process of its own, because the command changes the working directory and sys.path of the one that runs it.
    done = subprocess.run(  # noqa: S603  # our own interpreter, fixed arguments
        [
            *(sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"),
            *("--prefect-file", str(prefect_file)),
        ],
        # From here Prefect reads pyproject.toml, and finds the entrypoints.
        cwd=PROJECT_ROOT,
        env={**os.environ, "PREFECT_API_URL": url, "NO_COLOR": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=_SECONDS_TO_DEPLOY,
    )
    if done.returncode != 0:
        said = " ".join(done.stdout.split())[-800:]
        raise NotDeployed(f"`prefect deploy --all` ended with status {done.returncode} on {url}. It said: {said}")
