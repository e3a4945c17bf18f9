"""Ingest and validate the CSVs of a DATA folder into FOLDER. Print the seconds as JSON, without imports."""

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from schemas.contract import FASHION_MNIST, SPLITS, Split
from tasks.checks.expectations import fresh_context
from tasks.checks.suite import ValidationResult, validate_parquet
from tasks.data.csv_to_parquet import ingest_csv
from tasks.data.published_data import fetch_data


def validate_both(parquet: Mapping[Split, Path]) -> tuple[ValidationResult, ValidationResult]:
    """Validate the train split, and the test split compared with it."""
    train = validate_parquet(parquet["train"], FASHION_MNIST, "train")
    if train.sketches is None:
        raise RuntimeError("the real data should pass the contract")
    return train, validate_parquet(parquet["test"], FASHION_MNIST, "test", train=(train.sketches, parquet["train"]))


def main(data_dir: str, folder: str) -> None:
    csvs = fetch_data(FASHION_MNIST, Path(data_dir))
    fresh_context()  # imports Great Expectations
    started = time.perf_counter()
    parquet = {split: Path(folder) / f"{split}.parquet" for split in SPLITS}
    for split in SPLITS:
        ingest_csv(csvs[split], parquet[split], Path(folder) / "bad.parquet", FASHION_MNIST)
    validate_both(parquet)
    print(json.dumps({"seconds": time.perf_counter() - started}))


if __name__ == "__main__":
    main(*sys.argv[1:])
