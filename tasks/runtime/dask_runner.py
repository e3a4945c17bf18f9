"""Run tasks on a Dask cluster. Imported only for the runner dask, because the extra may not be installed."""

import logging
import os

import dask
from distributed import Worker, WorkerPlugin
from prefect.logging.configuration import setup_logging
from prefect.logging.handlers import APILogHandler
from prefect_dask.client import PrefectDaskClient
from prefect_dask.task_runners import DaskTaskRunner

from schemas.config import DASK_ADDRESS_VARIABLE

# Per process of a local cluster, which imports the pipeline: 2 CPU seconds and 200 MB.
_THREADS = 4


class LogToPrefect(WorkerPlugin):
    """Send the log records of our tasks from every worker to Prefect, also from one that joins the cluster later.

    Settings of the run arrive with each task, and a logger's level and handlers do not.
    """

    name = "fashion-ann-log-to-prefect"

    def setup(self, worker: Worker) -> None:
        setup_logging()  # adds a handler if this worker reads our pyproject.toml, now and not with the first task
        logger = logging.getLogger("tasks")
        logger.setLevel(logging.DEBUG)
        if not any(isinstance(handler, APILogHandler) for handler in logger.handlers):
            logger.addHandler(APILogHandler())


class DaskRunner(DaskTaskRunner):
    """The cluster of FASHION_ANN_DASK_ADDRESS, or a local one with a thread per core, which ends with the runner."""

    def __init__(self) -> None:
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
        """Return the client. The first call starts or joins the cluster."""
        begins, client = self._client is None, super().client
        if begins:
            client.register_plugin(LogToPrefect())
        return client
