"""Train a version again from its manifest, outside the store, and compare it with the original."""

import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from schemas.config import REMOTE_VARIABLE, DeviceChoice, PromotionConfig, TrainingConfig
from schemas.contract import SPLITS, Split, contract_of
from schemas.errors import DataUnavailable, StoredArtifactError
from schemas.layout import WEIGHTS_NAME, short_key
from schemas.references import CsvFile, CsvSplit, ParquetSplit, StageRecord, TrainedModel
from schemas.store import Manifest, VersionFacts
from tasks.data.parquet_split import read_facts, split_reference
from tasks.data.statistics import mcnemar
from tasks.model.inference import run_stored_model
from tasks.prepare import prepare
from tasks.registry.store import StoredVersion
from tasks.registry.verify import check_version
from tasks.runtime.locks import artifacts_lock
from tasks.runtime.materialize import materialize
from tasks.runtime.stage_cache import read_stage
from tasks.runtime.stages import INGEST, TRAIN
from tasks.train import train
from tasks.validate import validate

Verdict = Literal["reproduced", "equivalent", "not reproduced"]
# Changes of `changes_since` with which the same configuration trains something else.
_TRAINED = ("code of the train stage", "prepared data", "cache key of the train stage")


def reproduce(version: StoredVersion, artifacts_dir: Path, scratch: Path) -> dict[str, Any]:
    """Validate, prepare and train in ``scratch`` with the data and configuration of the manifest of ``version``.

    Return JSON:

    - ``version``
    - ``identical``: whether the digests of the weights are equal; both are in ``weights_sha256``
    - ``test_accuracy`` of both, and ``paired``, the test between them (`tasks.data.statistics.PairedTest`)
    - ``differs``: the changes since, see `changes_since`
    - ``verdict`` and ``reason``, see `reproduction_verdict`

    Raises `DataUnavailable` when the ingested data was removed, and `StoredArtifactError` when it or the version is
    damaged.
    """
    manifest = version.manifest
    check_version(version)
    dataset = manifest.dataset
    if unknown := manifest.configuration.keys() - TrainingConfig.model_fields.keys():
        raise StoredArtifactError(f"Version {version.number} was trained with unknown settings: {sorted(unknown)}.")
    config = TrainingConfig.model_validate(manifest.configuration)
    if manifest.memory_budget_used is not None:  # a share of another machine's memory would give other windows
        config = config.model_copy(update={"memory_budget": f"{manifest.memory_budget_used}B"})
    with artifacts_lock(artifacts_dir):
        train_copy, test_copy = (_copy_data(manifest, artifacts_dir, split, scratch) for split in SPLITS)
    os.environ.pop(REMOTE_VARIABLE, None)  # the trained model would be fetched, and this copy stored there
    train_split = validate.fn(train_copy, dataset, scratch)
    test_split = validate.fn(test_copy, dataset, scratch, train_split)
    prepared = prepare.fn(train_split, test_split, dataset, config.validation_size, config.seed, scratch)
    # A GPU sums in another order: only a CPU reproduces the bits of a version that was trained on a CPU.
    device: DeviceChoice = "cpu" if manifest.device.kind == "cpu" else "auto"
    trained = train.fn(prepared, config, scratch, device)
    correct, correct_before = (
        run_stored_model(folder, prepared.record.path).right for folder in (trained.record.path, version.folder)
    )
    expected = manifest.files[WEIGHTS_NAME].sha256
    identical, differs = trained.weights_sha256 == expected, changes_since(manifest, trained, prepared.sha256)
    paired = mcnemar(correct, correct_before)
    verdict, reason = reproduction_verdict(identical, differs, paired.p_value)
    return {
        "version": version.number,
        "verdict": verdict,
        "reason": reason,
        "identical": identical,
        "weights_sha256": {"expected": expected, "found": trained.weights_sha256},
        "test_accuracy": {"expected": float(correct_before.mean()), "found": float(correct.mean())},
        "paired": asdict(paired),
        "differs": differs,
    }


