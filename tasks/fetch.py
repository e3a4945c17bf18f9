"""Fetch: the CSVs of a dataset."""

import time
from pathlib import Path

from prefect import task

from schemas.contract import Split, contract_of
from schemas.references import CsvSplit
from tasks.data.published_data import fetch_data, find_data
from tasks.runtime.events import StageFinished, StageStarted, emit


@task(name="fetch", task_run_name="fetch")
def fetch(dataset: str, data_dir: Path, download: bool = True) -> dict[Split, CsvSplit]:
    """Return the CSVs of ``dataset`` in ``data_dir``; with ``download``, fetch them if there are none.

    The task has no retries: it has tried every source, and a wrong digest stays wrong.
    """
    contract = contract_of(dataset)
    emit(StageStarted("fetch", None))
    started = time.monotonic()
    present = find_data(contract, data_dir)
    csvs = present or fetch_data(contract, data_dir, sources=None if download else ())
    facts: dict[str, str] = {split: csv.origin for split, csv in csvs.items()}
    emit(StageFinished("fetch", None, present is not None, time.monotonic() - started, facts))
    return csvs
