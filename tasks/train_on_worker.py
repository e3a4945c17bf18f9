"""Training on a worker of the gpu pool: the flow fit-model as a run of its own, waited for, and its reference back."""

import logging
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prefect import task
from prefect.cache_policies import RUN_ID, CacheKeyFnPolicy
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import FlowRun, StateType, WorkerStatus
from prefect.context import TaskRunContext
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.filesystems import LocalFileSystem
from prefect.results import ResultStore
from prefect.states import Cancelled

from schemas.config import DeviceChoice, TrainingConfig
from schemas.errors import GpuTrainingFailed, NoGpuWorker
from schemas.layout import Artifacts
from schemas.references import PreparedData, TrainedModel
from tasks.runtime.files import digest_of

logger = logging.getLogger(__name__)

# prefect.yaml has the deployment, and names its work pool.
DEPLOYMENT = "fit-model/gpu"

_POLL_SECONDS = 1.0
_NOT_STARTED = (StateType.SCHEDULED, StateType.PENDING)


def _what_is_trained(context: TaskRunContext, inputs: Mapping[str, Any]) -> str:
    # Not the whole reference, as Prefect would take: in a retry it says that the stages before were reused.
    return digest_of([inputs["prepared"].record.digest, inputs["training"].model_dump(), inputs["device"]])


@task(
    name="train-on-gpu-worker",
    persist_result=True,
    result_serializer="json",
    cache_policy=RUN_ID + CacheKeyFnPolicy(cache_key_fn=_what_is_trained),
)
def train_on_gpu_worker(
    prepared: PreparedData,
    training: TrainingConfig,
    artifacts_dir: Path,
    device: DeviceChoice,
    worker_seconds: float,
) -> TrainedModel:
    """Run fit-model on the gpu pool and return what it returns; a retry of the main flow's run does not repeat it.

    ``artifacts_dir`` has to be the same folder for the worker. A worker that is busy is waited for; one that is not
    there for ``worker_seconds``. The training itself takes as long as it takes.

    Raises `NoGpuWorker`, with nothing left queued, and `GpuTrainingFailed` with the worker's own message.
    """
    returned = Artifacts(artifacts_dir).returned
    with get_client(sync_client=True) as client:
        try:
            pool = client.read_deployment_by_name(DEPLOYMENT).work_pool_name
        except ObjectNotFound as error:
            raise NoGpuWorker(
                f"train_on=gpu needs the deployment {DEPLOYMENT}, and the Prefect API at {client.api_url} has none. "
                "Put it there with `fashion-ann deploy`, or train with train_on=here."
            ) from error
        started = run_deployment(
            DEPLOYMENT,
            parameters={
                "prepared": prepared.model_dump(mode="json"),
                "training": training.model_dump(mode="json"),
                "artifacts_dir": str(artifacts_dir),
                "device": device,
            },
            # Prefect's own waiting would count the training, too, and leave the run queued at its end.
            timeout=0,
            job_variables={"env.PREFECT_LOCAL_STORAGE_PATH": str(returned)},
        )
        if not isinstance(started, FlowRun):
            raise TypeError(f"Prefect was expected to return the flow run, it returned {started!r}.")
        logger.info("training is run %s of %s, on the work pool %s", started.name, DEPLOYMENT, pool)
        try:
            run = _wait_for_end(client, started, str(pool), worker_seconds)
        except BaseException:
            # Also when this process is told to end: nothing stays queued that would train for nobody.
            if client.read_flow_run(started.id).state_type in _NOT_STARTED:
                client.set_flow_run_state(started.id, Cancelled(message="Its main flow's run does not wait any more."))
            raise
    state = run.state
    key = getattr(state and state.data, "storage_key", None)
    if state is None or not state.is_completed() or key is None:
        raise GpuTrainingFailed(
            f"Training on the gpu worker: run {run.name} of {DEPLOYMENT} ended as {run.state_name}. "
            f"{(state and state.message) or 'It left no message; its log may say why.'}"
        )
    # Not `state.result()`, which looks in the result folder of this process.
    record = ResultStore(result_storage=LocalFileSystem(basepath=str(returned))).read(key)
    return TrainedModel.model_validate(record.result)


def _wait_for_end(client: SyncPrefectClient, run: FlowRun, pool: str, worker_seconds: float) -> FlowRun:
    """The run in its final state. Raises `NoGpuWorker` when nobody starts it for ``worker_seconds``."""
    since, seen = time.monotonic(), None
    while True:
        run = client.read_flow_run(run.id)
        if run.state is not None and run.state.is_final():
            return run
        # Taken up, or given back because the one before still trained, to be taken again from a later moment on.
        if run.state_type != seen or not _is_due(run):
            since, seen = time.monotonic(), run.state_type
        if run.state_type in _NOT_STARTED and time.monotonic() - since > worker_seconds:
            if not _is_busy(client, run, pool):
                raise _no_worker(client, run, pool, worker_seconds)
            since = time.monotonic()
        time.sleep(_POLL_SECONDS)


def _is_due(run: FlowRun) -> bool:
    due = run.state.state_details.scheduled_time if run.state is not None else None
    return due is None or due <= datetime.now(UTC)


def _is_busy(client: SyncPrefectClient, run: FlowRun, pool: str) -> bool:
    """Whether a worker of the pool is up, and is starting this run or has another one to finish first."""
    if not _online(client, pool):
        return False
    if run.state_type == StateType.PENDING:
        return True
    others = client.read_flow_runs(
        flow_run_filter=FlowRunFilter(
            state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.RUNNING, StateType.PENDING]))
        ),
        work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=[pool])),
    )
    return any(other.id != run.id for other in others)


def _online(client: SyncPrefectClient, pool: str) -> list[str]:
    return [worker.name for worker in client.read_workers_for_work_pool(pool) if worker.status == WorkerStatus.ONLINE]


def _no_worker(client: SyncPrefectClient, run: FlowRun, pool: str, worker_seconds: float) -> NoGpuWorker:
    online = ", ".join(_online(client, pool)) or "none"
    taken = run.state_type == StateType.PENDING
    happened = "A worker took up the training but did not start it" if taken else "No worker picked up the training"
    return NoGpuWorker(
        f"{happened} within {worker_seconds:g} s: run {run.name} of {DEPLOYMENT} was cancelled, nothing is queued. "
        f"Expected a worker of the work pool {pool} that is online; online: {online}. Start one on the machine with "
        f"the GPU, `prefect worker start --pool {pool}`, and run again; or train with train_on=here. The parameter "
        "gpu_worker_seconds sets how long is waited."
    )
