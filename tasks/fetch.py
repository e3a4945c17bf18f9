"""Fetch: the CSVs of a dataset."""

from pathlib import Path

from prefect import task

from schemas.contract import Split, contract_of
from schemas.references import CsvSplit
from tasks.data.published_data import fetch_data
from tasks.runtime.events import StageStarted, emit


@task(name="fetch", task_run_name="fetch")
def fetch(dataset: str, data_dir: Path, present_alone: bool = False) -> dict[Split, CsvSplit]:
    """The CSVs of ``dataset``, see `fetch_data`; with ``present_alone`` those that are there, and no others.

    No retries: when this fails, each source has been tried, and a wrong digest stays wrong.
    """
    emit(StageStarted("fetch", None))
    return fetch_data(contract_of(dataset), data_dir, sources=() if present_alone else None)
