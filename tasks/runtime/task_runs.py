"""Run a task once per shard: on threads of this process, or on the workers of a Dask cluster."""

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import Context, ContextVar, copy_context
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from queue import Empty
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID

from httpx import HTTPError
from prefect import State, Task
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
    TaskRunFilter,
    TaskRunFilterState,
    TaskRunFilterStateType,
)
from prefect.client.schemas.objects import StateType
from prefect.exceptions import ObjectNotFound
from prefect.futures import PrefectFuture
from prefect.states import Cancelled, Crashed
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from schemas.config import DASK_ADDRESS_VARIABLE, REMOTE_VARIABLE, Runner, artifacts_folder, install_command
from schemas.errors import DataContractError, ExtraNotInstalled, WrongUsage
from tasks.runtime.events import ShardsFinished, TrainingProgress, emit
from tasks.runtime.locks import artifacts_lock
from tasks.runtime.remote import configured_remote

if TYPE_CHECKING:
    from tasks.runtime.dask_runner import DaskRunner

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

_SECONDS_BETWEEN_PROGRESS = 0.5


@dataclass(frozen=True)
class _Runs:
    """The runner of the tasks, and the runs that it was given.

    dask: the same runner, if it is that of Dask.
    elsewhere: its machines share FASHION_ANN_REMOTE with this one, and perhaps no disk.
    """

    runner: TaskRunner[Any]
    dask: "DaskRunner | None"
    elsewhere: bool
    futures: list[PrefectFuture[Any]] = field(default_factory=list)
    context: Context = field(default_factory=copy_context)


_runs: ContextVar[_Runs | None] = ContextVar("runs of tasks per shard", default=None)


@contextmanager
def tasks_on(runner: Runner) -> Iterator[None]:
    """Run the tasks of `run_per_shard` on ``runner`` during the block.

    "threads": threads of this process, one per core. "dask": the workers of the cluster of FASHION_ANN_DASK_ADDRESS, or
    of a local one, which starts with the first task and ends with the block. If the block ends early, waiting tasks
    are cancelled. Running ones finish first on threads, and end with their worker on a local cluster.

    Raises `ExtraNotInstalled` without the extra dask.
    """
    address = os.environ.get(DASK_ADDRESS_VARIABLE) if runner == "dask" else None
    dask = _dask() if runner == "dask" else None
    runs = _Runs(
        dask or ThreadPoolTaskRunner(max_workers=os.cpu_count()),
        dask,
        elsewhere=bool(address) and configured_remote() is not None,
    )
    token = _runs.set(runs)
    try:
        with runs.runner:
            yield
    finally:
        _runs.reset(token)
        _end_task_runs(runs.futures)


def run_per_shard(
    stage: str,
    split: str | None,
    task: Task[..., Result],
    calls: Iterable[Mapping[str, Any]],
    is_built: Callable[[Mapping[str, Any]], bool] = lambda parameters: False,
) -> list[Result]:
    """Run a task once for each of ``calls``, its parameters, and return the results in the same order.

    stage, split: of the run that the shards belong to; progress is reported for it.
    is_built: whether the output of a call is on this machine. It is then read in this thread, without a task run, which
    costs Prefect 5 to 7 ms.

    Outside of `tasks_on` the function of the task is called in this thread. Every call ends before an error is raised:
    one `DataContractError` for all calls that raised one, else the first other error.
    """
    runs = _runs.get()
    if runs is None:
        return _results(partial(task.fn, **parameters) for parameters in calls)
    results_of: list[Callable[[], Result]] = []
    futures: list[PrefectFuture[Result]] = []
    for parameters in calls:
        if is_built(parameters):
            results_of.append(partial(task.fn, **parameters))
        else:
            futures.append(future := runs.runner.submit(task, dict(parameters)))
            runs.futures.append(future)
            results_of.append(future.result)
    for done, future in enumerate(futures, len(results_of) - len(futures) + 1):
        future.wait()
        emit(ShardsFinished(stage, split, done, len(results_of)))
    results = _results(results_of)
    for future in futures:
        runs.futures.remove(future)
    return results


def cores() -> int:
    """Return the number of cores of this machine, or of the Dask workers that the tasks run on."""
    runs = _runs.get()
    return os.cpu_count() or 1 if runs is None or runs.dask is None else runs.dask.cores


