"""Prepare: validated Parquet to the arrays that training reads."""

import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from prefect import task

from schemas.contract import contract_of
from schemas.errors import StoredArtifactError
from schemas.layout import TEST_IN_TRAIN_NAME, Artifacts
from schemas.references import PreparedData, ValidatedSplit
from tasks.data.splits import read_labels, stratified_split, write_arrays
from tasks.runtime.files import sha256_file
from tasks.runtime.fingerprint import Stage
from tasks.runtime.stage_cache import run_stage

logger = logging.getLogger(__name__)

STAGE = Stage("prepare", core=("tasks.data.splits",))


@task(name="prepare", task_run_name="prepare")
def prepare(
    train: ValidatedSplit, test: ValidatedSplit, dataset: str, validation_size: int, seed: int, artifacts_dir: Path
) -> PreparedData:
    """Write the arrays of the three splits, and which test images stand in train.

    ``test`` is one that was judged beside ``train``. Raises `DataContractError` when a class has too few rows for both
    train and validation.
    """
    contract = contract_of(dataset)
    if test.duplicates is None:
        raise TypeError("The test split was expected to be judged beside its train split.")
    duplicates = test.duplicates
    for data in (train.data, test.data):
        if (found := sha256_file(data.path)) != data.sha256:
            raise StoredArtifactError(
                f"{data.path} was changed after it was ingested: expected sha256 {data.sha256}, found {found}. "
                "Run again: it will be made anew."
            )

    def build(folder: Path) -> dict[str, Any]:
        train_labels, test_labels = (read_labels(data.path, contract) for data in (train.data, test.data))
        kept, held_out = stratified_split(train_labels, validation_size, seed)
        write_arrays(train.data.path, {"train": kept, "validation": held_out}, folder, contract)
        write_arrays(test.data.path, {"test": np.arange(len(test_labels))}, folder, contract)
        shutil.copyfile(test.record.path / TEST_IN_TRAIN_NAME, folder / TEST_IN_TRAIN_NAME)
        return {
            "dataset": dataset,
            "train_rows": len(kept),
            "validation_rows": len(held_out),
            "test_rows": len(test_labels),
            "duplicates": duplicates.model_dump(),
        }

    record, facts = run_stage(
        Artifacts(artifacts_dir).prepared,
        STAGE,
        {
            "dataset": dataset,
            "train": train.data.sha256,
            "test": test.data.sha256,
            "test_in_train": sha256_file(test.record.path / TEST_IN_TRAIN_NAME),
            "validation_size": validation_size,
            "seed": seed,
        },
        build,
    )
    prepared = PreparedData(record=record, **facts)
    if prepared.validation_rows < validation_size:
        logger.warning(
            "validation_size %d is more than a fifth of %d train rows: %d are held out",
            validation_size,
            train.data.rows,
            prepared.validation_rows,
        )
    return prepared
