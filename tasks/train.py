"""Train the network, in a process of its own that ends: what it took of a GPU's memory is free again."""

import logging
import os
import socket
from pathlib import Path
from typing import Any, Literal

from prefect import task
from prefect.runtime import flow_run

from schemas.config import DeviceChoice, TrainingConfig
from schemas.errors import DeviceUnavailable
from schemas.layout import TOPOLOGY_NAME, WEIGHTS_NAME, Artifacts
from schemas.references import PreparedData, TrainedBy, TrainedModel
from tasks.model import fit
from tasks.model.backend import backend_name, gpu_driver_present
from tasks.runtime.events import TrainingProgress, emit
from tasks.runtime.files import sha256_file, sweep_temporaries
from tasks.runtime.fingerprint import Stage, lock_digest, package_versions
from tasks.runtime.prefect_artifacts import publish_progress
from tasks.runtime.stage_cache import output_folder, run_stage, stage_key
from tasks.runtime.worker_process import run_worker

logger = logging.getLogger(__name__)

STAGE = Stage("train", core=("tasks.model.fit",))


@task(name="train", task_run_name="train seed {config.seed}")
def train(
    prepared: PreparedData, config: TrainingConfig, artifacts_dir: Path, device: DeviceChoice = "auto"
) -> TrainedModel:
    """Train on the train split, watched on the validation split; the test split is not opened.

    Raises `DeviceUnavailable` before the first epoch when ``device`` cannot be had.
    """
    kind = _kind(device)
    try:
        return _train(prepared, config, artifacts_dir, kind)
    except DeviceUnavailable as error:
        if device != "auto" or kind == "cpu":
            raise
        logger.warning("a GPU is in sight, training goes to the CPU all the same. %s", error)
    return _train(prepared, config, artifacts_dir, "cpu")


def is_trained(
    prepared: PreparedData, config: TrainingConfig, artifacts_dir: Path, device: DeviceChoice = "auto"
) -> bool:
    """Whether `train` would find what it made before, if that is whole; it is not looked into.

    With "auto" and a GPU in sight that cannot be used the answer is no, whatever the CPU has trained.
    """
    key = stage_key(STAGE, _inputs(prepared, config, _kind(device)))
    return output_folder(Artifacts(artifacts_dir).trained, key).exists()


def _kind(device: DeviceChoice) -> Literal["gpu", "cpu"]:
    """What is trained on, or tried first where a GPU is in sight."""
    return "gpu" if device == "gpu" or (device == "auto" and gpu_driver_present()) else "cpu"


def _train(
    prepared: PreparedData, config: TrainingConfig, artifacts_dir: Path, kind: Literal["gpu", "cpu"]
) -> TrainedModel:
    inputs = _inputs(prepared, config, kind)
    # Named by what it depends on, as the stage's own folder is: another seed or recipe never resumes from it.
    checkpoint = Artifacts(artifacts_dir).checkpoints / f"{stage_key(STAGE, inputs)}.npz"

    def build(folder: Path) -> dict[str, Any]:
        device: dict[str, Any] = {}
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        job = {
            "dataset": prepared.dataset,
            "training": config.model_dump(),
            "device": kind,
            "prepared": str(prepared.record.path.absolute()),
            "checkpoint": str(checkpoint.absolute()),
            "folder": str(folder.absolute()),
        }
        # From the start: until the first step the process imports the backend and compiles the network, for seconds.
        with publish_progress(f"{prepared.dataset}-training", f"{config.epochs} epochs, seed {config.seed}") as show:

            def on_event(event: dict[str, Any]) -> None:
                nonlocal device
                if "device" in event:
                    device = event["device"]
                    logger.info("training on %d x %s (%s)", device["count"], device["name"], device["kind"])
                    return
                emit(TrainingProgress(event["done"], config.epochs, event["figures"]))
                show(event["done"] / config.epochs)
                if "epoch" not in event:
                    return
                epoch, figures = event["epoch"], event["figures"]
                logger.info(
                    "epoch %d/%d  loss %.4f  accuracy %.4f  val_loss %.4f  val_accuracy %.4f  %.1f s",
                    *(epoch, config.epochs, figures["loss"], figures["accuracy"]),
                    *(figures["val_loss"], figures["val_accuracy"], figures["seconds"]),
                )

            with run_worker(fit.__name__, job) as process:
                fitted = process.result(on_event)
            show(1)  # also where it stopped early, or had nothing left to train
        return {
            "topology_sha256": sha256_file(folder / TOPOLOGY_NAME),
            "weights_sha256": sha256_file(folder / WEIGHTS_NAME),
            **fitted,
            "device": device,
            "trained_by": _trained_by().model_dump(),
            "lock_sha256": lock_digest(),
            "packages": package_versions(),
        }

    record, facts = run_stage(Artifacts(artifacts_dir).trained, STAGE, inputs, build)
    # The stage is whole: its checkpoint has done its work.
    checkpoint.unlink(missing_ok=True)
    sweep_temporaries(checkpoint)
    return TrainedModel(record=record, **facts)


def _inputs(prepared: PreparedData, config: TrainingConfig, kind: Literal["gpu", "cpu"]) -> dict[str, Any]:
    return {
        "dataset": prepared.dataset,
        "prepared": prepared.record.digest,
        "training": config.model_dump(),
        "backend": backend_name(),
        # What a GPU was demanded for is not answered with what a CPU has trained, nor the other way round: the numbers
        # differ, and the demand was for a reason. "auto" is whichever of the two it comes to, so that it shares what
        # they made. The model of the GPU, and how many, are left out: a retry on another worker shall find what the
        # first has trained.
        "device": kind,
    }


def _trained_by() -> TrainedBy:
    # A worker tells the processes that it starts its name in this variable; Prefect has no public place for it.
    return TrainedBy(flow_run_id=flow_run.id, worker=os.environ.get("PREFECT__WORKER_NAME"), host=socket.gethostname())