def train_on_dask(task: Task[..., Result], parameters: Mapping[str, Any], epochs: int) -> Result:
    """Run a training as a task on a worker of Dask, emit its progress in this thread, and return the result.

    If a subscriber raises an error, such as `TrainingStopped`, the task is cancelled: the training ends at the next
    progress. It does so too if this process is killed. If the worker is lost, Dask runs the task again on another one.

    epochs: those of the training. Progress is emitted at least twice per second, so that a subscriber can stop a
        training that has not begun.
    """
    runs = _runs.get()
    if runs is None or runs.dask is None:
        raise RuntimeError("Expected to be called in a block of `tasks_on` with the runner dask.")
    # Not in the context of the task that called this: Dask would serialize its parameters, too.
    future = runs.context.copy().run(runs.dask.submit, task, dict(parameters))
    runs.futures.append(future)
    progress = runs.dask.progress_of(future)
    latest = TrainingProgress(0, epochs, {})
    try:
        while True:
            try:
                received = progress.get(timeout=_SECONDS_BETWEEN_PROGRESS)
            except Empty:
                received = replace(latest, figures={})
            if received is None:
                break
            latest = received
            emit(latest)
    except BaseException:
        future.wrapped_future.cancel()  # type: ignore[no-untyped-call]
        raise
    result: Result = future.result()
    runs.futures.remove(future)
    return result


def _results(calls: Iterable[Callable[[], Result]]) -> list[Result]:
    results, rejected = [], []
    for call in calls:
        try:
            results.append(call())
        except DataContractError as error:
            rejected.append(error)
    if len(rejected) > 1:
        raise DataContractError(
            "\n".join(map(str, rejected)),
            [problem for error in rejected for problem in error.problems][:10],
            sum(error.count for error in rejected),
        )
    if rejected:
        raise rejected[0]
    return results


def elsewhere() -> bool:
    """Return whether the tasks run on a standing cluster that shares FASHION_ANN_REMOTE, and perhaps no disk."""
    runs = _runs.get()
    return runs is not None and runs.elsewhere


def shard_artifacts(artifacts_dir: Path) -> Path | None:
    """Return the artifacts folder for the tasks of `run_per_shard`. None is that of each machine, if `elsewhere`."""
    return None if elsewhere() else artifacts_dir


@contextmanager
def artifacts_here(artifacts_dir: Path | None) -> Iterator[Path]:
    """Yield the artifacts folder for a task or flow that received ``artifacts_dir``: None is that of this machine.

    A folder of the run is locked by the run, that of another machine by this block. Raises `WrongUsage` without
    FASHION_ANN_REMOTE on another machine.
    """
    if artifacts_dir is not None:
        yield artifacts_dir
        return
    if configured_remote() is None:
        raise WrongUsage(
            f"{REMOTE_VARIABLE} is set for the run, but not for this worker. Start each worker with it and with its "
            "credentials."
        )
    own = artifacts_folder()
    with artifacts_lock(own):
        yield own


def _dask() -> "DaskRunner":
    try:
        from tasks.runtime.dask_runner import DaskRunner
    except ImportError as error:
        raise ExtraNotInstalled(
            f"prefect-dask cannot be imported ({error}), and the runner dask needs it. Install it with "
            f"`{install_command('dask')}`."
        ) from error
    return DaskRunner()


def end_lost_task_runs() -> None:
    """Record in Prefect that task runs crashed whose flow run crashed or was cancelled.

    The process of a flow run that is killed leaves them Running, and Prefect changes the flow run alone. Flow runs with
    another final state are left out, because the last states of their task runs may still be on their way.
    """
    ended = FlowRunFilterStateType(any_=[StateType.CRASHED, StateType.CANCELLED])
    still_open = TaskRunFilterStateType(any_=[StateType.PENDING, StateType.RUNNING])
    with get_client(sync_client=True) as client:
        try:
            lost = client.read_task_runs(
                flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=ended)),
                task_run_filter=TaskRunFilter(state=TaskRunFilterState(type=still_open)),
            )
        except HTTPError as error:
            logger.debug("task runs of killed flow runs are left as they are: %s", error)
            return
        state: State[Any] = Crashed(message="The process of the flow run ended before this task did.")
        _set_state(client, [run.id for run in lost], state)


def _end_task_runs(futures: Sequence[PrefectFuture[Any]]) -> None:
    """Record in Prefect that task runs are cancelled, if their runner ended before they did."""
    if open_runs := [future.task_run_id for future in futures if not future.state.is_final()]:
        with get_client(sync_client=True) as client:
            _set_state(client, open_runs, Cancelled(message="The flow run ended before this task did."))


def _set_state(client: SyncPrefectClient, task_runs: Sequence[UUID], state: State[Any]) -> None:
    for task_run in task_runs:
        try:
            client.set_task_run_state(task_run, state, force=True)
        except (HTTPError, ObjectNotFound) as error:  # it never began, or the server is gone
            logger.debug("task run %s is left as it is: %s", task_run, error)
