"""Validate a split against its contract, with Great Expectations."""

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from pydantic import TypeAdapter

from schemas.contract import DatasetContract, contract_of
from schemas.errors import CellProblem, DataContractError
from schemas.layout import PROFILE_NAME, RESULT_NAME, SKETCHES_NAME, TEST_IN_TRAIN_NAME, validation_folder
from schemas.references import CheckResult, DuplicateReport, ParquetSplit, StageRecord, ValidatedSplit
from tasks.checks.image_profile import ImageProfile, read_profile
from tasks.checks.near_duplicates import Sketches, read_in_train
from tasks.checks.suite import validate_parquet
from tasks.checks.summary import summarize
from tasks.registry.store import ModelStore
from tasks.reports.data_docs import write_data_docs
from tasks.runtime.files import sha256_file
from tasks.runtime.materialize import materialize
from tasks.runtime.prefect_artifacts import publish_markdown, publish_table
from tasks.runtime.stage_cache import run_stage
from tasks.runtime.stages import VALIDATE
from tasks.runtime.stored_file import read_json, read_stored

logger = logging.getLogger(__name__)

_TABLE_COLUMNS = ("result", "of", "figure", "bound", "severity", "expectation", "profile")


@dataclass(frozen=True)
class _Facts:
    """The facts of this stage. ``rows`` are those of a table."""

    rows: list[dict[str, Any]]
    warnings: tuple[str, ...]
    broken: tuple[str, ...]
    problems: tuple[CellProblem, ...]
    checks: list[dict[str, Any]]
    duplicates: DuplicateReport | None

    @property
    def met_or_warned(self) -> tuple[CheckResult, ...]:
        """Return the checks, of which one is broken only if the split is rejected."""
        return tuple(CheckResult(**check) for check in self.checks if check["result"] != "broken")


@task(name="validate", task_run_name="validate {data.split}", cache_policy=NO_CACHE)
def validate(
    data: ParquetSplit, dataset: str, artifacts_dir: Path, train: ValidatedSplit | None = None
) -> ValidatedSplit:
    """Validate a split and store the results with the data, also if the split is rejected.

    train: the split that a test split is compared with. A value beyond a warning bound is logged and returned in
    ``warnings``. Raises `DataContractError`, which lists every violation.
    """
    contract = contract_of(dataset)
    data, train = materialize(data, artifacts_dir), materialize(train, artifacts_dir)
    exact_rows = contract.published[data.split].rows if data.origin == "fetched" else None
    train_csv = (data if train is None else train.data).source.sha256
    baseline, champion = _champion_profile(ModelStore.of(artifacts_dir, dataset).refresh(), train_csv, contract)

    def parse(record: StageRecord, stored: dict[str, Any]) -> tuple[StageRecord, _Facts]:
        facts = _facts(stored)
        summarize(read_json(record.path / RESULT_NAME))
        if not facts.broken:
            read_profile(read_stored(record.path / PROFILE_NAME), contract)
            Sketches.load(record.path / SKETCHES_NAME, data.rows, contract)
            if train is not None:
                read_in_train(record.path / TEST_IN_TRAIN_NAME, data.rows)
        return record, facts

    record, facts = run_stage(
        validation_folder(data.path),
        VALIDATE,
        {
            "dataset": dataset,
            "contract": contract.digest,
            "split": data.split,
            # The digest of the current file, so that a file changed in place is validated again.
            "data": sha256_file(data.path),
            "exact_rows": exact_rows,
            "reference": None if contract.reference is None else sha256_file(contract.reference),
            "champion": None if baseline is None else hashlib.sha256(baseline).hexdigest(),
            "train": None if train is None else train.data.sha256,
        },
        lambda folder: validate_parquet(
            data.path,
            contract,
            data.split,
            exact_rows=exact_rows,
            champion=champion,
            train=None if train is None else (_sketches(train, contract), train.data.path),
        ).write(folder),
        parse,
    )
    result = record.path / RESULT_NAME
    docs = write_data_docs(
        artifacts_dir, dataset, data, result, record.path.name, None if train is None else train.data
    )
    publish_markdown(
        f"{dataset}-{data.split}-data-docs",
        f"[Data Docs]({docs.as_uri()}): `{docs}`\n\nAll results: `{result}`\n",
        f"{data.split}: Great Expectations' results as pages",
    )
    publish_table(
        f"{dataset}-{data.split}-validation",
        # The facts of a reused output have sorted keys. The first columns are on the screen.
        [{name: row[name] for name in _TABLE_COLUMNS} for row in facts.rows],
        f"{data.split}: {data.rows} rows validated by Great Expectations, Data Docs in {docs}",
    )
    if contract.reference is None:
        message = "%s has no baseline profile: images and labels are compared with none. Make it with `%s`"
        logger.warning(message, dataset, f"fashion-ann dataset profile {dataset}")
    for line in facts.warnings:
        logger.warning("%s split: %s", data.split, line)
    if facts.broken:
        raise DataContractError(
            f"{data.split} split ({data.source.name}) breaks its contract:\n"
            + "".join(f"  {sentence}\n" for sentence in facts.broken)
            + f"All results are in {result}. Fix the data and run again.",
            problems=facts.problems,
        )
    return ValidatedSplit(
        record=record,
        data=data,
        result=result,
        expectations=len(facts.rows),
        checks=facts.met_or_warned,
        warnings=facts.warnings,
        duplicates=facts.duplicates,
    )


def _sketches(split: ValidatedSplit, contract: DatasetContract) -> Sketches:
    return Sketches.load(split.record.path / SKETCHES_NAME, split.data.rows, contract)


def _facts(stored: dict[str, Any]) -> _Facts:
    facts = TypeAdapter(_Facts).validate_python(stored)
    _ = facts.met_or_warned
    return facts


def _champion_profile(
    store: ModelStore, train_csv: str, contract: DatasetContract
) -> tuple[bytes | None, ImageProfile | None]:
    """Return `ModelStore.baseline_profile` as bytes and parsed. Logs one that cannot be read."""
    content = store.baseline_profile(train_csv)
    try:
        return content, None if content is None else read_profile(content, contract)
    except ValueError as error:
        logger.warning("drift from the champion's train data is not measured: %s", error)
        return None, None
