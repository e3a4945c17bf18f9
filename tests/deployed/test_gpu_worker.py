"""train_on=gpu through deployments, with workers that share only the server and the artifacts."""

from collections.abc import Iterator
from typing import Any

import pytest
from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId

from tests.deployed.conftest import Deployed

# Two epochs on a thousand images stay below the default quality floor.
QUICK = {
    "train_on": "gpu",
    "training": {"epochs": 2, "validation_size": 100},
    "promotion": {"minimum_accuracy": 0, "minimum_recall": 0},
}


def _quick(seed: int) -> dict[str, Any]:
    return {**QUICK, "training": {"epochs": 2, "validation_size": 100, "seed": seed}}


@pytest.fixture(scope="module")
def gpu_worker(deployed: Deployed) -> Iterator[None]:
    with deployed.worker("gpu", "gpu-worker"):
        yield


def test_rejects_a_wrong_parameter_without_a_run(deployed: Deployed) -> None:
    done = deployed.command(
        *("prefect", "deployment", "run", "train-fashion-mnist/on-demand", "-p", 'training={"epoch": 3}')
    )
    assert done.returncode == 1
    assert "epoch" in done.stdout + done.stderr
    assert deployed.runs_of("train-fashion-mnist/on-demand") == []


def test_no_gpu_worker_fails_the_command_and_the_run(deployed: Deployed) -> None:
    done = deployed.command(
        *("prefect", "deployment", "run", "train-fashion-mnist/on-demand", "--watch"),
        *("-p", "train_on=gpu", "-p", "gpu_worker_seconds=3"),
    )
    assert done.returncode == 1
    (run,) = deployed.runs_of("train-fashion-mnist/on-demand")
    assert run.state is not None
    assert run.state.is_failed()
    assert "No worker picked up the training" in str(run.state.message)
    assert [child.state_name for child in deployed.children(run)] == ["Cancelled"]


def test_run_fails_with_the_message_of_the_worker(deployed: Deployed) -> None:
    with deployed.worker("gpu", "broken-worker", KERAS_BACKEND="abacus"):
        run = deployed.run("train-fashion-mnist/on-demand", **_quick(1))
    (child,) = deployed.children(run)
    assert (run.state_name, child.state_name) == ("Failed", "Failed")
    assert child.state is not None
    assert "abacus" in str(child.state.message)
    assert str(child.state.message) in str(run.state.message if run.state else None)


@pytest.mark.usefixtures("gpu_worker")
def test_manifest_names_the_gpu_worker_and_its_run(deployed: Deployed) -> None:
    run = deployed.run("train-fashion-mnist/on-demand", **QUICK)
    assert run.state_name == "Completed", run.state
    (child,) = deployed.children(run)
    assert child.state_name == "Completed"
    (manifest,) = deployed.versions_of(run)
    trained_by = manifest["trained_by"]
    assert (trained_by["flow_run_id"], trained_by["worker"]) == (str(child.id), "gpu-worker")
    # The log lines of stages reach the run's log, also from a worker.
    only = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[child.id]))
    logged = [line.message for line in deployed.client.read_logs(only, limit=200)]
    assert any(line.startswith("epoch 2/2") for line in logged)


@pytest.mark.usefixtures("gpu_worker")
def test_rejected_run_notifies_and_its_retry_does_not_train(
    deployed: Deployed, webhook: tuple[str, list[dict[str, str]]]
) -> None:
    parameters = {**_quick(2), "promotion": {"minimum_accuracy": 1}}
    run = deployed.run("train-fashion-mnist/on-demand", **parameters)
    assert run.state_name == "Failed"
    assert "CandidateRejected" in str(run.state.message if run.state else None)

    def notifications() -> list[dict[str, str]]:
        return [message for message in webhook[1] if run.name in message["body"]]

    deployed.wait_for(notifications)
    assert notifications()[0]["subject"] == "train-fashion-mnist: version rejected"
    assert "expected >= 1" in notifications()[0]["body"]

    assert deployed.command("prefect", "flow-run", "retry", str(run.id)).returncode == 0
    deployed.wait_for(lambda: deployed.client.read_flow_run(run.id).run_count == 2)
    again = deployed.end_of(run.id)
    assert again.state_name == "Failed"
    assert len(deployed.children(run)) == 1
    assert len(notifications()) == 1  # none for fit-model, and none within an hour for the same message


@pytest.mark.usefixtures("gpu_worker")
def test_two_trainings_run_one_after_the_other(deployed: Deployed) -> None:
    parameters = [{**_quick(seed), "gpu_worker_seconds": 10} for seed in (3, 4)]
    started = [deployed.start("train-fashion-mnist/on-demand", **each) for each in parameters]
    runs = [deployed.end_of(each) for each in started]
    assert [run.state_name for run in runs] == ["Completed", "Completed"], [run.state for run in runs]
    children = [deployed.children(run)[0] for run in runs]
    first, second = sorted(children, key=lambda child: child.start_time)
    assert first.end_time <= second.start_time
