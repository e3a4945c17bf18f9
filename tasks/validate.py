"""Validate a split against its contract, with Great Expectations."""

import hashlib
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from pydantic import TypeAdapter

from schemas.contract import DatasetContract, Split, contract_of
from schemas.errors import CellProblem, DataContractError
from schemas.layout import PROFILE_NAME, RESULT_NAME, SKETCHES_NAME, TEST_IN_TRAIN_NAME, validation_folder
from schemas.references import CheckResult, DuplicateReport, ParquetPart, ParquetSplit, StageRecord, ValidatedSplit
from tasks.checks.chunks import ONE_FILE, Shards
from tasks.checks.image_profile import ImageProfile, read_profile
from tasks.checks.near_duplicates import Sketches, read_in_train
from tasks.checks.scan import FileScan, merge_scans, scan_file
from tasks.checks.suite import validate_split
from tasks.checks.summary import summarize
from tasks.registry.store import ModelStore
from tasks.reports.data_docs import write_data_docs
from tasks.runtime.files import sha256_file
from tasks.runtime.materialize import file_here, materialize
from tasks.runtime.prefect_artifacts import publish_markdown, publish_table
from tasks.runtime.stage_cache import is_built, read_record, run_stage
from tasks.runtime.stages import SCAN_SHARD, VALIDATE
from tasks.runtime.stored_file import read_json, read_stored
from tasks.runtime.task_runs import artifacts_here, run_per_shard, shard_artifacts

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


@task(name="scan shard", task_run_name="scan {split} {part.source}", cache_policy=NO_CACHE)
def scan_shard(part: ParquetPart, split: Split, dataset: str, artifacts_dir: Path | None) -> StageRecord:
    """Read every value of one Parquet file of a split, and return the record of a `FileScan`.

    artifacts_dir: see `shard_artifacts`.
    """
    contract = contract_of(dataset)

    def build(folder: Path) -> dict[str, Any]:
        with file_here(part, folder, artifacts_dir) as here:
            return scan_file(here.path, contract).write(folder)

    def parse(record: StageRecord, facts: dict[str, Any]) -> StageRecord:
        FileScan.read(record.path, facts, contract)
        return record

    with artifacts_here(artifacts_dir) as artifacts:
        return run_stage(SCAN_SHARD.outputs(artifacts), SCAN_SHARD, _shard_inputs(part, contract), build, parse)


def _shard_inputs(part: ParquetPart, contract: DatasetContract) -> dict[str, Any]:
    reference = _reference(contract)
    return {"dataset": contract.name, "contract": contract.digest, "part": part.sha256, "reference": reference}


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
    train_content = (data if train is None else train.data).content
    store = ModelStore.of(artifacts_dir, dataset).refresh()
    baseline, champion = _champion_profile(store, train_content, contract)

    def parse(record: StageRecord, stored: dict[str, Any]) -> tuple[StageRecord, _Facts]:
        facts = _facts(stored)
        summarize(read_json(record.path / RESULT_NAME))
        if not facts.broken:
            read_profile(read_stored(record.path / PROFILE_NAME), contract)
            Sketches.load(record.path / SKETCHES_NAME, data.rows, contract)
            if train is not None:
                read_in_train(record.path / TEST_IN_TRAIN_NAME, data.rows)
        return record, facts

    current = [sha256_file(part.path) for part in data.parts]

    def shard_is_built(call: Mapping[str, Any]) -> bool:
        return is_built(SCAN_SHARD, call["artifacts_dir"], _shard_inputs(call["part"], contract))

    def build(folder: Path) -> dict[str, Any]:
        common = {"split": data.split, "dataset": dataset, "artifacts_dir": shard_artifacts(artifacts_dir)}
        # The digests of the current files, so that a file changed in place is scanned again.
        parts = [part.model_copy(update={"sha256": sha256}) for part, sha256 in zip(data.parts, current, strict=True)]
        calls = [{"part": part, **common} for part in parts]
        records = run_per_shard(VALIDATE.name, data.split, scan_shard, calls, shard_is_built)
        scans = _read_scans((materialize(record, artifacts_dir) for record in records), contract)
        return validate_split(
            merge_scans(scans, contract),
            data.files,
            contract,
            data.split,
            exact_rows=exact_rows,
            champion=champion,
            train=None if train is None else (_sketches(train, contract), train.data.files),
            shards=_shards(data),
            train_shards=ONE_FILE if train is None else _shards(train.data),
        ).write(folder)

    record, facts = run_stage(
        validation_folder(data.path),
        VALIDATE,
        {
            "dataset": dataset,
            "contract": contract.digest,
            "split": data.split,
            # The rows, however they are divided into files. A file changed in place is validated again.
            "data": data.content if current == [part.sha256 for part in data.parts] else current,
            "exact_rows": exact_rows,
            "reference": _reference(contract),
            "champion": None if baseline is None else hashlib.sha256(baseline).hexdigest(),
            "train": None if train is None else train.data.content,
            # The result names shards.
            "shards": [_inputs_of_shards(split) for split in (data, None if train is None else train.data)],
        },
        build,
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


def _reference(contract: DatasetContract) -> str | None:
    return None if contract.reference is None else sha256_file(contract.reference)


def _shards(data: ParquetSplit) -> Shards:
    return Shards([part.source for part in data.parts], [part.rows for part in data.parts])


def _inputs_of_shards(data: ParquetSplit | None) -> list[list[Any]] | None:
    """Return name and rows of each shard. None for one file, whose name is in no result."""
    if data is None or len(data.parts) == 1:
        return None
    return [[part.source, part.rows] for part in data.parts]


def _sketches(split: ValidatedSplit, contract: DatasetContract) -> Sketches:
    return Sketches.load(split.record.path / SKETCHES_NAME, split.data.rows, contract)


def _read_scans(records: Iterable[StageRecord], contract: DatasetContract) -> Iterator[FileScan]:
    for record in records:
        yield FileScan.read(record.path, read_record(record.path)["facts"], contract)


def _facts(stored: dict[str, Any]) -> _Facts:
    facts = TypeAdapter(_Facts).validate_python(stored)
    _ = facts.met_or_warned
    return facts


def _champion_profile(
    store: ModelStore, train_content: str, contract: DatasetContract
) -> tuple[bytes | None, ImageProfile | None]:
    """Return `ModelStore.baseline_profile` as bytes and parsed. Logs one that cannot be read."""
    content = store.baseline_profile(train_content)
    try:
        return content, None if content is None else read_profile(content, contract)
    except ValueError as error:
        logger.warning("drift from the champion's train data is not measured: %s", error)
        return None, None
