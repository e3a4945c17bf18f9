"""Put the trained and evaluated model into the store as one immutable version, and decide whether it is champion."""

import json
import logging
import shutil
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from prefect import task
from prefect.context import FlowRunContext
from prefect.runtime import flow_run

from schemas.config import PROJECT_ROOT, PromotionConfig, TrainingConfig
from schemas.contract import Split, contract_of
from schemas.errors import CandidateRejected, StoredArtifactError
from schemas.layout import (
    GOLDEN_NAME,
    METRICS_NAME,
    PREDICTIONS_NAME,
    PROFILE_NAME,
    REPORT_NAME,
    TOPOLOGY_NAME,
    VERDICT_NAME,
    WEIGHTS_NAME,
    images_name,
)
from schemas.references import Evaluation, ModelVersion, PreparedData, StageRecord, TrainedModel, ValidatedSplit
from tasks.model.inference import run_stored_model
from tasks.model.test_predictions import read_predictions
from tasks.registry.alias_log import CHAMPION, alias_values, append_event, champion_event, read_alias_log, utc_now
from tasks.registry.promotion import Measured, decide, mcnemar
from tasks.registry.store import (
    add_version,
    check_version,
    find_by_inputs,
    read_file,
    read_manifest,
    recover,
    store_folder,
    store_lock,
    version_folder,
    version_numbers,
)
from tasks.reports.version_report import commands, write_report
from tasks.runtime.events import StageStarted, emit
from tasks.runtime.files import sha256_file, write_json
from tasks.runtime.fingerprint import Stage
from tasks.runtime.prefect_artifacts import name_flow_run, publish_file_link, publish_markdown, publish_table
from tasks.runtime.stage_cache import stage_key

logger = logging.getLogger(__name__)

STAGE = Stage("version", core=("tasks.registry.promotion",))


@task(name="version", task_run_name="version")
def version(
    data: dict[Split, ValidatedSplit],
    prepared: PreparedData,
    trained: TrainedModel,
    evaluation: Evaluation,
    config: TrainingConfig,
    promotion: PromotionConfig,
    artifacts_dir: Path,
) -> ModelVersion:
    """Add a version, unless these very inputs made one before, and move `champion` if its verdict says so.

    Raises `CandidateRejected` for a version below the quality floor, which is in the store all the same.
    """
    emit(StageStarted("version", None))
    root = store_folder(artifacts_dir, prepared.dataset)
    key = stage_key(
        STAGE,
        {
            "prepared": prepared.record.digest,
            "trained": trained.record.key,
            "weights": trained.weights_sha256,
            # Other bounds are another verdict, and a verdict is never written over.
            "promotion": promotion.model_dump(),
        },
    )
    with store_lock(root):
        for line in recover(root):
            logger.warning("%s", line)
        number = find_by_inputs(root, key)
        created = number is None
        if number is None:
            manifest = _add(root, key, data, prepared, trained, evaluation, config, promotion)
            number = manifest["version"]
            # From here on the version exists. A kill before the next line is made good by the next `recover`.
            if manifest["verdict"]["event"] is not None:
                append_event(root, manifest["verdict"]["event"])
        else:
            manifest = read_manifest(root, number)
            logger.info("nothing new: version %d was made from the same data, configuration and code", number)
        is_champion = alias_values(read_alias_log(root)).get(CHAMPION) == number
        verdict = json.loads(read_file(root, manifest, VERDICT_NAME))
    path = version_folder(root, number)
    name_flow_run(
        f"{prepared.dataset} v{number:04d} seed {config.seed}", (prepared.dataset, f"v{number:04d}", verdict["outcome"])
    )
    publish_markdown(
        f"{prepared.dataset}-version",
        summary(manifest, verdict, path, champion=is_champion, created=created),
        f"Version {number}: what this run ended with",
    )
    publish_file_link(
        f"{prepared.dataset}-report",
        path / REPORT_NAME,
        "The report, one file, on the machine of the run. Browsers do not follow a link from a server to a file: copy "
        f"its address, or `{commands(manifest)['report']}` there",
    )
    publish_table(
        f"{prepared.dataset}-verdict",
        [{name: rule[name] for name in ("rule", "figure", "bound", "holds")} for rule in verdict["rules"]],
        f"Version {number}: {verdict['reason']}",
    )
    if verdict["outcome"] == "refused":
        raise CandidateRejected(f"Version {number} is kept in {path} and is not champion. {verdict['reason']}")
    return ModelVersion(
        version=number,
        path=path,
        created=created,
        champion=is_champion,
        verdict=verdict["reason"],
        test_accuracy=manifest["test_accuracy"],
        test_loss=manifest["test_loss"],
    )


