"""Run a task once per shard, where the flow has chosen to run such tasks."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

from prefect import Task
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from schemas.config import Runner
from tasks.runtime.events import ShardsFinished, emit

Result = TypeVar("Result")

_runner: ContextVar[TaskRunner[Any] | None] = ContextVar("runner of tasks per shard", default=None)


@contextmanager
def tasks_on(runner: Runner) -> Iterator[None]:
    """Run the tasks of `run_per_shard` on ``runner`` during the block.

    "threads": threads of this process, one per core. When the block ends, tasks that wait are cancelled, and those that
    run are waited for.
    """
    threads: TaskRunner[Any] = ThreadPoolTaskRunner(max_workers=os.cpu_count())
    with threads as task_runner:
        token = _runner.set(task_runner)
        try:
            yield
        finally:
            _runner.reset(token)


def run_per_shard(
    stage: str, split: str | None, task: Task[..., Result], calls: Sequence[Mapping[str, Any]]
) -> list[Result]:
    """Call a task with each of the parameters, and return the results in the same order.

    stage, split: those of the run that the shards belong to, for its progress.

    Outside of `tasks_on` the function of the task is called in this thread. Raises the error of the first call that
    failed, after every call has ended.
    """
    runner = _runner.get()
    if runner is None:
        return [task.fn(**parameters) for parameters in calls]
    futures = [runner.submit(task, dict(parameters)) for parameters in calls]
    for done, future in enumerate(futures, 1):
        future.wait()
        emit(ShardsFinished(stage, split, done, len(futures)))
    return [future.result() for future in futures]
