"""Prepare: write validated splits as the arrays that training reads."""

import logging
import shutil
from pathlib import Path
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from schemas.contract import contract_of
from schemas.errors import StoredArtifactError
from schemas.layout import SCALE_NAME, TEST_IN_TRAIN_NAME, VALIDATION_ROWS_NAME
from schemas.references import PreparedData, StageRecord, ValidatedSplit
from tasks.checks.near_duplicates import read_in_train
from tasks.data.splits import check_splits, write_splits
from tasks.runtime.files import digest_of, sha256_file
from tasks.runtime.materialize import materialize
from tasks.runtime.stage_cache import run_stage
from tasks.runtime.stages import PREPARE

logger = logging.getLogger(__name__)


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
    for data in (train.data, *(() if test is None else (test.data,))):
        if (actual := sha256_file(data.path)) != data.sha256:
            raise StoredArtifactError(
                f"{data.path} was changed after it was ingested: expected sha256 {data.sha256}, received {actual}. "
                "Run again to rebuild it."
            )

    def build(folder: Path) -> dict[str, Any]:
        tests = () if test is None else (test.data.path,)
        rows = write_splits((train.data.path,), tests, folder, contract, validation_size, seed)
        if in_train is not None:
            shutil.copyfile(in_train, folder / TEST_IN_TRAIN_NAME)
        return {"dataset": dataset, **rows, "duplicates": None if duplicates is None else duplicates.model_dump()}

    inputs = {
        "dataset": dataset,
        "contract": contract.digest,
        "train": train.data.sha256,
        "test": None if test is None else test.data.sha256,
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
