"""Ingest: convert the CSVs of a split to Parquet."""

import logging
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from pydantic import TypeAdapter

from schemas.config import BadRows
from schemas.contract import contract_of
from schemas.layout import QUARANTINE_NAME
from schemas.references import CsvSplit, ParquetSplit, StageRecord
from tasks.checks.expectations import import_in_background
from tasks.data.csv_to_parquet import IngestFacts, check_parquet, ingest_csv, quarantined_share, require_budget
from tasks.data.quarantine import quarantine_path
from tasks.runtime.files import PRIVATE_FILE, atomic_write, sha256_file
from tasks.runtime.stage_cache import run_stage
from tasks.runtime.stages import INGEST

logger = logging.getLogger(__name__)


@task(name="ingest", task_run_name="ingest {csv.split}", cache_policy=NO_CACHE)
def ingest(csv: CsvSplit, dataset: str, artifacts_dir: Path, bad_rows: BadRows = 0) -> ParquetSplit:
    """Convert the CSVs of a split to ``<split>.parquet`` in a stage folder under ``artifacts_dir/data``.

    Bad rows are written to `tasks.data.quarantine.quarantine_path`, whether or not ``bad_rows`` allows so many.

    Raises `DataContractError` as `ingest_csv` does. A cached output is rejected too if ``bad_rows`` is now too small.
    """
    contract = contract_of(dataset)
    name = f"{csv.split}.parquet"
    quarantine = quarantine_path(artifacts_dir, csv)

    def build(folder: Path) -> Mapping[str, Any]:
        import_in_background()
        facts = ingest_csv(csv, folder / name, quarantine, contract, bad_rows)
        if facts.quarantined:
            # The stage's copy is verified with the stage. The other one may get lost.
            (folder / QUARANTINE_NAME).touch(PRIVATE_FILE)
            shutil.copyfile(quarantine, folder / QUARANTINE_NAME)
        logger.debug("%s: %d rows to Parquet", csv.name, facts.rows)
        return {**asdict(facts), "sha256": sha256_file(folder / name)}

    # Without the budget, which decides only whether there is an output. File names are part of the facts.
    names = [file.path.name for file in csv.files]
    inputs = {"csv": csv.sha256, "files": names, "split": csv.split, "origin": csv.origin}
    inputs |= {"dataset": dataset, "contract": contract.digest}

    def parse(record: StageRecord, stored: dict[str, Any]) -> tuple[IngestFacts, ParquetSplit]:
        facts = TypeAdapter(IngestFacts).validate_python(stored)
        check_parquet(record.path / name, contract, facts.rows)
        return facts, ParquetSplit(
            record=record,
            split=csv.split,
            path=record.path / name,
            sha256=stored["sha256"],
            rows=facts.rows,
            quarantined=facts.quarantined,
            origin=csv.origin,
            source=csv,
        )

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
