"""`fashion-ann tune`: a search that is killed and continued, and the flow that it runs."""

import json
import os
import signal
from pathlib import Path

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowFilter

from cli.arguments import read_config
from cli.main import command_parser
from schemas.config import TrainingConfig
from tests.flows.conftest import Command
from tests.flows.test_command import kill_when, supply, wait_for

FLAGS = ("--epochs", "6", "--dropout", "0.1", "--batch-size", "64", "--parallel", "2")


def test_a_killed_study_continues_without_the_test_split(command: Command, tmp_path: Path) -> None:
    artifacts, data = tmp_path / "artifacts", supply(tmp_path / "data")
    (data / "fashion-mnist_test.csv").unlink()
    os.mkfifo(data / "fashion-mnist_test.csv")  # opening it would block
    flags = ("tune", "--trials", "4", "--data-dir", str(data), *FLAGS)
    kill_when(command.start(*flags), artifacts, "checkpoints/*.npz")
    unfinished = {path.stem for path in artifacts.glob("checkpoints/[!.]*.npz")}
    done = command.run(*flags, "--json")
    assert done.returncode == 0, done.stderr
    tuned = json.loads(done.stdout)
    assert (tuned["dataset"], tuned["finished"]) == ("fashion-mnist", 4)
    # Trials that were killed after an epoch were finished.
    assert {path.name for path in artifacts.glob("trained/[!.]*")} >= {key[:16] for key in unfinished}
    assert not (artifacts / "models").exists()
    recipe = Path(tuned["recipe"])
    options = command_parser().parse_args(["train", "--config", str(recipe)])
    read = read_config(TrainingConfig, options, recipe)
    assert (read.epochs, read.dropout, read.batch_size, read.validation_size) == (6, 0.1, 64, 600)
    page = Path(tuned["page"]).read_text(encoding="utf-8")
    assert page.count('<tr><th scope="row">') == 4
    assert f"{tuned['val_accuracy']:.4f}" in page

    # The same command trains nothing.
    written = [path.stat().st_mtime_ns for path in artifacts.glob("trained/[!.]*/stage.json")]
    again = command.run(*flags, "--json")
    assert json.loads(again.stdout) == tuned
    assert [path.stat().st_mtime_ns for path in artifacts.glob("trained/[!.]*/stage.json")] == written


def test_trials_stop_at_the_timeout_and_at_an_interrupt(command: Command, tmp_path: Path) -> None:
    flags = ("tune", "--trials", "3", *FLAGS, "--epochs", "9999", "--learning-rate", "1e-4")
    process = command.start(*flags)
    wait_for(process, tmp_path / "artifacts", "checkpoints/*.npz")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Run the same command again to continue." in err
    done = command.run(*flags, "--timeout", "1")
    assert done.returncode == 1
    assert "No trial completed: expected at least one, received 0" in done.stderr
    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs(flow_filter=FlowFilter.model_validate({"name": {"any_": ["fit-model"]}}))
    fits = [run for run in runs if run.parameters["training"]["epochs"] == 9999]
    assert fits
    assert {run.state_type for run in fits} == {"COMPLETED"}  # no failed run for a trial that was stopped
