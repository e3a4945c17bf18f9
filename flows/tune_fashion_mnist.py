"""tune-fashion-mnist: search for a recipe on the train split. It promotes nothing and never opens the test split."""

import threading
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from prefect import flow
from prefect.futures import PrefectFuture
from prefect.runtime import task_run
from prefect.task_runners import ThreadPoolTaskRunner

from flows.fit_model import fit_where_asked
from flows.states import ON_KILLED, ON_RUNNING
from schemas.config import (
    DEFAULT_HELD_OUT,
    DEFAULT_SPACE,
    BadRows,
    DeviceChoice,
    HeldOut,
    Runner,
    SearchSpace,
    TrainingConfig,
    TrialCount,
    TuningSeconds,
    separate_folders,
)
from schemas.contract import DatasetName
from schemas.errors import TrainingStopped
from schemas.layout import Artifacts
from schemas.references import PreparedData, TrainedModel, Tuning
from tasks.fetch import fetch as fetch_csvs
from tasks.ingest import ingest
from tasks.model.backend import gpu_driver_present
from tasks.model.study import Search, open_search, require_optuna
from tasks.prepare import prepare
from tasks.run_trial import run_trial
from tasks.runtime.events import StageStarted, emit
from tasks.runtime.locks import artifacts_lock
from tasks.runtime.materialize import materialize
from tasks.runtime.task_runs import cores, shard_artifacts, tasks_on, train_on_dask
from tasks.runtime.worker_process import keep_workers
from tasks.train import train
from tasks.validate import validate
from tasks.write_recipe import write_recipe

DEFAULT_TRAINING = TrainingConfig()


@flow(
    name="tune-fashion-mnist",
    flow_run_name="{dataset} tune",
    on_running=ON_RUNNING,
    on_crashed=ON_KILLED,
    on_cancellation=ON_KILLED,
)
def tune_fashion_mnist(
    dataset: DatasetName = "fashion-mnist",
    data_dir: Path | None = None,
    artifacts_dir: Path | None = None,
    trials: TrialCount = 20,
    timeout: TuningSeconds | None = None,
    training: TrainingConfig = DEFAULT_TRAINING,
    space: SearchSpace = DEFAULT_SPACE,
    held_out: HeldOut = DEFAULT_HELD_OUT,
    parallel: TrialCount | None = None,
    device: DeviceChoice = "auto",
    bad_rows: BadRows = 0,
    fetch: bool = False,
    runner: Runner = "threads",
) -> Tuning:
    """Search for the recipe with the highest accuracy on rows held out from the train split, and write it as TOML.

    The same call continues a study that ended before: after a kill, after its time, or with fewer trials.

    trials: number of trials that the study has at the end. timeout: seconds after which unfinished trials stop.
    training: settings that are not searched, and the first trial. space: the settings to search; a value is a list of
    values, or a range such as {"low": 0.001, "high": 0.01, "log": true}.
    held_out: rows of the train split that trials are compared on, at most a fifth.
    parallel: trials at a time; by default one per two cores of this machine or of the Dask cluster, and one on a GPU.
    runner: as in train-fashion-mnist. With "dask" the training of each trial is a task on a worker, too.
    """
    require_optuna()
    deadline = None if timeout is None else time.monotonic() + timeout
    artifacts, data_home = separate_folders(artifacts_dir, data_dir)
    with artifacts_lock(artifacts), keep_workers(), tasks_on(runner):
        csv = fetch_csvs(dataset, data_home, fetch, splits=("train",), artifacts_dir=artifacts)["train"]
        train_data = validate(ingest(csv, dataset, artifacts, bad_rows), dataset, artifacts)
        prepared = prepare(train_data, None, dataset, held_out, training.seed, artifacts)
        emit(StageStarted("trials", None))
        with open_search(Artifacts(artifacts).studies, prepared, training, space, device) as (search, folder):
            fit = partial(_fit, prepared, held_out, artifacts, device, runner)
            _run_trials(search, trials, deadline, parallel or _default_parallel(device), fit)
            return write_recipe(search, prepared, folder)


def _fit(
    prepared: PreparedData,
    held_out: int,
    artifacts: Path,
    device: DeviceChoice,
    runner: Runner,
    recipe: TrainingConfig,
) -> TrainedModel | None:
    """Return None for a training on Dask that was stopped."""
    # The validation split of the recipe is for its own training later.
    config = recipe.model_copy(update={"validation_size": held_out})
    if runner == "threads":
        return fit_where_asked(prepared, config, artifacts, device, "here", gpu_worker_seconds=0)
    parameters = {"prepared": prepared, "config": config, "artifacts_dir": shard_artifacts(artifacts), "device": device}
    named = train.with_options(task_run_name=f"train {task_run.name}")  # such as "train trial 3"
    try:
        return materialize(train_on_dask(named, parameters, config.epochs), artifacts)
    except TrainingStopped:
        return None


def _default_parallel(device: DeviceChoice) -> int:
    on_gpu = device == "gpu" or (device == "auto" and gpu_driver_present())
    return 1 if on_gpu else max(1, cores() // 2)


def _run_trials(search: Search, trials: int, deadline: float | None, parallel: int, fit: Any) -> None:
    """Run trials until ``trials`` have finished or the ``deadline`` has passed. Raises the error of a trial."""
    stop, ended, running = threading.Event(), SimpleQueue[PrefectFuture[Any]](), 0
    runner: ThreadPoolTaskRunner[Any] = ThreadPoolTaskRunner(max_workers=parallel)
    with runner, suppress(Empty):
        try:
            while (wanted := trials - len(search.finished())) > 0 or running:
                while running < min(parallel, wanted):
                    trial, config = search.ask()
                    parameters = {"search": search, "trial": trial, "config": config, "fit": fit, "stop": stop}
                    runner.submit(run_trial, parameters).add_done_callback(ended.put)
                    running += 1
                ended.get(timeout=deadline and max(0, deadline - time.monotonic())).result()
                running -= 1
        finally:
            stop.set()  # also after an interrupt or an error; the end of the outer block waits for the trials
