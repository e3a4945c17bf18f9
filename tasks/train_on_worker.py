"""Train on a worker of the gpu pool: start a run of the flow fit-model, wait for it and return its result."""

import logging
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prefect import task
from prefect.cache_policies import RUN_ID, CacheKeyFnPolicy
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, WorkPoolFilter
from prefect.client.schemas.objects import FlowRun, StateType, WorkerStatus
from prefect.context import TaskRunContext
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.filesystems import LocalFileSystem
from prefect.results import ResultStore
from prefect.states import Cancelled

from schemas.config import RESULT_FOLDER_VARIABLE, DeviceChoice, TrainingConfig
from schemas.errors import GpuTrainingFailed, NoGpuWorker
from schemas.layout import Artifacts
from schemas.references import PreparedData, TrainedModel
from tasks.runtime.files import digest_of

logger = logging.getLogger(__name__)

# Defined in prefect.yaml, with its work pool.
DEPLOYMENT = "fit-model/gpu"

_NOT_STARTED = (StateType.SCHEDULED, StateType.PENDING)


def _training_inputs(context: TaskRunContext, inputs: Mapping[str, Any]) -> str:
    # Prefect's default would hash the whole reference, which differs in a retry: `reused` is then true.
    return digest_of([inputs["prepared"].record.digest, inputs["training"].model_dump(), inputs["device"]])


@task(
    name="train-on-gpu-worker",
    persist_result=True,
    result_serializer="json",
    cache_policy=RUN_ID + CacheKeyFnPolicy(cache_key_fn=_training_inputs),
)
def train_on_gpu_worker(
    prepared: PreparedData,
    training: TrainingConfig,
    artifacts_dir: Path,
    device: DeviceChoice,
    worker_seconds: float,
) -> TrainedModel:
    """Run fit-model on the gpu pool and return its result. A retry of the main flow's run does not repeat it.

    artifacts_dir: must be the same folder on the worker.
    worker_seconds: how long to wait for an idle pool to start the run. The wait for a busy worker, and for the
        training itself, is not limited.

    Raises `NoGpuWorker`, with no run left in the queue, and `GpuTrainingFailed` with the worker's message.
    """
    returned = Artifacts(artifacts_dir).returned
    with get_client(sync_client=True) as client:
        try:
            pool = client.read_deployment_by_name(DEPLOYMENT).work_pool_name
        except ObjectNotFound as error:
            raise NoGpuWorker(
                f"train_on=gpu needs the deployment {DEPLOYMENT}, which the Prefect API at {client.api_url} does not "
                "have. Create it with `fashion-ann deploy`, or train with train_on=here."
            ) from error
        started = run_deployment(
            DEPLOYMENT,
            parameters={
                "prepared": prepared.model_dump(mode="json"),
                "training": training.model_dump(mode="json"),
                "artifacts_dir": str(artifacts_dir),
                "device": device,
            },
            # Do not wait here: Prefect's timeout would include the training, and would leave the run in the queue.
            timeout=0,
            job_variables={"env": {RESULT_FOLDER_VARIABLE: str(returned)}},
        )
        if not isinstance(started, FlowRun):
            raise TypeError(f"Prefect was expected to return the flow run, it returned {started!r}.")
        logger.info("training in run %s of %s, on the work pool %s", started.name, DEPLOYMENT, pool)
        try:
            run = _wait_for_end(client, started, str(pool), worker_seconds)
        except BaseException:
            # Also on an interrupt: a run left in the queue would train later, for no main flow.
            if client.read_flow_run(started.id).state_type in _NOT_STARTED:
                client.set_flow_run_state(started.id, Cancelled(message="The main flow's run stopped waiting."))
            raise
    state = run.state
    key = getattr(state and state.data, "storage_key", None)
    if state is None or not state.is_completed() or key is None:
        raise GpuTrainingFailed(
            f"Training on the gpu worker: run {run.name} of {DEPLOYMENT} ended as {run.state_name}. "
            f"{(state and state.message) or 'It has no message; see its log.'}"
        )
    # Not `state.result()`, which reads from the result folder of this process.
    record = ResultStore(result_storage=LocalFileSystem(basepath=str(returned))).read(key)
    return TrainedModel.model_validate(record.result)


def _wait_for_end(client: SyncPrefectClient, run: FlowRun, pool: str, worker_seconds: float) -> FlowRun:
    """Return the run in its final state. Raises `NoGpuWorker` if no worker starts it within ``worker_seconds``."""
    since, last_state = time.monotonic(), None
    while True:
        run = client.read_flow_run(run.id)
        if run.state is not None and run.state.is_final():
            return run
        due = run.state and run.state.state_details.scheduled_time
        # Restart the clock when a worker picks the run up, or reschedules it because another training still runs.
        if run.state_type != last_state or (due and due > datetime.now(UTC)):
            since, last_state = time.monotonic(), run.state_type
        if run.state_type in _NOT_STARTED and time.monotonic() - since > worker_seconds:
            if not _is_busy(client, run, pool):
                raise _no_worker(client, run, pool, worker_seconds)
            since = time.monotonic()
        time.sleep(1)


def _is_busy(client: SyncPrefectClient, run: FlowRun, pool: str) -> bool:
    """Return whether a worker of the pool is online and is starting this run or executing another."""
    if not _online(client, pool):
        return False
    if run.state_type == StateType.PENDING:
        return True
    others = client.read_flow_runs(
        flow_run_filter=FlowRunFilter.model_validate({"state": {"type": {"any_": ["RUNNING", "PENDING"]}}}),
        work_pool_filter=WorkPoolFilter.model_validate({"name": {"any_": [pool]}}),
    )
    return any(other.id != run.id for other in others)


def _online(client: SyncPrefectClient, pool: str) -> list[str]:
    return [worker.name for worker in client.read_workers_for_work_pool(pool) if worker.status == WorkerStatus.ONLINE]


def _no_worker(client: SyncPrefectClient, run: FlowRun, pool: str, worker_seconds: float) -> NoGpuWorker:
    online = ", ".join(_online(client, pool)) or "none"
    pending = run.state_type == StateType.PENDING
    problem = "A worker picked up the training but did not start it" if pending else "No worker picked up the training"
    return NoGpuWorker(
        f"{problem} within {worker_seconds:g} s: run {run.name} of {DEPLOYMENT} was cancelled, no run is queued. "
        f"Expected an online worker of the work pool {pool}; online: {online}. Start one on the machine with the GPU "
        f"with `prefect worker start --pool {pool}`, and run again. Or train with train_on=here. The parameter "
        "gpu_worker_seconds sets the waiting time."
    )
