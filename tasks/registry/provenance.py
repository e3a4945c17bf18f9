"""Collect the facts of a manifest: how a version was created, from which data, stages and code."""

import logging
import os
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from schemas.config import PROJECT_ROOT, PromotionConfig, TrainingConfig
from schemas.contract import Split, contract_of
from schemas.errors import DatasetChanged
from schemas.references import Evaluation, PreparedData, StageRecord, TrainedModel, ValidatedSplit
from schemas.store import AliasEvent, VersionFacts
from tasks.model.fit import batch_size_for
from tasks.registry.alias_log import utc_now
from tasks.runtime.fingerprint import code_was_edited
from tasks.runtime.stage_cache import read_record
from tasks.runtime.stages import position, run_name

logger = logging.getLogger(__name__)


def collect_facts(
    data: Mapping[Split, ValidatedSplit],
    prepared: PreparedData,
    trained: TrainedModel,
    evaluation: Evaluation,
    config: TrainingConfig,
    promotion: PromotionConfig,
    verdict: Mapping[str, Any],
    event: AliasEvent,
    key: str,
    seconds_since_start: float | None,
    note: str | None = None,
    further: Iterable[StageRecord] = (),
) -> VersionFacts:
    """Return the facts of a version that is created now.

    event: the promotion, which is part of the facts only if ``verdict`` promotes the version.
    key: the cache key of the version. seconds_since_start: of the flow run, None outside of one.
    note: a person's remark.
    further: records of stages whose outputs are in no other argument.
    """
    return VersionFacts.model_validate(
        {
            "dataset": prepared.dataset,
            "dataset_sha256": contract_of(prepared.dataset).digest,
            "created": utc_now(),
            "made_from": key,
            **evaluation.model_dump(include={"test_accuracy", "test_loss"}),
            **trained.model_dump(
                include={"environment", "code_sha256", "lock_sha256", "packages", "device", "epochs_run", "trained_by"}
            ),
            "topology_id": trained.topology_sha256,
            "data": _describe_data(data, prepared, config),
            "configuration": config.model_dump(),
            "batch_size_used": batch_size_for(prepared.train_rows, config),
            "memory_budget_used": trained.memory_budget,
            "promotion": promotion.model_dump(),
            "seed": config.seed,
            "code": code_revision(),
            "training_seconds": trained.seconds,
            "seconds_since_start": seconds_since_start,
            "parent": event.before,
            "flow_run_id": event.flow_run,
            "note": note,
            "verdict": {
                "outcome": verdict["outcome"],
                "reason": verdict["reason"],
                "event": event.as_json() if verdict["outcome"] == "promoted" else None,
            },
            "lineage": lineage(data, prepared, trained, evaluation, further),
        }
    )


def _describe_data(
    data: Mapping[Split, ValidatedSplit], prepared: PreparedData, config: TrainingConfig
) -> dict[str, Any]:
    splits: dict[str, Any] = {
        split: {
            "file": validated.data.source.name,
            "csv_sha256": validated.data.source.sha256,
            "csv_files": [{"file": file.path.name, "sha256": file.sha256} for file in validated.data.source.files],
            "parquet_sha256": validated.data.sha256,
            "content_sha256": validated.data.content,
            **validated.data.model_dump(include={"rows", "quarantined", "origin"}),
            "expectations": validated.expectations,
            "checks": [check.model_dump() for check in validated.checks],
            "warnings": list(validated.warnings),
        }
        for split, validated in data.items()
    }
    rows = {"train": prepared.train_rows, "validation": prepared.validation_rows, "test": prepared.test_rows}
    early_stopping = [] if config.early_stopping is None else ["early stopping"]
    held_out = {
        "rows": prepared.validation_rows,
        "used_for": ["learning curves", *early_stopping, "golden predictions"],
    }
    if (duplicates := prepared.duplicates) is None:
        raise TypeError("Expected data that was prepared with a test split.")
    return {**splits, "split_rows": rows, "held_out": held_out, "duplicates": duplicates.model_dump()}


def require_one_contract(dataset: str, records: Iterable[StageRecord]) -> None:
    """Raise `DatasetChanged` unless all stages used the dataset file as it is now."""
    contract = contract_of(dataset)
    for record in records:
        if read_record(record.path)["inputs"]["contract"] != contract.digest:
            raise DatasetChanged(
                f"{contract.path} changed during this run: {run_name(record.stage, record.split)} read another one. "
                "No version was stored. Run again when nothing changes the file; finished stages are kept."
            )


def lineage(
    data: Mapping[Split, ValidatedSplit],
    prepared: PreparedData,
    trained: TrainedModel,
    evaluation: Evaluation,
    further: Iterable[StageRecord],
) -> list[dict[str, Any]]:
    """Return the record of each stage, in the order of the pipeline."""
    records = [record for validated in data.values() for record in (validated.data.record, validated.record)]
    records += [*(output.record for output in (prepared, trained, evaluation)), *further]
    records.sort(key=lambda record: position(record.stage, record.split))
    return [record.model_dump(mode="json", exclude={"path"}) for record in records]


def code_revision(root: Path = PROJECT_ROOT) -> dict[str, Any]:
    """Return the commit of the checkout ``root``, and whether its files or the code of this process differ from it.

    Without git or a commit the revision is that of FASHION_ANN_REVISION, which the image sets. If that is missing too,
    both are None, and a warning is logged.
    """
    # Explicit folders, because git then requires no owner, and finds no repository around the checkout. Variables such
    # as GIT_DIR belong to the repository of the caller, for example of a hook.
    command = ["git", "--no-optional-locks", f"--git-dir={root / '.git'}", f"--work-tree={root}"]
    variables = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        revision, changes = (
            subprocess.run(  # noqa: S603  # fixed arguments
                [*command, *arguments],
                cwd=root,
                env=variables,
                capture_output=True,
                text=True,
                timeout=30,
                check=True,
            ).stdout.strip()
            for arguments in (("rev-parse", "HEAD"), ("status", "--porcelain"))
        )
    except (OSError, subprocess.SubprocessError) as error:
        if given := os.environ.get("FASHION_ANN_REVISION"):
            return {"revision": given, "dirty": None}
        reason = " ".join(str(getattr(error, "stderr", None) or error).split())
        logger.warning(
            "the revision of the code is unknown, and the manifest records none: %s. Set FASHION_ANN_REVISION, or "
            "build the image with --build-arg REVISION=$(git rev-parse HEAD)",
            reason,
        )
        return {"revision": None, "dirty": None}
    return {"revision": revision, "dirty": bool(changes) or code_was_edited()}
