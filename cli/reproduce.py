"""Train a version again from its manifest, outside the store, and compare it with the original."""

import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from schemas.config import DeviceChoice, TrainingConfig
from schemas.contract import SPLITS, Split
from schemas.errors import DataUnavailable, StoredArtifactError
from schemas.layout import WEIGHTS_NAME
from schemas.references import CsvFile, CsvSplit, ParquetSplit, StageRecord
from tasks.model.inference import run_stored_model
from tasks.prepare import prepare
from tasks.registry.promotion import mcnemar
from tasks.registry.store import check_version, read_manifest, version_folder
from tasks.runtime.files import sha256_file
from tasks.runtime.locks import artifacts_lock
from tasks.runtime.stage_cache import read_stage
from tasks.train import train
from tasks.validate import validate


def reproduce(root: Path, artifacts_dir: Path, version: int, scratch: Path) -> dict[str, Any]:
    """Validate, prepare and train in ``scratch`` with the data and configuration of the manifest of ``version``.

    Return JSON:

    - ``version``
    - ``identical``: whether the digests of the weights are equal; both are in ``weights_sha256``
    - ``test_accuracy`` of both, and ``paired``, the test between them (`tasks.registry.promotion.PairedTest`)
    - ``differs``: the changes since, in code, lock or device

    Raises `DataUnavailable` when the ingested data was removed, and `StoredArtifactError` when it or the version is
    damaged.
    """
    manifest = read_manifest(root, version)
    check_version(root, manifest)
    dataset = manifest["dataset"]
    config = TrainingConfig(**manifest["configuration"])
    with artifacts_lock(artifacts_dir):
        copies = {split: _copy(_stored_data(manifest, artifacts_dir, split), scratch) for split in SPLITS}
    train_split = validate.fn(copies["train"], dataset, scratch)
    test_split = validate.fn(copies["test"], dataset, scratch, train_split)
    prepared = prepare.fn(train_split, test_split, dataset, config.validation_size, config.seed, scratch)
    # A GPU sums in another order: only a CPU reproduces the bits of a version that was trained on a CPU.
    device: DeviceChoice = "cpu" if manifest["device"]["kind"] == "cpu" else "auto"
    trained = train.fn(prepared, config, scratch, device)
    correct, correct_before = (
        run_stored_model(folder, prepared.record.path).right
        for folder in (trained.record.path, version_folder(root, version))
    )
    expected = manifest["files"][WEIGHTS_NAME]["sha256"]
    return {
        "version": version,
        "identical": trained.weights_sha256 == expected,
        "weights_sha256": {"expected": expected, "found": trained.weights_sha256},
        "test_accuracy": {"expected": float(correct_before.mean()), "found": float(correct.mean())},
        "paired": asdict(mcnemar(correct, correct_before)),
        "differs": _differences(manifest, trained.record, trained.device.model_dump()),
    }


def _stored_data(manifest: Mapping[str, Any], artifacts_dir: Path, split: Split) -> ParquetSplit:
    """Return the Parquet of the manifest from the output of ingest, after checking its digest."""
    entry = next(stage for stage in manifest["lineage"] if stage["stage"] == "ingest" and stage["split"] == split)
    facts = manifest["data"][split]
    folder = artifacts_dir / "data" / entry["key"][:16]
    if not folder.is_dir():
        raise DataUnavailable(
            f"The {split} data of version {manifest['version']} is missing: expected {folder}. Put {facts['file']} "
            f"with sha256 {facts['csv_sha256']} into the data folder and run `fashion-ann train` to ingest it again."
        )
    read_stage(folder)
    path = folder / f"{split}.parquet"
    sha256 = sha256_file(path)
    if sha256 != facts["parquet_sha256"]:
        raise StoredArtifactError(f"{path}: expected sha256 {facts['parquet_sha256']}, received {sha256}.")
    files = tuple(CsvFile(path=Path(entry["file"]), sha256=entry["sha256"]) for entry in facts["csv_files"])
    return ParquetSplit(
        record=StageRecord(path=folder, **{name: value for name, value in entry.items() if name != "split"}),
        split=split,
        path=path,
        sha256=facts["parquet_sha256"],
        rows=facts["rows"],
        quarantined=facts["quarantined"],
        origin=facts["origin"],
        source=CsvSplit(split=split, files=files, origin=facts["origin"]),
    )


def _copy(data: ParquetSplit, scratch: Path) -> ParquetSplit:
    folder = scratch / "data" / data.split
    folder.mkdir(parents=True, exist_ok=True)
    path = Path(shutil.copyfile(data.path, folder / data.path.name))
    return data.model_copy(update={"path": path})


def _differences(manifest: Mapping[str, Any], record: StageRecord, device: Mapping[str, Any]) -> list[str]:
    trained = next(stage for stage in manifest["lineage"] if stage["stage"] == "train")
    differs = []
    if trained["key"] != record.key:
        differs.append("code, lock or inputs of the train stage")
    for name, before in manifest["device"].items():
        if before != device.get(name):
            differs.append(f"device: {name} {before}, now {device.get(name)}")
    return differs
