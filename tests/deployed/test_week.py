"""A week of unattended operation in minutes: schedules run by the minute, and each run of `nightly` is a night.

The data changes twice, the worker is away for a night, the server restarts, the disk is full once, and an operator
pauses a schedule. Everything else is what a deployment does by itself.
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
from prefect.client.schemas.objects import DeploymentSchedule, FlowRun
from prefect.client.schemas.schedules import CronSchedule

from tests.deployed.conftest import Deployed, deployed_at
from tests.deployed.postgres import Postgres
from tests.deployed.test_events import NIGHTLY, ON_NEW_DATA, QUICK
from tests.faulty_files import fill_disk
from tests.field_faults import field_fault
from tests.sample import SAMPLE

FLOW = "train-fashion-mnist"
WATCH, VERIFY, COLLECT = "watch-data/scheduled", "verify-store/nightly", "collect-garbage/weekly"
EVERY_MINUTE = CronSchedule(cron="* * * * *", timezone="UTC")


class Week:
    """A deployment with its own data folder, and schedules by the minute."""

    def __init__(self, deployed: Deployed, data: Path, messages: list[dict[str, str]]) -> None:
        self.deployed = deployed
        self.data = data
        self._received = messages
        self._earlier = len(messages)  # other tests share the webhook

    def schedule(self, name: str, *, active: bool) -> None:
        """Edit the schedule of a deployment, as an operator does in the UI."""
        deployment = self.deployed.client.read_deployment_by_name(name)
        (schedule,) = deployment.schedules
        self.deployed.client.update_deployment_schedule(
            deployment.id, schedule.id, active=active, schedule=EVERY_MINUTE
        )

    def schedules(self, name: str) -> list[DeploymentSchedule]:
        return self.deployed.client.read_deployment_by_name(name).schedules

    def active_runs(self) -> list[FlowRun]:
        runs = self.deployed.client.read_flow_runs()
        return [run for run in runs if run.state_name != "Scheduled" and run.state and not run.state.is_final()]

    def night(self) -> FlowRun:
        """Wait for the end of the next scheduled run of `nightly`.

        On a slow machine a run may outlast its night. The next one then ends as Cancelled, and does not count.
        """
        now = datetime.now(UTC)

        def ended() -> FlowRun | None:
            for run in self.deployed.runs_of(NIGHTLY):
                scheduled = run.expected_start_time is not None and run.expected_start_time > now
                if scheduled and run.state is not None and run.state.is_final() and not run.state.is_cancelled():
                    return run
            return None

        return self.deployed.wait_for(ended)  # type: ignore[no-any-return]

    def due_run(self) -> FlowRun | None:
        """Return a run of `nightly` that no worker has picked up in its night."""
        for run in self.deployed.runs_of(NIGHTLY):
            due = run.expected_start_time is not None and run.expected_start_time < datetime.now(UTC)
            if due and run.state is not None and run.state.is_scheduled():
                return run
        return None

    def change_data(self, row: int) -> None:
        """Replace the train split by one in which a row has changed places with the first, in one step."""
        csv = self.data / "fashion-mnist_train.csv.gz"
        lines = gzip.decompress(csv.read_bytes()).splitlines(keepends=True)
        lines[1], lines[row] = lines[row], lines[1]
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
def week(tmp_path: Path, postgres: Postgres, webhook: tuple[str, list[dict[str, str]]]) -> Iterator[Week]:
    """Return a deployment with a small disk for its artifacts.

    On Postgres, because Prefect's server on sqlite loses events on a busy machine, and with them messages.
    """
    data, artifacts = tmp_path / "data", tmp_path / "artifacts"
    shutil.copytree(SAMPLE, data, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    artifacts.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=96m", "tmpfs", artifacts], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"mounting a tmpfs needs root: {mounted.stderr.strip()}")
    try:
        with deployed_at(
            tmp_path, webhook[0], postgres.new_database("week"), FASHION_ANN_DATA_DIR=str(data)
        ) as deployed:
            for name in (NIGHTLY, ON_NEW_DATA):
                deployment = deployed.client.read_deployment_by_name(name)
                deployed.client.update_deployment(deployment.id, DeploymentUpdate(parameters=QUICK))
            yield Week(deployed, data, webhook[1])
    finally:
        subprocess.run(["umount", "--lazy", artifacts], check=True)


@field_fault(
    "growth without bound",
    "A week of scheduled runs: data changes twice, worker and server stop once, the disk is full once",
    "One version per change of data, one message per failing flow, a bounded store; a paused schedule stays paused",
)
def test_a_week_without_an_operator(week: Week) -> None:
    deployed = week.deployed
    week.schedule(VERIFY, active=False)  # the operator's only decision
    for name in (NIGHTLY, WATCH):
        week.schedule(name, active=True)

    assert week.night().state_name in ("Completed", "Nothing new")  # on-new-data may have been faster
    deployed.wait_for(lambda: len(week.versions()) == 1)

    week.change_data(row=2)
    week.night()
    deployed.wait_for(lambda: len(week.versions()) == 2)

    deployed.cpu_worker.kill()
    deployed.cpu_worker.wait()
    missed: FlowRun = deployed.wait_for(week.due_run)
    deployed.server.kill()
    deployed.server.wait()
    deployed.start_server()
    deployed.start_worker("cpu", "cpu-worker")
    # Cancelled if it was still late when the run of the next night started.
    assert deployed.end_of(missed.id).state_name in ("Nothing new", "Cancelled")

    filler = fill_disk(deployed.artifacts)
    week.change_data(row=3)
    nights = [week.night(), week.night()]
    assert [run.state_name for run in nights] == ["Failed", "Failed"], [run.state for run in nights]
    deployed.wait_for(lambda: f"{FLOW}: failed" in week.messages())
    filler.unlink()

    week.night()
    deployed.wait_for(lambda: len(week.versions()) == 3)
    for name in (NIGHTLY, WATCH):
        week.schedule(name, active=False)
    deployed.wait_for(lambda: not week.active_runs())
    assert max(Counter(week.versions()).values()) == 1
    assert max(Counter(week.messages()).values()) == 1, week.messages()
    # A run that was active when the worker was killed is marked Crashed.
    expected = {f"{flow}: {end}" for flow in (FLOW, "watch-data") for end in ("failed", "crashed")}
    assert set(week.messages()) <= expected

    collected = deployed.run(COLLECT, keep=1)
    assert collected.state_name == "Completed", collected.state
    assert len(week.versions()) < 3
    assert len(list(deployed.artifacts.glob("trained/[!.]*"))) == len(week.versions())
    assert list(deployed.artifacts.rglob("*.tmp")) == []

    assert deployed.command("cli.main", "deploy").returncode == 0
    assert [schedule.active for schedule in week.schedules(VERIFY)] == [False]
    assert [run for run in deployed.runs_of(VERIFY) if run.start_time is not None] == []
    assert [schedule.schedule for schedule in week.schedules(NIGHTLY)] == [EVERY_MINUTE]
