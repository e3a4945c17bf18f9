"""Time ingest and validate: `python -m benchmarks.ingest_validate DATA_DIR FOLDER`, with Parquet written to FOLDER.

Prints JSON: the seconds without imports.
"""

import json
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from schemas.contract import FASHION_MNIST, Split
from schemas.references import CsvSplit
from tasks.checks.expectations import fresh_context
from tasks.checks.scan import scan_split
from tasks.checks.suite import ValidationResult, validate_split
from tasks.data.parquet_split import ingest_csv, part_files
from tasks.data.published_data import fetch_data


def ingest_both(csvs: Mapping[Split, CsvSplit], folder: Path) -> dict[Split, tuple[Path, ...]]:
    """Ingest both splits below ``folder``, and return the Parquet files of each."""
    return {split: ingest(csv, folder) for split, csv in csvs.items()}


def ingest(csv: CsvSplit, folder: Path) -> tuple[Path, ...]:
    """Ingest a split below ``folder``, in place of an earlier output, and return its Parquet files."""
    shutil.rmtree(folder / csv.split, ignore_errors=True)
    ingest_csv(csv, folder / csv.split, folder / "bad.parquet", FASHION_MNIST)
    return part_files(folder / csv.split, csv)


def validate_both(parquet: Mapping[Split, Sequence[Path]]) -> tuple[ValidationResult, ValidationResult]:
    """Validate the train split, then the test split against it."""
    train = validate_split(scan_split(parquet["train"], FASHION_MNIST), parquet["train"], FASHION_MNIST, "train")
    if train.sketches is None:
        raise RuntimeError("Expected sketches of the published train split, received none.")
    test, known = scan_split(parquet["test"], FASHION_MNIST), (train.sketches, parquet["train"])
    return train, validate_split(test, parquet["test"], FASHION_MNIST, "test", train=known)


def main(data_dir: str, folder: str) -> None:
    csvs = fetch_data(FASHION_MNIST, Path(data_dir))
    fresh_context()  # imports Great Expectations
    started = time.perf_counter()
    validate_both(ingest_both(csvs, Path(folder)))
    print(json.dumps({"seconds": time.perf_counter() - started}))


if __name__ == "__main__":
    main(*sys.argv[1:])
