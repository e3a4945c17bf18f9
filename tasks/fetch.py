"""Fetch: the CSVs of a dataset."""

import logging
import time
from collections.abc import Sequence
from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE

from schemas.config import artifacts_folder, as_address
from schemas.contract import SPLITS, Split, contract_of
from schemas.references import CsvSplit
from tasks.data.missing_data import likely_names, may_fetch
from tasks.data.published_data import fetch_data, find_data, require_supplied
from tasks.data.remote_folder import local_data_folder
from tasks.runtime.events import StageFinished, StageStarted, emit
from tasks.runtime.stages import FETCH

logger = logging.getLogger(__name__)


@task(name="fetch", task_run_name="fetch", cache_policy=NO_CACHE)
def fetch(
    dataset: str,
    data_dir: Path,
    opted_in: bool = False,
    announced: bool = False,
    splits: Sequence[Split] = SPLITS,
    artifacts_dir: Path | None = None,
) -> dict[Split, CsvSplit]:
    """Return the CSVs of ``dataset`` in ``data_dir``, or download the published ones if there are none.

    data_dir: a folder, or an address of object storage, whose CSVs are copied into ``artifacts_dir``.
    opted_in: download into any folder. Otherwise only `tasks.data.missing_data.may_fetch` allows a download.
    announced: the run is for data that was announced, so nothing is downloaded.
    splits: those that must be present. Files of others are not opened.

    The task has no retries: it has tried every source, and a wrong digest stays wrong.
    """
    contract, address = contract_of(dataset), as_address(data_dir)
    emit(StageStarted(FETCH.name, None))
    started = time.monotonic()
    data_dir = local_data_folder(data_dir, artifacts_folder(artifacts_dir))
    present = find_data(contract, data_dir, splits)
    may_download = may_fetch(contract, data_dir) or (opted_in and contract.can_be_fetched and address is None)
    if present is None and (announced or not may_download):
        require_supplied(contract, data_dir)
    csvs = present or fetch_data(contract, data_dir)
    for name, intended in likely_names(contract, data_dir).items():
        if name.lower().endswith((".csv", ".csv.gz")):
            logger.warning("%s is not read: did you mean %s?", data_dir / name, intended)
    facts: dict[str, str] = {split: csv.origin for split, csv in csvs.items()}
    emit(StageFinished(FETCH.name, None, present is not None, time.monotonic() - started, facts))
    return csvs
