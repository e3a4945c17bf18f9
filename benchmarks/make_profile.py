"""Make the baseline profile that a contract refers to: `python -m benchmarks.make_profile DATASET DATA_DIR`.

Reads the published train split in DATA_DIR, and downloads it first if the folder has no CSVs.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt

from schemas.contract import CONTRACTS, DatasetContract, contract_of
from schemas.errors import WrongUsage
from tasks.checks.image_profile import profile_images, write_profile
from tasks.data.csv_to_parquet import ingest_csv
from tasks.data.parquet import blocks
from tasks.data.published_data import fetch_data


def make_profile(dataset: str, data_dir: Path, target: Path) -> None:
    """Write the profile of the published train split of ``dataset`` to ``target``.

    Raises `WrongUsage` if ``data_dir`` has a train split that is not the published one.
    """
    contract = contract_of(dataset)
    csv = fetch_data(contract, data_dir)["train"]
    if csv.origin != "fetched":
        raise WrongUsage(
            f"{csv.name} in {data_dir} is not the published train split. Pass an empty folder, and it is downloaded."
        )
    with tempfile.TemporaryDirectory() as folder:
        parquet = Path(folder) / "train.parquet"
        ingest_csv(csv, parquet, Path(folder) / "bad.parquet", contract)
        images, labels = read_rows(parquet, contract)
    write_profile(target, profile_images(images, labels, contract))


def read_rows(path: Path, contract: DatasetContract) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Return images uint8 (N, pixels) and labels uint8 (N,) of a Parquet."""
    rows = np.concatenate([block for _, block in blocks(path, contract.columns)], axis=1)  # (1 + pixels, N)
    return np.ascontiguousarray(rows[1:].T), rows[0]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.make_profile", description=__doc__)
    parser.add_argument("dataset", metavar="DATASET", choices=CONTRACTS)
    parser.add_argument("data_dir", metavar="DATA_DIR", type=Path)
    options = parser.parse_args()
    target = contract_of(options.dataset).reference
    if target is None:
        parser.error(f"the contract of {options.dataset} has no baseline profile")
    make_profile(options.dataset, options.data_dir.absolute(), target)


if __name__ == "__main__":
    main()