def _add(
    root: Path,
    key: str,
    data: Mapping[Split, ValidatedSplit],
    prepared: PreparedData,
    trained: TrainedModel,
    evaluation: Evaluation,
    config: TrainingConfig,
    promotion: PromotionConfig,
) -> dict[str, Any]:
    """Write the next version with its verdict; returns its manifest."""
    champion = alias_values(read_alias_log(root)).get(CHAMPION)
    if champion is not None and champion not in version_numbers(root):
        logger.warning("version %d, the champion, is gone: the verdict is as if there were none", champion)
        champion = None

    def write(folder: Path, number: int) -> dict[str, Any]:
        for record, name in (
            (trained.record, TOPOLOGY_NAME),
            (trained.record, WEIGHTS_NAME),
            (trained.record, GOLDEN_NAME),
            (evaluation.record, METRICS_NAME),
            (evaluation.record, PREDICTIONS_NAME),
            (data["train"].record, PROFILE_NAME),
        ):
            shutil.copyfile(record.path / name, folder / name)
        for name, trained_sha256 in ((TOPOLOGY_NAME, trained.topology_sha256), (WEIGHTS_NAME, trained.weights_sha256)):
            if (found := sha256_file(folder / name)) != trained_sha256:
                raise StoredArtifactError(
                    f"{trained.record.path / name} changed since it was trained: expected sha256 {trained_sha256}, "
                    f"found {found}. Run again: the stage is made anew."
                )
        verdict = decide(_measure(root, prepared, evaluation, champion), promotion)
        write_json(folder / VERDICT_NAME, verdict)
        event = champion_event(champion, number, "train-fashion-mnist", verdict["reason"], flow_run.id)
        stated = {
            "dataset": prepared.dataset,
            "created": utc_now(),
            "made_from": key,
            "test_accuracy": evaluation.test_accuracy,
            "test_loss": evaluation.test_loss,
            "topology_id": trained.topology_sha256,
            "data": describe_data(data, prepared),
            "configuration": config.model_dump(),
            "promotion": promotion.model_dump(),
            "seed": config.seed,
            "code": code_revision(),
            "lock_sha256": trained.lock_sha256,
            "packages": trained.packages,
            "device": trained.device.model_dump(),
            "training_seconds": trained.seconds,
            "epochs_run": trained.epochs_run,
            "seconds_since_start": _seconds_since_start(),
            "parent": champion,
            "flow_run_id": flow_run.id,
            "trained_by": trained.trained_by.model_dump(),
            "verdict": {
                "outcome": verdict["outcome"],
                "reason": verdict["reason"],
                "event": event if verdict["outcome"] == "promoted" else None,
            },
            "lineage": lineage(data, prepared, trained, evaluation),
        }
        images = np.load(prepared.record.path / images_name("test"), mmap_mode="r")
        write_report(folder, number, stated, images, contract_of(prepared.dataset))
        return stated

    return add_version(root, write)


def _measure(root: Path, prepared: PreparedData, evaluation: Evaluation, champion: int | None) -> Measured:
    """What the verdict on the evaluated model rests on.

    The champion is measured on the candidate's own test rows, whatever rows it was measured on when it was made.
    """
    metrics = json.loads((evaluation.record.path / METRICS_NAME).read_bytes())
    champion_fault, paired = None, None
    if champion is not None:
        try:
            check_version(root, read_manifest(root, champion))
            right = run_stored_model(version_folder(root, champion), prepared.record.path).right
        except StoredArtifactError as error:
            champion_fault = str(error)
        else:
            said = read_predictions(evaluation.record.path / PREDICTIONS_NAME, contract_of(prepared.dataset))
            paired = mcnemar(said.right, right)
    return Measured(
        accuracy=metrics["test_accuracy"],
        per_class=metrics["per_class"],
        golden_difference=evaluation.golden_difference,
        champion=champion,
        champion_fault=champion_fault,
        paired=paired,
    )


def _seconds_since_start() -> float | None:
    """Since the flow run began in this process; None outside of one."""
    context = FlowRunContext.get()
    return None if context is None else round((datetime.now(UTC) - context.start_time).total_seconds(), 3)


def summary(
    manifest: Mapping[str, Any], verdict: Mapping[str, Any], path: Path, *, champion: bool, created: bool
) -> str:
    """A version on half a page of Markdown; ``champion``: whether it is now; ``created``: whether by this run."""
    data, device = manifest["data"], manifest["device"]
    lines = [
        f"# Version {manifest['version']}: {verdict['outcome']}{', champion now' if champion else ''}",
        "",
        f"{verdict['reason']}{'' if created else ' Nothing new: an earlier run made it from the same inputs.'}",
        "",
        "| figure | value |",
        "|---|---|",
        f"| test accuracy | {manifest['test_accuracy']:.4f} |",
        f"| test loss | {manifest['test_loss']:.4f} |",
        f"| rows to train, validate, test | {', '.join(f'{rows:,}' for rows in data['split_rows'].values())} |",
        f"| seed | {manifest['seed']} |",
        f"| epochs | {manifest['epochs_run']}, {manifest['training_seconds']:.1f} s on {device['name']} |",
        "",
        "| stage | when it was made | seconds |",
        "|---|---|---|",
        *(
            f"| {entry['stage']} {entry['split'] or ''} | {'reused' if entry['reused'] else 'done'} "
            f"| {entry['seconds']:.2f} |"
            for entry in manifest["lineage"]
        ),
        "",
        f"Report: `{path / REPORT_NAME}` (`{commands(manifest)['report']}`)",
    ]
    return "\n".join(lines) + "\n"


def describe_data(data: Mapping[Split, ValidatedSplit], prepared: PreparedData) -> dict[str, Any]:
    """Digests and rows of what the model was made from."""
    files: dict[str, Any] = {
        split: {
            "file": validated.data.source.name,
            "csv_sha256": validated.data.source.sha256,
            "csv_files": [{"file": file.path.name, "sha256": file.sha256} for file in validated.data.source.files],
            "parquet_sha256": validated.data.sha256,
            "rows": validated.data.rows,
            "quarantined": validated.data.quarantined,
            "origin": validated.data.origin,
            "expectations": validated.expectations,
            "checks": [check.model_dump() for check in validated.checks],
            "warnings": list(validated.warnings),
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
