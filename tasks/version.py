"""Put the trained and evaluated model into the store as one immutable version, and decide whether it is champion."""

import logging
import shutil
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from prefect import task
from prefect.runtime import flow_run

from schemas.config import PROJECT_ROOT, TrainingConfig
from schemas.contract import Split, contract_of
from schemas.errors import StoredArtifactError, VersionNotFound
from schemas.references import Evaluation, ModelVersion, PreparedData, StageRecord, TrainedModel, ValidatedSplit
from tasks.publish import publish_markdown
from tasks.report import REPORT_NAME, write_report
from tasks.stage import lock_digest, stage_key
from tasks.store import (
    CHAMPION,
    METRICS_NAME,
    add_version,
    alias_values,
    append_event,
    find_made_from,
    read_alias_log,
    read_manifest,
    settle,
    store_folder,
    store_lock,
    utc_now,
    version_folder,
)
from tasks.train import TOPOLOGY_NAME, WEIGHTS_NAME

logger = logging.getLogger(__name__)

# What the numbers of a model can depend on.
_PACKAGES = (
    *("keras", "tensorflow", "tensorflow-cpu", "numpy", "pandas", "pyarrow"),
    *("great-expectations", "prefect", "fashion-ann"),
)


@task(name="version")
def version(
    data: dict[Split, ValidatedSplit],
    prepared: PreparedData,
    trained: TrainedModel,
    evaluation: Evaluation,
    config: TrainingConfig,
    artifacts_dir: Path,
) -> ModelVersion:
    """Add a version, unless these very inputs made one before."""
    root = store_folder(artifacts_dir, prepared.dataset)
    key = stage_key(
        __name__,
        {"prepared": prepared.record.digest, "trained": trained.record.key, "weights": trained.weights_sha256},
    )
    run_id = flow_run.id
    with store_lock(root):
        for line in settle(root):
            logger.warning("%s", line)
        number = find_made_from(root, key)
        created = number is None
        if number is None:
            champion = alias_values(read_alias_log(root)).get(CHAMPION)
            champion_accuracy, unreadable = None, None
            if champion is not None:
                try:
                    champion_accuracy = read_manifest(root, champion)["test_accuracy"]
                except (StoredArtifactError, VersionNotFound) as error:
                    # A champion that nobody can load must not keep a model that works from taking its place.
                    unreadable = str(error)

            def write(folder: Path, new_number: int) -> dict[str, Any]:
                verdict = decide(
                    new_number, evaluation.test_accuracy, champion, champion_accuracy, run_id, unreadable=unreadable
                )
                for source, name in (
                    (trained.record.path, TOPOLOGY_NAME),
                    (trained.record.path, WEIGHTS_NAME),
                    (evaluation.record.path, METRICS_NAME),
                ):
                    shutil.copyfile(source / name, folder / name)
                stated = {
                    "dataset": prepared.dataset,
                    "created": utc_now(),
                    "made_from": key,
                    "test_accuracy": evaluation.test_accuracy,
                    "test_loss": evaluation.test_loss,
                    "topology_id": trained.topology_sha256,
                    "data": describe_data(data, prepared),
                    "configuration": config.model_dump(),
                    "seed": config.seed,
                    "code": code_revision(),
                    "lock_sha256": lock_digest(),
                    "packages": package_versions(),
                    "device": trained.device.model_dump(),
                    "training_seconds": trained.seconds,
                    "epochs_run": trained.epochs_run,
                    "parent": champion,
                    "flow_run_id": run_id,
                    "verdict": verdict,
                    "lineage": lineage(data, prepared, trained, evaluation),
                }
                write_report(
                    folder / REPORT_NAME, new_number, stated, evaluation.record.path, contract_of(prepared.dataset)
                )
                return stated

            manifest = add_version(root, write)
            number = manifest["version"]
            # From here on the version exists. A kill before the next line is made good by the next `settle`.
            if manifest["verdict"]["event"] is not None:
                append_event(root, manifest["verdict"]["event"])
        else:
            manifest = read_manifest(root, number)
            logger.info("nothing new: version %d was made from the same data, configuration and code", number)
        is_champion = alias_values(read_alias_log(root)).get(CHAMPION) == number
    path = version_folder(root, number)
    reason = manifest["verdict"]["reason"]
    publish_markdown(
        f"{prepared.dataset}-version",
        f"Version {number}{' (champion)' if is_champion else ''}: test accuracy {manifest['test_accuracy']:.4f}. "
        f"{reason}\n\n`{path}`\n",
        "The version that this run ended with",
    )
    return ModelVersion(
        version=number,
        path=path,
        created=created,
        champion=is_champion,
        verdict=reason,
        test_accuracy=manifest["test_accuracy"],
        test_loss=manifest["test_loss"],
    )


