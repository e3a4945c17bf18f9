"""Run tasks on a Dask cluster. Imported only for the runner dask, because the extra may not be installed."""

import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from queue import SimpleQueue
from threading import Lock
from typing import Any

import dask
from distributed import Worker, WorkerPlugin, get_worker
from prefect.logging.configuration import setup_logging
from prefect.logging.handlers import APILogHandler
from prefect_dask.client import PrefectDaskClient
from prefect_dask.task_runners import DaskTaskRunner, PrefectDaskFuture

from schemas.config import DASK_ADDRESS_VARIABLE
from schemas.errors import DaskUnavailable, TrainingStopped, WrongUsage
from tasks.runtime.events import Event, TrainingProgress, subscribe

logger = logging.getLogger(__name__)

_PROGRESS = "fashion-ann-training"  # topic of Dask's events

# Per process of a local cluster, which imports the pipeline: 2 CPU seconds and 200 MB.
_THREADS = 4


class ReportToRun(WorkerPlugin):
    """Send log records of our tasks to Prefect, and the progress of trainings to the run that waits for them.

    Every worker has this plugin, also one that joins the cluster later. Settings of the run arrive with each task; a
    logger's level and handlers do not.
    """

    name = "fashion-ann-report-to-run"

    def setup(self, worker: Worker) -> None:
        self._subscribed = ExitStack()
        self._subscribed.enter_context(subscribe(_send_progress))
        setup_logging()  # adds a handler if this worker reads our pyproject.toml, now and not with the first task
        logger = logging.getLogger("tasks")
        logger.setLevel(logging.DEBUG)
        if not any(isinstance(handler, APILogHandler) for handler in logger.handlers):
            logger.addHandler(APILogHandler())

    def teardown(self, worker: Worker) -> None:
        self._subscribed.close()


def _send_progress(event: Event) -> None:
    """Send the progress of the training of this thread. Raises `TrainingStopped` if no run waits for it any more.

    Dask cannot end a running task. It marks one that a run has cancelled, and those of a run that was killed.
    """
    if not isinstance(event, TrainingProgress):
        return
    worker = get_worker()
    key = worker.get_current_task()
    worker.log_event(_PROGRESS, [key, event.done, event.epochs, dict(event.figures)])
    task = worker.state.tasks.get(key)
    if task is None or task.state == "cancelled":
        raise TrainingStopped("The run does not wait for this training any more.")


class DaskRunner(DaskTaskRunner):
    """The cluster of FASHION_ANN_DASK_ADDRESS, or a local one with a thread per core, which ends with the runner."""

    def __init__(self) -> None:
        self._progress: dict[Any, SimpleQueue[TrainingProgress | None]] = {}  # by key of the task
        self._begins, self._joined = Lock(), False
        if address := os.environ.get(DASK_ADDRESS_VARIABLE):
            super().__init__(address=address)
            return
        dask.config.set(
            {
                # By default glibc returns memory of Dask's workers after each 64 KiB: ingest takes twice the CPU time.
                "distributed.nanny.pre-spawn-environ.MALLOC_TRIM_THRESHOLD_": 128 << 20,
                # Dask would sample the stacks of all tasks 100 times per second.
                "distributed.worker.profile.enabled": False,
            }
        )
        cores = os.cpu_count() or 1
        workers = -(-cores // _THREADS)
        local = {"n_workers": workers, "threads_per_worker": -(-cores // workers), "host": "127.0.0.1"}
        super().__init__(cluster_kwargs={**local, "dashboard_address": "127.0.0.1:0"})

    @property
    def client(self) -> PrefectDaskClient:
        """Return the client. The first call starts or joins the cluster.

        Threads may call it at once: the first tasks of a study that is continued are its trials. Raises `WrongUsage`
        or `DaskUnavailable` for an address that cannot be used.
        """
        with self._begins:
            with self._naming_address():
                client = super().client
            if not self._joined:
                self._joined = True
                client.register_plugin(ReportToRun())
                client.subscribe_topic(_PROGRESS, self._receive_progress)  # type: ignore[no-untyped-call]
                if self.address is not None and not client.nthreads():  # type: ignore[no-untyped-call]
                    logger.warning("the Dask cluster at %s has no worker; waiting for one", self.address)
            return client

    @contextmanager
    def _naming_address(self) -> Iterator[None]:
        try:
            yield
        except ValueError as error:
            if self.address is None:
                raise
            raise WrongUsage(
                f"{DASK_ADDRESS_VARIABLE}: expected the address of a scheduler, such as tcp://10.0.0.1:8786, received "
                f"{self.address!r} ({error})."
            ) from error
        except OSError as error:
            if self.address is None:
                raise
            raise DaskUnavailable(
                f"{self.address}, the address in {DASK_ADDRESS_VARIABLE}, cannot be reached ({error}). Expected the "
                "scheduler of a Dask cluster. Start it, or correct the address."
            ) from error

    @property
    def cores(self) -> int:
        """Return the number of threads of all workers."""
        if self.address is None:
            return os.cpu_count() or 1
        return sum(self.client.nthreads().values())  # type: ignore[no-untyped-call]

    def progress_of(self, future: PrefectDaskFuture[Any]) -> "SimpleQueue[TrainingProgress | None]":
        """Return the queue of the progress of a training that was submitted just now. None follows its end."""
        key, queue = future.wrapped_future.key, SimpleQueue[TrainingProgress | None]()

        def end(_: object) -> None:
            self._progress.pop(key, None)
            queue.put(None)

        self._progress[key] = queue
        future.wrapped_future.add_done_callback(end)  # type: ignore[no-untyped-call]
        return queue

    def _receive_progress(self, event: tuple[float, list[Any]]) -> None:
        key, done, epochs, figures = event[1]
        if (queue := self._progress.get(key)) is not None:
            queue.put(TrainingProgress(done, epochs, figures))
