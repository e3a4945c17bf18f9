"""Prepare: write validated splits as the arrays that training reads."""

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from schemas.contract import DatasetContract, Split, contract_of
from schemas.errors import StoredArtifactError
from schemas.layout import SCALE_NAME, TEST_IN_TRAIN_NAME, VALIDATION_ROWS_NAME, images_name, labels_name
from schemas.references import ParquetPart, PreparedData, StageRecord, ValidatedSplit
from tasks.checks.near_duplicates import read_in_train
from tasks.data.splits import check_arrays, check_splits, write_held_out, write_part
from tasks.runtime.files import digest_of, link_or_copy, sha256_file
from tasks.runtime.materialize import file_here, materialize
from tasks.runtime.stage_cache import is_built, run_stage
from tasks.runtime.stages import PREPARE, PREPARE_SHARD
from tasks.runtime.task_runs import artifacts_here, run_per_shard, shard_artifacts

logger = logging.getLogger(__name__)


@task(name="prepare shard", task_run_name="prepare {split} {part.source}", cache_policy=NO_CACHE)
def prepare_shard(part: ParquetPart, split: Split, dataset: str, artifacts_dir: Path | None) -> StageRecord:
    """Write the arrays of one Parquet file of a split. They do not depend on the rows that are held out.

    artifacts_dir: see `shard_artifacts`.
    """
    contract = contract_of(dataset)

    def build(folder: Path) -> dict[str, Any]:
        with file_here(part, folder, artifacts_dir) as here:
            write_part(here.path, folder, 0, contract)
        return {"rows": part.rows}

    def parse(record: StageRecord, facts: dict[str, Any]) -> StageRecord:
        check_arrays(record.path, contract, facts["rows"])
        return record

    with artifacts_here(artifacts_dir) as artifacts:
        return run_stage(PREPARE_SHARD.outputs(artifacts), PREPARE_SHARD, _shard_inputs(part, contract), build, parse)


def _shard_inputs(part: ParquetPart, contract: DatasetContract) -> dict[str, Any]:
    return {"dataset": contract.name, "contract": contract.digest, "part": part.sha256}


@task(name="prepare", task_run_name="prepare", cache_policy=NO_CACHE)
def prepare(
    train: ValidatedSplit,
    test: ValidatedSplit | None,
    dataset: str,
    validation_size: int,
    seed: int,
    artifacts_dir: Path,
) -> PreparedData:
    """Write the arrays of train, validation and test, and a list of test images that are also in train.

    ``test`` must have been validated together with ``train``. None leaves it out, for trainings that are not evaluated.

    Raises `DataContractError` if a class has too few rows for both train and validation, and `StoredArtifactError` if a
    Parquet was changed.
    """
    contract = contract_of(dataset)
    train, test = materialize(train, artifacts_dir), materialize(test, artifacts_dir)
    duplicates = None if test is None else test.duplicates
    if test is not None and duplicates is None:
        raise TypeError("Expected a test split that was validated together with its train split.")
    in_train = None if test is None else test.record.path / TEST_IN_TRAIN_NAME
    splits = [train.data] if test is None else [train.data, test.data]
    for part in (part for data in splits for part in data.parts):
        if (actual := sha256_file(part.path)) != part.sha256:
            raise StoredArtifactError(
                f"{part.path} was changed after it was ingested: expected sha256 {part.sha256}, received {actual}. "
                "Run again to rebuild it."
            )

    def shard_is_built(call: Mapping[str, Any]) -> bool:
        return is_built(PREPARE_SHARD, call["artifacts_dir"], _shard_inputs(call["part"], contract))

    def build(folder: Path) -> dict[str, Any]:
        common = {"dataset": dataset, "artifacts_dir": shard_artifacts(artifacts_dir)}
        calls = [{"part": part, "split": data.split, **common} for data in splits for part in data.parts]
        written = iter(run_per_shard(PREPARE.name, None, prepare_shard, calls, shard_is_built))
        for data in splits:
            (folder / data.split).mkdir()
            for place in range(len(data.parts)):
                source = materialize(next(written), artifacts_dir).path
                for name in (images_name, labels_name):
                    link_or_copy(source / name(0), folder / data.split / name(place))
        rows = write_held_out(folder, contract, validation_size, seed)
        if in_train is not None:
            shutil.copyfile(in_train, folder / TEST_IN_TRAIN_NAME)
        return {"dataset": dataset, **rows, "duplicates": None if duplicates is None else duplicates.model_dump()}

    inputs = {
        "dataset": dataset,
        "contract": contract.digest,
        "train": train.data.content,
        "test": None if test is None else test.data.content,
        "test_in_train": None if in_train is None else sha256_file(in_train),
        "validation_size": validation_size,
        "seed": seed,
    }

    def parse(record: StageRecord, facts: dict[str, Any]) -> PreparedData:
        files = (VALIDATION_ROWS_NAME, SCALE_NAME, *(() if test is None else (TEST_IN_TRAIN_NAME,)))
        content = {name: inputs[name] for name in ("dataset", "train", "test")}
        sha256 = digest_of({**content, **{name: sha256_file(record.path / name) for name in files}})
        prepared = PreparedData(record=record, sha256=sha256, **facts)
        rows = {"train": prepared.train_rows, "validation": prepared.validation_rows}
        check_splits(record.path, contract, rows if test is None else {**rows, "test": prepared.test_rows})
        if test is not None:
            read_in_train(record.path / TEST_IN_TRAIN_NAME, prepared.test_rows)
        return prepared

    prepared = run_stage(PREPARE.outputs(artifacts_dir), PREPARE, inputs, build, parse)
    if prepared.validation_rows < validation_size:
        message = "validation_size %d is more than a fifth of %d train rows: validation has %d"
        logger.warning(message, validation_size, train.data.rows, prepared.validation_rows)
    return prepared
