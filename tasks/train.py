"""Train the network in a worker process. When it ends, all memory of the GPU is free again."""

import logging
import os
import socket
from pathlib import Path
from typing import Any, Literal

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run
from prefect.states import Completed

from schemas.config import DeviceChoice, TrainingConfig
from schemas.contract import contract_of
from schemas.errors import DeviceUnavailable, TrainingStopped
from schemas.layout import HISTORY_NAME, TOPOLOGY_NAME, WEIGHTS_NAME, Artifacts
from schemas.references import PreparedData, StageRecord, TrainedModel
from schemas.store import EPOCHS
from tasks.data.windows import effective_settings
from tasks.model import fit
from tasks.model.backend import environment, gpu_driver_present, ignored_variables
from tasks.model.inference import read_golden
from tasks.model.warm_up import WORKER
from tasks.runtime.events import TrainingProgress, emit
from tasks.runtime.files import sha256_file, sweep_temporaries
from tasks.runtime.fingerprint import code_and_lock, package_versions
from tasks.runtime.materialize import materialize
from tasks.runtime.memory import budget_bytes
from tasks.runtime.prefect_artifacts import publish_progress
from tasks.runtime.stage_cache import output_folder, run_stage, stage_key
from tasks.runtime.stages import TRAIN
from tasks.runtime.stored_file import read_json
from tasks.runtime.task_runs import artifacts_here
from tasks.runtime.worker_process import run_worker

logger = logging.getLogger(__name__)

DeviceKind = Literal["gpu", "cpu"]
_EPOCH_LINE = "epoch %d/%d  loss %.4f  accuracy %.4f  val_loss %.4f  val_accuracy %.4f  %.1f s"
_EPOCH_METRICS = ("loss", "accuracy", "val_loss", "val_accuracy", "seconds")


@task(name="train", task_run_name="train seed {config.seed}", cache_policy=NO_CACHE)
def train(
    prepared: PreparedData, config: TrainingConfig, artifacts_dir: Path | None, device: DeviceChoice = "auto"
) -> TrainedModel:
    """Train on the train split and evaluate each epoch on the validation split. The test split is not read.

    artifacts_dir: see `shard_artifacts`.

    Raises `DeviceUnavailable` before the first epoch if ``device`` cannot be used. If a subscriber of its events raises
    `TrainingStopped`, the task has no model, and ends in the state Stopped instead of a failed one.
    """
    if ignored := ignored_variables():
        logger.warning("ignored, because the model must not depend on them: %s", ", ".join(ignored))
    with artifacts_here(artifacts_dir) as artifacts:
        kind, prepared = _device_kind(device), materialize(prepared, artifacts)
        try:
            try:
                return _train(prepared, config, artifacts, kind)
            except DeviceUnavailable as error:
                if device != "auto" or kind == "cpu":
                    raise
                logger.warning("a GPU driver is present, but the GPU is unusable; training on the CPU. %s", error)
            return _train(prepared, config, artifacts, "cpu")
        except TrainingStopped as stopped:
            # Only for that subscriber.
            return Completed(name="Stopped", message=str(stopped))  # type: ignore[return-value]


def is_trained(
    prepared: PreparedData, config: TrainingConfig, artifacts_dir: Path, device: DeviceChoice = "auto"
) -> bool:
    """Return True if an output of `train` exists for these inputs. It is not verified.

    With "auto" and a GPU that turns out to be unusable this is False, also if the CPU has trained the model.
    """
    key = stage_key(TRAIN, _inputs(prepared, config, _device_kind(device)))
    return output_folder(TRAIN.outputs(artifacts_dir), key).exists()


def _device_kind(device: DeviceChoice) -> DeviceKind:
    """Return the kind of device to try first: with "auto" a GPU if its driver is present."""
    return "gpu" if device == "gpu" or (device == "auto" and gpu_driver_present()) else "cpu"


def _train(prepared: PreparedData, config: TrainingConfig, artifacts_dir: Path, kind: DeviceKind) -> TrainedModel:
    inputs = _inputs(prepared, config, kind)
    # Named by the cache key, like the output folder: a training with other inputs never resumes from it.
    checkpoint = Artifacts(artifacts_dir).checkpoints / f"{stage_key(TRAIN, inputs)}.npz"

    def build(folder: Path) -> dict[str, Any]:
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        job = {
            "dataset": prepared.dataset,
            "training": config.model_dump(),
            "windows": inputs["training"]["windows"],
            "device": kind,
            "prepared": str(prepared.record.path.absolute()),
            "checkpoint": str(checkpoint.absolute()),
            "folder": str(folder.absolute()),
        }
        # Shown before the worker starts: it imports the backend and compiles the network for seconds.
        description = f"{config.epochs} epochs, seed {config.seed}"
        with (
            publish_progress(f"{prepared.dataset}-training", description) as show,
            run_worker(fit.__name__, job, WORKER) as process,
        ):

            def on_event(event: dict[str, Any]) -> None:
                match event:
                    case {"device": device}:
                        logger.info("training on %d x %s (%s)", device["count"], device["name"], device["kind"])
                    case {"done": done, "metrics": metrics}:
                        emit(TrainingProgress(done, config.epochs, metrics))
                        show(done / config.epochs)
                        if "seconds" in metrics:  # the end of an epoch
                            logger.info(_EPOCH_LINE, done, config.epochs, *(metrics[name] for name in _EPOCH_METRICS))

            facts = process.result(on_event)
            show(1)  # also after an early stop, or if the checkpoint was of the last epoch
        return {
            "memory_budget": budget_bytes(config.memory_budget),
            "topology_sha256": sha256_file(folder / TOPOLOGY_NAME),
            "weights_sha256": sha256_file(folder / WEIGHTS_NAME),
            **facts,
            "trained_by": {
                "flow_run_id": flow_run.id,
                # A Prefect worker passes its name in this variable; there is no public API for it.
                "worker": os.environ.get("PREFECT__WORKER_NAME"),
                "host": socket.gethostname(),
            },
            "environment": environment(),
            **{f"{name}_sha256": digest for name, digest in code_and_lock(*TRAIN.core).items()},
            "packages": package_versions(),
        }

    def parse(record: StageRecord, facts: dict[str, Any]) -> TrainedModel:
        EPOCHS.validate_python(read_json(record.path / HISTORY_NAME))
        read_golden(record.path, contract_of(prepared.dataset).pixels)
        return TrainedModel(record=record, **facts)

    trained = run_stage(TRAIN.outputs(artifacts_dir), TRAIN, inputs, build, parse)
    checkpoint.unlink(missing_ok=True)
    sweep_temporaries(checkpoint)
    return trained


def _inputs(prepared: PreparedData, config: TrainingConfig, kind: DeviceKind) -> dict[str, Any]:
    return {
        "dataset": prepared.dataset,
        "prepared": prepared.sha256,
        "training": effective_settings(config, prepared.train_rows, contract_of(prepared.dataset).pixels),
        "environment": environment(),
        # CPU and GPU give different numbers, so neither reuses a model of the other. "auto" shares the outputs of the
        # kind that it selects. Model and number of GPUs are excluded, so that a retry on another worker reuses them.
        "device": kind,
    }
