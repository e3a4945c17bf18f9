"""A copy of the checkout with every checklist of docs/extending.md runs: the pipeline, gc and deploy."""

import json
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client

from schemas.layout import METRICS_NAME, REPORT_NAME, short_key
from tasks.registry.store import ModelStore
from tests.extending import apply, copy_checkout, run
from tests.flows.test_command import FLAGS
from tests.flows.test_deployments import remove_everything
from tests.sample import SAMPLE
from tests.test_extending import CHECKLISTS

PYTHON = ".venv/bin/python"


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = copy_checkout(tmp_path_factory.mktemp("extended") / "checkout")
    for title in CHECKLISTS:
        apply(title, folder)
    return folder


def test_a_run_has_every_addition(server: str, checkout: Path, tmp_path: Path) -> None:
    paths = ("--data-dir", str(SAMPLE), "--artifacts-dir", str(tmp_path))
    added = ("--strict", "--minimum-mean-recall", "0.01")
    shown = run(
        checkout, *(PYTHON, "-m", "cli.main", "train", *paths, "--epochs", "1", *FLAGS, *added), PREFECT_API_URL=server
    )
    assert "average: 10 mean images" in shown
    version = ModelStore.of(tmp_path, "fashion-mnist").version(1)
    stages = [entry.stage for entry in version.manifest.lineage]
    assert stages[stages.index("prepare") :] == ["prepare", "average", "train", "evaluate"]
    assert version.manifest.promotion["minimum_mean_recall"] == 0.01
    content = version.manifest.as_json()
    assert "contrast" in {check["check"] for check in content["data"]["train"]["checks"]}
    balanced = json.loads(version.read(METRICS_NAME))["balanced_accuracy"]
    report = version.read(REPORT_NAME).decode()
    for words in (
        "the mean image of each class",
        "contrast",
        "minimum_mean_recall",
        f"recall of these classes: {balanced:.4f}",
    ):
        assert words in report

    # gc keeps the output that the version was built from, and deletes another one.
    stray = (
        "from pathlib import Path; from tasks.runtime.stage_cache import run_stage; "
        "from tasks.runtime.stages import AVERAGE; "
        f"run_stage(AVERAGE.outputs(Path({str(tmp_path)!r})), AVERAGE, {{}}, lambda folder: {{'classes': 0}})"
    )
    run(checkout, PYTHON, "-c", stray)
    outputs = tmp_path / "averages"
    assert len([path for path in outputs.iterdir() if path.is_dir()]) == 2
    run(checkout, PYTHON, "-m", "cli.main", "gc", "--artifacts-dir", str(tmp_path))
    kept = short_key(version.manifest.stage("average").key)
    assert {path.name for path in outputs.iterdir() if path.is_dir()} == {kept}


def test_an_added_deployment_is_deployed(server: str, checkout: Path) -> None:
    deploy = (PYTHON, "-m", "cli.main", "deploy", "--json")
    try:
        run(checkout, *deploy, PREFECT_API_URL=server)
        with get_client(sync_client=True) as client:
            deployment = client.read_deployment_by_name("train-fashion-mnist/digits-weekly")
        again = json.loads(run(checkout, *deploy, PREFECT_API_URL=server))
    finally:
        remove_everything()
    assert deployment.parameters == {"dataset": "digits", "fetch": True}
    assert [schedule.schedule.cron for schedule in deployment.schedules] == ["0 4 * * 0"]
    assert {"strict", "promotion"} <= deployment.parameter_openapi_schema["properties"].keys()
    assert (again["changed"], again["kept"]) == ([], [])
