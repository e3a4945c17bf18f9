"""Validate a split against its contract, with Great Expectations."""

import hashlib
import logging
from pathlib import Path

from prefect import task

from schemas.contract import contract_of
from schemas.errors import CellProblem, DataContractError, FashionAnnError
from schemas.layout import PROFILE_NAME, RESULT_NAME, SKETCHES_NAME, validation_folder
from schemas.references import CheckResult, ParquetSplit, ValidatedSplit
from tasks.checks.image_profile import read_profile
from tasks.checks.near_duplicates import Sketches
from tasks.checks.suite import validate_parquet
from tasks.registry.alias_log import champions, read_alias_log
from tasks.registry.store import read_file, read_manifest, store_folder, version_numbers
from tasks.reports.data_docs import write_data_docs
from tasks.runtime.files import sha256_file
from tasks.runtime.fingerprint import Stage
from tasks.runtime.prefect_artifacts import publish_markdown, publish_table
from tasks.runtime.stage_cache import run_stage

logger = logging.getLogger(__name__)

STAGE = Stage("validate", core=("tasks.checks.suite",))


@task(name="validate", task_run_name="validate {data.split}")
def validate(
    data: ParquetSplit, dataset: str, artifacts_dir: Path, train: ValidatedSplit | None = None
) -> ValidatedSplit:
    """Validate a split and store the results with the data, also if the split is rejected.

    train: the split that a test split is compared with. A value beyond a warning bound is logged and returned in
    ``warnings``. Raises `DataContractError`, which lists every violation.
    """
    contract = contract_of(dataset)
    exact_rows = contract.published[data.split].rows if data.origin == "fetched" else None
    champion = champion_profile(artifacts_dir, dataset, data if train is None else train.data)
    record, facts = run_stage(
        validation_folder(data.path),
        STAGE,
        {
            "dataset": dataset,
            "split": data.split,
            # The digest of the current file, so that a file changed in place is validated again.
            "data": sha256_file(data.path),
            "exact_rows": exact_rows,
            "reference": None if contract.reference is None else sha256_file(contract.reference),
            "champion": None if champion is None else hashlib.sha256(champion).hexdigest(),
            "train": None if train is None else train.data.sha256,
        },
        lambda folder: validate_parquet(
            data.path,
            contract,
            data.split,
            exact_rows=exact_rows,
            champion=None if champion is None else read_profile(champion),
            train=None if train is None else (Sketches.load(train.record.path / SKETCHES_NAME), train.data.path),
        ).write(folder),
    )
    result = record.path / RESULT_NAME
    docs = write_data_docs(artifacts_dir, dataset, data.split, result, record.path.name)
    publish_markdown(
        f"{dataset}-{data.split}-data-docs",
        f"[Data Docs]({docs.as_uri()}): `{docs}`\n\nAll results: `{result}`\n",
        f"{data.split}: Great Expectations' results as pages",
    )
    publish_table(
        f"{dataset}-{data.split}-validation",
        facts["rows"],
        f"{data.split}: {data.rows} rows validated by Great Expectations, Data Docs in {docs}",
    )
    for line in facts["warnings"]:
        logger.warning("%s split: %s", data.split, line)
    if facts["broken"]:
        raise DataContractError(
            f"{data.split} split ({data.source.name}) breaks its contract: {'; '.join(facts['broken'])}. "
            f"All results are in {result}. Fix the data and run again.",
            problems=[CellProblem(**problem) for problem in facts["problems"]],
        )
    return ValidatedSplit(
        record=record,
        data=data,
        result=result,
        expectations=len(facts["rows"]),
        checks=tuple(CheckResult(**check) for check in facts["checks"]),
        warnings=tuple(facts["warnings"]),
        duplicates=facts["duplicates"],
    )


def champion_profile(artifacts_dir: Path, dataset: str, train: ParquetSplit) -> bytes | None:
    """Return the train profile of the last champion that was trained on other data than ``train``, as stored.

    Other data, so that a run on ``train`` has the same result before and after its version becomes champion. Returns
    None if no such champion exists or its profile cannot be read.
    """
    root = store_folder(artifacts_dir, dataset)
    try:
        present = version_numbers(root)
        for champion in reversed(champions(read_alias_log(root))):
            if champion not in present:
                continue  # deleted by gc
            manifest = read_manifest(root, champion)
            if manifest["data"]["train"]["csv_sha256"] != train.source.sha256:
                return read_file(root, manifest, PROFILE_NAME) if PROFILE_NAME in manifest["files"] else None
    except FashionAnnError as error:
        logger.warning("Drift from the champion's data is not measured. %s", error)
    return None