def reproduction_verdict(identical: bool, differs: Sequence[str], p_value: float) -> tuple[Verdict, str]:
    """Return whether a version was reproduced, and the reason. ``differs``: the result of `changes_since`.

    The same seed on the same CPU gives the same bits. Other packages or another device round differently, so that the
    accuracy decides. With other code or data something else was trained.
    """
    changed = ", ".join(line.partition(":")[0] for line in differs)
    if identical:
        return "reproduced", "the weights are identical"
    if not differs:
        return "not reproduced", (
            "the weights differ, but code, lock, prepared data, packages, environment and device are those of the "
            "manifest"
        )
    if p_value < PromotionConfig().significance:
        return "not reproduced", f"the difference in accuracy is significant; changed since: {changed}"
    if any(line.startswith(_TRAINED) for line in differs):
        return "not reproduced", f"the weights differ, and something else was trained; changed since: {changed}"
    return "equivalent", f"the weights differ, the accuracy does not significantly; changed since: {changed}"


def _copy_data(manifest: Manifest, artifacts_dir: Path, split: Split, scratch: Path) -> ParquetSplit:
    """Copy the Parquet of the manifest from the output of ingest to ``scratch``, after checking its digest."""
    stage = manifest.stage(INGEST.name, split)
    data = manifest.data.split(split)
    folder = INGEST.outputs(artifacts_dir) / short_key(stage.key)
    record = StageRecord(path=folder, **stage.model_dump(include=StageRecord.model_fields.keys() - {"path"}))
    record = materialize(record, artifacts_dir)
    if not folder.is_dir():
        raise DataUnavailable(
            f"The {split} data of version {manifest.version} is missing: expected {folder}. Put {data.file} with "
            f"sha256 {data.csv_sha256} into the data folder and run `fashion-ann train` to ingest it again."
        )
    stored = read_stage(folder)["facts"]
    files = tuple(CsvFile(path=Path(file.file), sha256=file.sha256) for file in data.csv_files)
    csv = CsvSplit(split=split, files=files, origin=data.origin)
    contract = contract_of(manifest.dataset)
    ingested = split_reference(record, read_facts(stored), stored["part_sha256"], csv, contract)
    if ingested.sha256 != data.parquet_sha256:
        raise StoredArtifactError(f"{folder}: expected sha256 {data.parquet_sha256}, received {ingested.sha256}.")
    target = INGEST.outputs(scratch) / split / split
    target.mkdir(parents=True)
    parts = tuple(part.model_copy(update={"path": target / part.path.name}) for part in ingested.parts)
    for part, copy in zip(ingested.parts, parts, strict=True):
        shutil.copyfile(part.path, copy.path)
    return ingested.model_copy(update={"path": target, "parts": parts})


def changes_since(manifest: VersionFacts, trained: TrainedModel, prepared: str) -> list[str]:
    """Return what differs in ``trained`` from the recorded training: everything that its weights can depend on.

    Compares code, lock, prepared data, packages, environment and device, each as far as the manifest records it.
    Configuration, seed and dataset are those of the manifest. prepared: sha256 of the prepared data.
    """
    digests = {
        "code of the train stage": (manifest.code_sha256, trained.code_sha256),
        "lock": (manifest.lock_sha256, trained.lock_sha256),
        "prepared data": (manifest.data.prepared_sha256, prepared),
    }
    changes = [f"{name}: {before}, now {now}" for name, (before, now) in digests.items() if before not in (None, now)]
    for kind, before, now in (
        ("package", manifest.packages, trained.packages),
        ("environment", manifest.environment, trained.environment),
        ("device", manifest.device.as_json(), trained.device.model_dump()),
    ):
        changes += [
            f"{kind}: {name} {_shown(value)}, now {_shown(now.get(name))}"
            for name, value in before.items()
            if value != now.get(name)
        ]
    if not changes and (key := manifest.stage(TRAIN.name).key) != trained.record.key:
        changes = [f"cache key of the train stage, for an unrecorded reason: {key}, now {trained.record.key}"]
    return changes


def _shown(value: Any) -> str:
    return "unset" if value in (None, "") else str(value)