def decide(
    candidate: int,
    accuracy: float,
    champion: int | None,
    champion_accuracy: float | None,
    run_id: str | None,
    *,
    unreadable: str | None = None,
) -> dict[str, Any]:
    """The verdict, with the event for the alias log if the candidate becomes champion.

    The first version does, and one whose champion is ``unreadable``; any other only if its test accuracy is higher.
    """
    if unreadable is not None:
        promoted, reason = True, f"Promoted: the champion, version {champion}, cannot be read. {unreadable}"
    elif champion is None or champion_accuracy is None:
        promoted, reason = True, "Promoted: there was no champion."
    elif accuracy > champion_accuracy:
        promoted = True
        reason = f"Promoted: test accuracy {accuracy:.4f} is above {champion_accuracy:.4f} of version {champion}."
    else:
        promoted = False
        reason = f"Kept: test accuracy {accuracy:.4f} is not above {champion_accuracy:.4f} of version {champion}."
    event = {
        "when": utc_now(),
        "alias": CHAMPION,
        "from": champion,
        "to": candidate,
        "by": "train-fashion-mnist",
        "reason": reason,
        "flow_run": run_id,
    }
    return {"promoted": promoted, "reason": reason, "event": event if promoted else None}


def describe_data(data: Mapping[Split, ValidatedSplit], prepared: PreparedData) -> dict[str, Any]:
    """Digests and rows of what the model was made from."""
    files: dict[str, Any] = {
        split: {
            "file": validated.data.source.path.name,
            "csv_sha256": validated.data.source.sha256,
            "parquet_sha256": validated.data.sha256,
            "rows": validated.data.rows,
            "origin": validated.data.origin,
        }
        for split, validated in data.items()
    }
    return {
        **files,
        "split_rows": {
            "train": prepared.train_rows,
            "validation": prepared.validation_rows,
            "test": prepared.test_rows,
        },
        "duplicates": prepared.duplicates.model_dump(),
    }


def lineage(
    data: Mapping[Split, ValidatedSplit], prepared: PreparedData, trained: TrainedModel, evaluation: Evaluation
) -> list[dict[str, Any]]:
    """Each stage in order: the key of what it hung on, the digest of what it made, and whether it was reused."""
    records: list[tuple[str | None, StageRecord]] = []
    for split, validated in data.items():
        records += [(split, validated.data.record), (split, validated.record)]
    records += [(None, prepared.record), (None, trained.record), (None, evaluation.record)]
    return [{"split": split, **record.model_dump(mode="json", exclude={"path"})} for split, record in records]


def code_revision() -> dict[str, Any]:
    """The commit of the checkout, and whether it was changed since; nulls where there is no git."""

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(  # noqa: S603  # fixed arguments
                ["git", "-C", str(PROJECT_ROOT), *arguments],  # noqa: S607  # the user's own git
                capture_output=True,
                text=True,
                timeout=30,
                check=True,
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip()

    changes = git("status", "--porcelain")
    return {"revision": git("rev-parse", "HEAD"), "dirty": None if changes is None else bool(changes)}


def package_versions() -> dict[str, str]:
    versions = {"python": ".".join(map(str, sys.version_info[:3]))}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions
