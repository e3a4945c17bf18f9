"""`python -m benchmarks.make_profile DATASET DATA_DIR` makes a contract's reference profile from the published train split."""

import sys
import tempfile
from pathlib import Path

import numpy as np

from schemas.contract import contract_of
from schemas.errors import WrongUsage
from tasks.checks.image_profile import profile_images, write_profile
from tasks.data.csv_to_parquet import ingest_csv
from tasks.data.published_data import fetch_data
from tasks.data.splits import read_images


def make_reference(dataset: str, data_dir: Path, target: Path) -> None:
    """Write the profile of the published train split of ``dataset``, which is fetched into ``data_dir`` if need be.

    Raises `WrongUsage` when the data there is somebody's own.
    """
    contract = contract_of(dataset)
    csv = fetch_data(contract, data_dir)["train"]
    if csv.origin != "fetched":
        raise WrongUsage(f"{csv.name}: the published train split was expected, this is somebody's own. Name a folder.")
    with tempfile.TemporaryDirectory() as folder:
        parquet = Path(folder) / "train.parquet"
        ingest_csv(csv, parquet, Path(folder) / "bad.parquet", contract)
        images, labels = read_images(parquet, contract)
    write_profile(target, profile_images(images, labels.astype(np.uint8), contract))


if __name__ == "__main__":
    name, folder = sys.argv[1:]
    reference = contract_of(name).reference
    if reference is None:
        raise SystemExit(f"The contract of {name} names no reference profile.")
    make_reference(name, Path(folder).absolute(), reference)
