"""Validate: a split against its contract, with Great Expectations."""

import hashlib
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from prefect import task

from schemas.contract import contract_of
from schemas.errors import CellProblem, DataContractError
from schemas.layout import PROFILE_NAME, RESULT_NAME, SKETCHES_NAME, TEST_IN_TRAIN_NAME, validation_folder
from schemas.references import CheckResult, ParquetSplit, ValidatedSplit
from tasks.checks.image_profile import read_profile, write_profile
from tasks.checks.near_duplicates import Sketches, duplicate_report
from tasks.checks.suite import summarize, validate_parquet
from tasks.registry.store import ModelStore
from tasks.reports.data_docs import write_data_docs
from tasks.runtime.files import sha256_file, write_json
from tasks.runtime.fingerprint import Stage
from tasks.runtime.prefect_artifacts import publish_markdown, publish_table
from tasks.runtime.stage_cache import run_stage

if TYPE_CHECKING:
    pass

logger = logging.getLogger(__name__)


STAGE = Stage("validate", core=("tasks.checks.suite",))


@task(name="validate", task_run_name="validate {data.split}")
def validate(
    data: ParquetSplit, dataset: str, artifacts_dir: Path, train: ValidatedSplit | None = None
) -> ValidatedSplit:
    """Judge a split; the whole result lies beside the data.

    train: what the test split is compared with. What breaks the bound of a warning alone is logged, and stands in
    ``warnings``. Raises `DataContractError` naming each other broken expectation. A refused verdict is kept, too.
    """
    contract = contract_of(dataset)
    exact_rows = contract.published[data.split].rows if data.origin == "fetched" else None
    train_csv = (data if train is None else train.data).source.sha256
    baseline = ModelStore.of(artifacts_dir, dataset).baseline_profile(train_csv)

    def build(folder: Path) -> dict[str, Any]:
        beside = None if train is None else (Sketches.load(train.record.path / SKETCHES_NAME), train.data.path)
        validated = validate_parquet(
            data.path,
            contract,
            data.split,
            exact_rows=exact_rows,
            champion=None if baseline is None else read_profile(baseline),
            train=beside,
        )
        write_json(folder / RESULT_NAME, validated.result)
        duplicates = None
        if validated.profile is not None and validated.sketches is not None:
            write_profile(folder / PROFILE_NAME, validated.profile)
            validated.sketches.save(folder / SKETCHES_NAME)
            if beside is not None and validated.in_train is not None:
                np.save(folder / TEST_IN_TRAIN_NAME, validated.in_train)
                duplicates = duplicate_report(beside[0], validated.sketches, validated.in_train).model_dump()
        return {**summarize(validated.result), "duplicates": duplicates}

    record, facts = run_stage(
        validation_folder(data.path),
        STAGE,
        {
            "dataset": dataset,
            "split": data.split,
            # The digest of the file as it is now: an earlier verdict says nothing of one that was changed since.
            "data": sha256_file(data.path),
            "exact_rows": exact_rows,
            "reference": None if contract.reference is None else sha256_file(contract.reference),
            "champion": None if baseline is None else hashlib.sha256(baseline).hexdigest(),
            "train": None if train is None else train.data.sha256,
        },
        build,
    )
    docs = write_data_docs(artifacts_dir, dataset, data.split, record.path / RESULT_NAME, record.path.name)
    publish_markdown(
        f"{dataset}-{data.split}-data-docs",
        f"[Data Docs]({docs.as_uri()}): `{docs}`\n\nThe whole verdict: `{record.path / RESULT_NAME}`\n",
        f"{data.split}: what Great Expectations says, as pages",
    )
    publish_table(
        f"{dataset}-{data.split}-validation",
        facts["rows"],
        f"{data.split}: {data.rows} rows judged by Great Expectations, Data Docs in {docs}",
    )
    for line in facts["warnings"]:
        logger.warning("%s split: %s", data.split, line)
    if facts["broken"]:
        raise DataContractError(
            f"{data.split} split ({data.source.name}) breaks its contract: {'; '.join(facts['broken'])}. "
            f"The whole verdict is in {record.path / RESULT_NAME}. Mend the data and run again.",
            problems=[CellProblem(**problem) for problem in facts["problems"]],
        )
    return ValidatedSplit(
        record=record,
        data=data,
        result=record.path / RESULT_NAME,
        expectations=len(facts["rows"]),
        checks=tuple(CheckResult(**check) for check in facts["checks"]),
        warnings=tuple(facts["warnings"]),
        duplicates=facts["duplicates"],
    )
