"""Ingest: convert the CSVs of a split to Parquet."""

import logging
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from pydantic import TypeAdapter

from schemas.config import BadRows
from schemas.contract import DatasetContract, Split, contract_of
from schemas.layout import PART_NAME, QUARANTINE_NAME
from schemas.references import CsvFile, CsvSplit, ParquetSplit, StageRecord
from tasks.checks.expectations import import_in_background
from tasks.data.csv_to_parquet import ShardFacts, check_parquet, convert_csv
from tasks.data.parquet_split import (
    IngestFacts,
    join_shards,
    quarantined_share,
    read_facts,
    reject_changes,
    require_budget,
    split_reference,
)
from tasks.data.quarantine import quarantine_path
from tasks.runtime.files import PRIVATE_FILE, atomic_write, sha256_file
from tasks.runtime.materialize import file_here, materialize, send_csv
from tasks.runtime.stage_cache import is_built, is_in_remote, read_record, run_stage
from tasks.runtime.stages import INGEST, INGEST_SHARD
from tasks.runtime.task_runs import artifacts_here, elsewhere, run_per_shard, shard_artifacts

logger = logging.getLogger(__name__)


@task(name="ingest shard", task_run_name="ingest {split} {csv.path.name}", cache_policy=NO_CACHE)
def ingest_shard(
    csv: CsvFile, split: Split, dataset: str, artifacts_dir: Path | None
) -> tuple[StageRecord, ShardFacts]:
    """Convert one CSV to Parquet in a stage folder under ``data`` of the artifacts folder.

    artifacts_dir: see `shard_artifacts`.

    Raises `DataContractError` as `convert_csv` does. Bad rows are counted; the budget is that of the split.
    """
    contract = contract_of(dataset)

    def build(folder: Path) -> Mapping[str, Any]:
        with file_here(csv, folder, artifacts_dir) as here:
            facts = convert_csv(here, split, folder, contract)
        logger.debug("%s: %d rows to Parquet", csv.path.name, facts.rows)
        return asdict(facts)

    def parse(record: StageRecord, stored: dict[str, Any]) -> tuple[StageRecord, ShardFacts]:
        facts = TypeAdapter(ShardFacts).validate_python(stored)
        check_parquet(record.path / PART_NAME, contract, facts.rows)
        return record, facts

    with artifacts_here(artifacts_dir) as artifacts:
        return run_stage(
            INGEST_SHARD.outputs(artifacts), INGEST_SHARD, _shard_inputs(csv, split, contract), build, parse
        )


def _shard_inputs(csv: CsvFile, split: Split, contract: DatasetContract) -> dict[str, Any]:
    # Without the name, so that a renamed CSV is the same shard.
    return {"csv": csv.sha256, "split": split, "dataset": contract.name, "contract": contract.digest}


@task(name="ingest", task_run_name="ingest {csv.split}", cache_policy=NO_CACHE)
def ingest(csv: CsvSplit, dataset: str, artifacts_dir: Path, bad_rows: BadRows = 0) -> ParquetSplit:
    """Convert the CSVs of a split to the folder ``<split>`` in a stage folder under ``artifacts_dir/data``.

    It has one Parquet per CSV, each made by `ingest_shard`. Bad rows are written to
    `tasks.data.quarantine.quarantine_path`, whether or not ``bad_rows`` allows so many.

    Raises `DataContractError` as `ingest_shard`, `reject_changes` and `join_shards` do. A cached output is rejected too
    if ``bad_rows`` is now too small.
    """
    contract = contract_of(dataset)
    quarantine = quarantine_path(artifacts_dir, csv)

    def calls() -> Iterator[dict[str, Any]]:
        common = {"split": csv.split, "dataset": dataset, "artifacts_dir": shard_artifacts(artifacts_dir)}
        for file in csv.files:
            if elsewhere() and not is_in_remote(INGEST_SHARD, _shard_inputs(file, csv.split, contract)):
                send_csv(file)
            yield {"csv": file, **common}

    def shard_is_built(call: Mapping[str, Any]) -> bool:
        return is_built(INGEST_SHARD, call["artifacts_dir"], _shard_inputs(call["csv"], csv.split, contract))

    def build(folder: Path) -> Mapping[str, Any]:
        import_in_background()
        with reject_changes(csv):
            shards = run_per_shard(INGEST.name, csv.split, ingest_shard, calls(), shard_is_built)
        shards = [(materialize(record, artifacts_dir), facts) for record, facts in shards]
        parts = [(record.path, facts) for record, facts in shards]
        facts = join_shards(csv, parts, folder / csv.split, quarantine, contract, bad_rows)
        if facts.quarantined:
            # The stage's copy is verified with the stage. The other one may get lost.
            (folder / QUARANTINE_NAME).touch(PRIVATE_FILE)
            shutil.copyfile(quarantine, folder / QUARANTINE_NAME)
        digests = [read_record(record.path)["files"][PART_NAME]["sha256"] for record, _ in shards]
        return {**asdict(facts), "part_sha256": digests, "shards": [record.key for record, _ in shards]}

    # Without the budget, which decides only whether there is an output. File names are part of the facts.
    names = [file.path.name for file in csv.files]
    inputs: dict[str, Any] = {"csv": [file.sha256 for file in csv.files], "files": names, "split": csv.split}
    inputs |= {"origin": csv.origin, "dataset": dataset, "contract": contract.digest}

    def parse(record: StageRecord, stored: dict[str, Any]) -> tuple[IngestFacts, ParquetSplit]:
        facts = read_facts(stored)
        return facts, split_reference(record, facts, stored["part_sha256"], csv, contract)

    facts, parquet = run_stage(INGEST.outputs(artifacts_dir), INGEST, inputs, build, parse)
    for sentence in facts.reordered:
        logger.warning("%s", sentence)
    if facts.quarantined:
        own = parquet.record.path / QUARANTINE_NAME
        # Lost, damaged, or with the same rows under other file names.
        if not quarantine.exists() or sha256_file(quarantine) != sha256_file(own):
            quarantine.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(quarantine, mode=PRIVATE_FILE) as temporary:
                shutil.copyfile(own, temporary)
        require_budget(csv, facts, bad_rows, quarantine)
        message = "%s: %s, --bad-rows allows %s. The bad rows are in %s. The first: %s"
        logger.warning(message, csv.name, quarantined_share(facts), bad_rows, quarantine, facts.problems[0])
    return parquet
