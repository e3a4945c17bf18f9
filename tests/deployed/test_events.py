"""Schedules, events and concurrency limits, with a real server and a real worker."""

import json
import shutil
from typing import Any
from uuid import uuid4

from prefect.client.schemas.objects import FlowRun

from tasks.registry.store import ModelStore
from tasks.registry.version_events import unsent
from tasks.runtime.prefect_events import send_events
from tests.deployed.conftest import Deployed
from tests.field_faults import field_fault
from tests.sample import SAMPLE

NIGHTLY, ON_NEW_DATA = "train-fashion-mnist/nightly", "train-fashion-mnist/on-new-data"
QUICK = {
    "training": {"epochs": 1, "validation_size": 100},
    "promotion": {"minimum_accuracy": 0, "minimum_recall": 0},
}


def emit(deployed: Deployed, payload: dict[str, Any], resource: str = "fashion-ann.data.fashion-mnist") -> None:
    """Emit the event as docs/events.md describes for an uploader."""
    done = deployed.command(
        *("prefect", "event", "emit", "fashion-ann.data.updated"),
        *("--resource-id", resource, "--payload", json.dumps(payload)),
    )
    assert done.returncode == 0, done.stderr


def wait_for_final_runs(deployed: Deployed, name: str, number: int) -> list[FlowRun]:
    def ended() -> list[FlowRun] | None:
        runs = deployed.runs_of(name)
        done = [run for run in runs if run.state is not None and run.state.is_final()]
        return runs if len(done) == number else None

    return list(deployed.wait_for(ended))


def test_events_during_a_run_are_queued(deployed: Deployed) -> None:
    half = deployed.home / "half"
    half.mkdir()
    shutil.copy(SAMPLE / "fashion-mnist_train.csv.gz", half)
    emit(deployed, {"digest": "a" * 64})
    emit(deployed, {"digest": "b" * 64})
    emit(deployed, {"data_dir": str(half)})  # a folder without a digest
    runs = {run.parameters["data_digest"]: run for run in wait_for_final_runs(deployed, ON_NEW_DATA, 3)}
    assert {digest: run.state_name for digest, run in runs.items()} == {
        "a" * 64: "Superseded",
        "b" * 64: "Superseded",
        None: "Failed",
    }
    assert str(half) in str(runs[None].state)


def test_watch_announces_new_data_and_a_run_trains_on_it(deployed: Deployed) -> None:
    watch = deployed.run("watch-data/scheduled")
    assert watch.state_name == "Completed", watch.state
    runs = wait_for_final_runs(deployed, ON_NEW_DATA, 4)
    run = max(runs, key=lambda run: run.created)
    announced = json.loads(next((deployed.artifacts / "announced").iterdir()).read_bytes())
    assert run.parameters["data_digest"] == announced["digest"]
    # The default recipe may fail the quality floor on the sample.
    assert run.state_name in ("Completed", "Failed")
    assert len(deployed.versions_of(run)) == 1
    assert deployed.run("watch-data/scheduled").state_name == "Nothing new"


def test_nightly_runs_on_the_same_data_add_one_version(deployed: Deployed) -> None:
    first = deployed.start(NIGHTLY, **QUICK)
    deployed.wait_for(lambda: deployed.client.read_flow_run(first).state_name == "Running")
    overlapping = deployed.run(NIGHTLY, **QUICK)
    assert overlapping.state_name == "Cancelled"
    assert deployed.end_of(first).state_name == "Completed"
    versions = len(list((deployed.artifacts / "models/fashion-mnist/versions").iterdir()))
    again = deployed.run(NIGHTLY, **QUICK)
    assert again.state_name == "Nothing new"
    assert len(list((deployed.artifacts / "models/fashion-mnist/versions").iterdir())) == versions


@field_fault(
    "operator's decision overwritten",
    "A better version is trained, and the promotion policy is `ask`",
    "It waits, one message names its report, and the deployment `promote-version` moves the champion",
)
def test_waiting_version_is_notified_and_promoted(deployed: Deployed, webhook: tuple[str, Any]) -> None:
    artifacts = deployed.home / "asked"
    store = ModelStore.of(artifacts, "fashion-mnist")

    def messages(words: str) -> list[dict[str, str]]:
        return [message for message in webhook[1] if words in message["body"]]

    promotion = {**QUICK["promotion"], "policy": "ask"}
    run = deployed.run(
        "train-fashion-mnist/on-demand", **{**QUICK, "promotion": promotion}, artifacts_dir=str(artifacts)
    )
    assert (run.state_name, store.aliases.champion()) == ("Waiting for approval", None)
    report = str(store.folder(1) / "report.html")
    deployed.wait_for(lambda: messages(report))
    assert messages(report)[0]["subject"] == "fashion-mnist: version 1 waits for approval"
    assert "fashion-ann promote 1" in messages(report)[0]["body"]

    # As after a kill, with another id: the server drops a known id only for minutes.
    store.aliases.state_path.unlink()
    send_events([{**event, "id": str(uuid4())} for event in unsent(store)])
    promoted = deployed.run("promote-version/by-hand", version=1, reason="approved", artifacts_dir=str(artifacts))
    assert promoted.state_name == "Completed", promoted.state
    assert [(move.to, move.reason) for move in store.aliases.read()] == [(1, "approved")]

    (store.folder(1) / "metrics.json").write_text("{}")
    verified = deployed.run("verify-store/nightly", artifacts_dir=str(artifacts))
    assert verified.state_name == "Failed"
    deployed.wait_for(lambda: messages(verified.name))
    assert "metrics.json" in messages(verified.name)[0]["body"]
    assert len(messages(report)) == 1
