"""Train on a worker of the gpu pool: start a run of the flow fit-model, wait for it and return its result."""

import logging
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, WorkPoolFilter
from prefect.client.schemas.objects import FlowRun, StateType, WorkerStatus
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.runtime import flow_run
from prefect.states import Cancelled
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from schemas.config import REMOTE_VARIABLE, RESULT_FOLDER_VARIABLE, DeviceChoice, TrainingConfig
from schemas.errors import GpuTrainingFailed, NoGpuWorker, StoredArtifactError
from schemas.layout import Artifacts
from schemas.references import PreparedData, TrainedModel
from tasks.runtime.files import digest_of
from tasks.runtime.materialize import materialize
from tasks.runtime.remote import RETURNED, Remote, configured_remote
from tasks.runtime.stored_file import read_stored

logger = logging.getLogger(__name__)

# Defined in prefect.yaml, with its work pool.
DEPLOYMENT = "fit-model/gpu"

_LARGEST_RESULT = 1_000_000  # bytes; a result has a few thousand
_NOT_STARTED = (StateType.SCHEDULED, StateType.PENDING)


class _Result(BaseModel):
    """The content of the file that Prefect writes for the result of fit-model, with its JSON serializer."""

    model_config = ConfigDict(extra="forbid")

    class_name: Literal["schemas.references.TrainedModel"] = Field(alias="__class__")
    data: TrainedModel


def read_result(path: Path) -> TrainedModel:
    """Return the result of a run of fit-model, which Prefect stored in ``path``.

    If the file names a serializer, such as pickle, Prefect would run it. It would also import any class in the JSON.
    This function reads JSON of one class only, and raises `StoredArtifactError` for anything else.
    """
    content = read_stored(path, largest=_LARGEST_RESULT)
    try:
        return _Result.model_validate_json(content).data
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        received = f"{'.'.join(map(str, fault['loc'])) or 'content'} {str(fault['input'])[:40]!r}: {fault['msg']}"
        raise StoredArtifactError(
            f"{path}: expected the JSON of a {TrainedModel.__name__}, received {received}. Nothing was loaded from it. "
            "Remove the file, and run again."
        ) from error


def store_result(trained: TrainedModel) -> None:
    """Store the result of this run of fit-model in the remote, if there is one, for the machine of the main flow.

    A stopped training has no result.
    """
    if (remote := configured_remote()) is not None and flow_run.id is not None and isinstance(trained, TrainedModel):
        _store(remote, flow_run.id, trained)


def _store(remote: Remote, name: str, trained: TrainedModel) -> None:
    remote.write(f"{RETURNED}/{name}.json", trained.model_dump_json().encode())


def _stored_result(remote: Remote, name: str) -> TrainedModel | None:
    content = remote.read(f"{RETURNED}/{name}.json", _LARGEST_RESULT)
    try:
        return None if content is None else TrainedModel.model_validate_json(content)
    except ValidationError as error:
        raise StoredArtifactError(
            f"{remote.address}/{RETURNED}/{name}.json: expected the JSON of a {TrainedModel.__name__} ({error!s:.200})."
        ) from error


@task(name="train-on-gpu-worker", cache_policy=NO_CACHE)
def train_on_gpu_worker(
    prepared: PreparedData,
    training: TrainingConfig,
    artifacts_dir: Path,
    device: DeviceChoice,
    worker_seconds: float,
) -> TrainedModel:
    """Run fit-model on the gpu pool and return its result. A retry of the main flow's run does not repeat it.

    artifacts_dir: must be the same folder on the worker. With FASHION_ANN_REMOTE, which the worker needs
        too, it uses its own and fetches the prepared data.
    worker_seconds: how long to wait for an idle pool to start the run. The wait for a busy worker, and for the
        training itself, is not limited.

    Raises `NoGpuWorker`, with no run left in the queue, `GpuTrainingFailed` with the worker's message, and
    `StoredArtifactError` as `read_result` does.
    """
    remote, returned = configured_remote(), Artifacts(artifacts_dir).returned
    # Without the whole reference, which differs in a retry: `reused` is then true.
    inputs = [flow_run.id, prepared.sha256, training.model_dump(), device]
    earlier = returned / digest_of(inputs)
    if remote is not None and (trained := _stored_result(remote, earlier.name)) is not None:
        return materialize(trained, artifacts_dir)
    if earlier.exists():
        return read_result(earlier)
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
                "artifacts_dir": str(artifacts_dir) if remote is None else None,
                "device": device,
            },
            # Do not wait here: Prefect's timeout would include the training, and would leave the run in the queue.
            timeout=0,
            job_variables={"env": {RESULT_FOLDER_VARIABLE: str(returned)}} if remote is None else None,
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
    if state is None or not state.is_completed() or (key is None and remote is None):
        raise GpuTrainingFailed(
            f"Training on the gpu worker: run {run.name} of {DEPLOYMENT} ended as {run.state_name}. "
            f"{(state and state.message) or 'It has no message; see its log.'}"
        )
    if remote is not None:
        if (trained := _stored_result(remote, str(run.id))) is None:
            raise GpuTrainingFailed(
                f"Run {run.name} of {DEPLOYMENT} stored no result in {remote.address}. Expected a worker "
                f"with this release, and with the same {REMOTE_VARIABLE}."
            )
        _store(remote, earlier.name, trained)
        return materialize(trained, artifacts_dir)
    result = returned / Path(str(key)).name
    trained = read_result(result)
    with suppress(OSError):  # the folder of another user; a retry then trains again
        result.replace(earlier)
    return trained


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
