"""A week of unattended operation in minutes: schedules run by the minute, and each scheduled night is a day.

The data changes twice, the worker is away for a day, the server restarts, the disk is full once, and an operator pauses
a schedule. Everything else is what a deployment on sqlite does by itself.
"""

import gzip
import json
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from prefect.client.schemas.actions import DeploymentUpdate
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.schedules import CronSchedule

from tests.deployed.conftest import Deployed, deployed_at
from tests.faulty_files import fill_disk
from tests.field_faults import field_fault
from tests.sample import SAMPLE

NIGHTLY, ON_NEW_DATA, WATCH = "train-fashion-mnist/nightly", "train-fashion-mnist/on-new-data", "watch-data/scheduled"
EVERY_MINUTE = CronSchedule(cron="* * * * *", timezone="UTC")
QUICK = {
    "training": {"epochs": 1, "validation_size": 100},
    "promotion": {"minimum_accuracy": 0, "minimum_recall": 0},
}


class Week:
    """A deployment with its own data folder, and schedules by the minute."""

    def __init__(self, deployed: Deployed, data: Path, messages: list[dict[str, str]]) -> None:
        self.deployed = deployed
        self.data = data
        self._received = messages
        self._earlier = len(messages)  # other tests share the webhook

    def schedule(self, name: str) -> None:
        """Edit the schedule of a deployment, as an operator does in the UI."""
        deployment = self.deployed.client.read_deployment_by_name(name)
        for schedule in deployment.schedules:
            self.deployed.client.update_deployment_schedule(
                deployment.id, schedule.id, active=True, schedule=EVERY_MINUTE
            )

    def night(self) -> FlowRun:
        """Wait for the end of the next scheduled `nightly` run. One that starts during another one is cancelled."""
        now = datetime.now(UTC)

        def ended() -> FlowRun | None:
            for run in self.deployed.runs_of(NIGHTLY):
                scheduled = run.expected_start_time is not None and run.expected_start_time > now
                if scheduled and run.state is not None and run.state.is_final() and not run.state.is_cancelled():
                    return run
            return None

        return self.deployed.wait_for(ended)  # type: ignore[no-any-return]

    def change_data(self, row: int) -> None:
        """Replace the train split by one without a data row, in one step."""
        csv = self.data / "fashion-mnist_train.csv.gz"
        lines = gzip.decompress(csv.read_bytes()).splitlines(keepends=True)
        del lines[row]
        changed = csv.with_name("upload")
        changed.write_bytes(gzip.compress(b"".join(lines)))
        changed.replace(csv)

    def versions(self) -> list[str]:
        """Return the digest of the train split of each version."""
        paths = sorted(self.deployed.artifacts.glob("models/fashion-mnist/versions/*/manifest.json"))
        return [json.loads(path.read_bytes())["data"]["train"]["csv_sha256"] for path in paths]

    def messages(self) -> list[str]:
        return [message["subject"] for message in self._received[self._earlier :]]


@pytest.fixture
def week(tmp_path: Path, webhook: tuple[str, list[dict[str, str]]]) -> Iterator[Week]:
    data, artifacts = tmp_path / "data", tmp_path / "artifacts"
    shutil.copytree(SAMPLE, data, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    artifacts.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96m", "tmpfs", artifacts], check=True)
    try:
        with deployed_at(tmp_path, webhook[0], FASHION_ANN_DATA_DIR=str(data)) as deployed:
            for name in (NIGHTLY, ON_NEW_DATA):
                deployment = deployed.client.read_deployment_by_name(name)
                deployed.client.update_deployment(deployment.id, DeploymentUpdate(parameters=QUICK))
            yield Week(deployed, data, webhook[1])
    finally:
        subprocess.run(["umount", "--lazy", artifacts], check=True)


@field_fault(
    "growth without bound",
    "A week of scheduled runs: two data changes, an absent worker, a restarted server, a full disk",
    "One version per change of data, one message per incident, bounded artifacts; a paused schedule stays paused",
)
def test_a_week_without_an_operator(week: Week) -> None:
    deployed = week.deployed
    for name in (NIGHTLY, WATCH):
        week.schedule(name)

    monday = week.night()
    assert monday.state_name in ("Completed", "Nothing new"), monday.state  # on-new-data may have been faster
    assert len(week.versions()) == 1
    assert week.night().state_name == "Nothing new"

    week.change_data(row=1)  # Wednesday
    week.night()
    deployed.wait_for(lambda: len(week.versions()) == 2)

    deployed.cpu_worker.kill()  # Thursday: no worker
    deployed.cpu_worker.wait()
    deployed.wait_for(lambda: any(run.state_name == "Late" for run in deployed.runs_of(NIGHTLY)))
    deployed.server.kill()
    deployed.server.wait()
    deployed.start_server()
    deployed.start_worker("cpu", "cpu-worker")

    assert week.night().state_name == "Nothing new"  # Friday

    assert week.messages() == []
    filler = fill_disk(deployed.artifacts)  # Saturday
    week.change_data(row=2)
    assert week.night().state_name == "Failed"
    deployed.wait_for(lambda: "train-fashion-mnist: failed" in week.messages())
    filler.unlink()

    week.night()  # Sunday
    deployed.wait_for(lambda: len(week.versions()) == 3)
    assert week.night().state_name == "Nothing new"

    assert max(Counter(week.versions()).values()) == 1
    assert max(Counter(week.messages()).values()) == 1, week.messages()
    assert set(week.messages()) <= {"train-fashion-mnist: failed", "watch-data: failed"}
    collected = deployed.run("collect-garbage/weekly", keep=1)
    assert collected.state_name == "Completed", collected.state
    assert len(week.versions()) == 2  # the champion and the one before it
    paused = deployed.client.read_deployment_by_name(WATCH)
    deployed.client.update_deployment_schedule(paused.id, paused.schedules[0].id, active=False)
    assert deployed.command("cli.main", "deploy").returncode == 0
    assert [schedule.active for schedule in deployed.client.read_deployment_by_name(WATCH).schedules] == [False]
    (nightly,) = deployed.client.read_deployment_by_name(NIGHTLY).schedules
    assert nightly.schedule == EVERY_MINUTE
