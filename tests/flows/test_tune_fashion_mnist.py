"""`fashion-ann tune`: a search that is killed and continued, and the flow that it runs."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import get_args

import psutil
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowFilter, FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.sorting import FlowRunSort, TaskRunSort

from cli.arguments import read_config
from cli.main import command_parser
from cli.server_process import free_port
from schemas.config import Runner, TrainingConfig
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


@contextmanager
def dask(*arguments: str | Path) -> Iterator[psutil.Process]:
    """Run a process of Dask until the end of the block."""
    command = [Path(sys.executable).parent / "dask", *arguments, "--no-dashboard"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            yield psutil.Process(process.pid)
        finally:
            process.terminate()
            process.wait(timeout=60)


@contextmanager
def cluster(command: Command, tmp_path: Path) -> Iterator[psutil.Process]:
    """Run a standing cluster that the command uses, and return the nanny of its worker."""
    port = str(free_port())
    address = f"tcp://127.0.0.1:{port}"
    command.environment["FASHION_ANN_DASK_ADDRESS"] = address
    folder = ("--local-directory", tmp_path / "dask")
    with (
        dask("scheduler", "--host", "127.0.0.1", "--port", port),
        dask("worker", address, "--nthreads", "1", *folder) as nanny,
    ):
        yield nanny


def trainings(nanny: psutil.Process) -> list[psutil.Process]:
    """Return the worker processes of trainings below a Dask worker, without the jobs that fork from them."""
    found = {}
    for process in nanny.children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if process.status() != psutil.STATUS_ZOMBIE and "tasks.model.worker" in process.cmdline():
                found[process.pid] = process
    return [process for process in found.values() if process.ppid() not in found]


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_dask_gives_the_recipe_of_threads(command: Command, tmp_path: Path) -> None:
    flags = ("tune", "--trials", "3", *FLAGS[:-2], "--epochs", "2", "--parallel", "1")
    with cluster(command, tmp_path):
        tuned = {
            runner: json.loads(
                command.run(*flags, "--artifacts-dir", str(tmp_path / runner), "--runner", runner, "--json").stdout
            )
            for runner in get_args(Runner)
        }
    assert Path(tuned["dask"]["recipe"]).read_bytes() == Path(tuned["threads"]["recipe"]).read_bytes()
    assert tuned["dask"]["val_accuracy"] == tuned["threads"]["val_accuracy"]
    with get_client(sync_client=True) as client:
        tasks = client.read_task_runs(sort=TaskRunSort.END_TIME_DESC)
    named = [task for task in tasks if task.name.startswith("train trial ")]
    assert {task.name: task.state_name for task in named} == {f"train trial {at}": "Completed" for at in range(3)}


def test_trainings_on_dask_end_with_the_run_and_survive_a_worker(command: Command, tmp_path: Path) -> None:
    flags = ("tune", "--runner", "dask", "--trials", "2", *FLAGS[:-2], "--epochs", "9999", "--learning-rate", "1e-4")
    artifacts = tmp_path / "artifacts"
    with cluster(command, tmp_path) as nanny:
        process = command.start(*flags)
        wait_until(lambda: list(artifacts.glob("checkpoints/[!.]*.npz")))
        (checkpoint,) = artifacts.glob("checkpoints/[!.]*.npz")
        (first,) = trainings(nanny)
        psutil.Process(first.ppid()).kill()  # the worker; Dask runs the trial again on the next one
        wait_until(lambda: trainings(nanny) not in ([], [first]))
        before = checkpoint.stat().st_mtime_ns
        wait_until(lambda: checkpoint.stat().st_mtime_ns > before)
        process.kill()
        process.communicate()
        wait_until(lambda: not trainings(nanny))

        process = command.start(*flags)
        wait_until(lambda: trainings(nanny))
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=300)
        assert process.returncode == 130, err
        wait_until(lambda: not trainings(nanny))
        with get_client(sync_client=True) as client:
            (run,) = client.read_flow_runs(limit=1, sort=FlowRunSort.START_TIME_DESC)
            tasks = client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run.id])))
        assert {"trial 1", "train trial 1"} <= {task.name for task in tasks}
        assert [task.name for task in tasks if task.state is None or not task.state.is_final()] == []
