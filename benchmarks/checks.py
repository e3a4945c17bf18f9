"""Measure the statistics that the bounds of a contract's checks are chosen from: `python -m benchmarks.checks DATASET`.

Prints the range of each check's statistic on random subsets of the published test split, and its value on the same
split with known faults. Reads the data in the data folder, and downloads it first if the folder has no CSVs.
"""

import argparse
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from schemas.config import data_folder
from schemas.contract import DatasetContract, contract_of
from tasks.checks.image_checks import measure_checks
from tasks.checks.image_profile import profile_images
from tasks.checks.measurements import Measurement
from tasks.checks.scan import scan_split
from tasks.data.parquet import read_rows
from tasks.data.parquet_split import ingest_csv, part_files
from tasks.data.published_data import fetch_data

Rows = tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]  # images (N, pixels), labels (N,)
_SUBSETS = {100: 300, 200: 300, 1_000: 60}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.checks", description=__doc__)
    parser.add_argument("dataset")
    contract = contract_of(parser.parse_args().dataset)
    csv = fetch_data(contract, data_folder())["test"]
    with tempfile.TemporaryDirectory() as folder:
        target, parquet = Path(folder) / csv.split, Path(folder) / "changed.parquet"
        ingest_csv(csv, target, Path(folder) / "bad.parquet", contract)
        rows = read_rows(part_files(target, csv), contract.columns)
        print(f"| {contract.name} | {' | '.join(check.name for check in contract.checks)} |")
        print(f"|---|{'---|' * len(contract.checks)}")
        _print("all rows", [measure_rows(rows, contract, parquet)], contract)
        for size, times in _SUBSETS.items():
            if size < len(rows[0]):
                measured = [measure_rows(_sample(rows, size, seed), contract, parquet) for seed in range(times)]
                _print(f"{times} subsets of {size} rows", measured, contract)
        for name, change in faults(contract).items():
            _print(name, [measure_rows(change(rows), contract, parquet)], contract)


def measure_rows(rows: Rows, contract: DatasetContract, path: Path) -> Mapping[str, Measurement]:
    """Measure a split as validate does without a train split to compare with. Overwrites ``path``."""
    table = np.ascontiguousarray(np.column_stack([rows[1], rows[0]]).T)
    pq.write_table(pa.table(dict(zip(contract.columns, table, strict=True))), path)
    scan = scan_split([path], contract)
    if scan.sample is None:
        raise ValueError(
            f"{path}: expected data in the contract's format, received a table that validate takes no sample of."
        )
    profile = profile_images(scan.sample.images, scan.sample.labels, contract)
    return measure_checks(scan, scan.sample, profile, contract, None)


def faults(contract: DatasetContract) -> Mapping[str, Callable[[Rows], Rows]]:
    """Return functions that add one known fault to correct data, by the fault's name."""
    generator = np.random.default_rng(0)
    top = contract.pixel_max
    square = (-1, contract.height, contract.width)

    def transformed(transform: Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.uint8]]) -> Callable[[Rows], Rows]:
        return lambda rows: (transform(rows[0].reshape(square)).reshape(len(rows[0]), -1), rows[1])

    def shuffled(share: float) -> Callable[[Rows], Rows]:
        return lambda rows: (
            rows[0],
            np.where(generator.random(len(rows[1])) < share, generator.permutation(rows[1]), rows[1]),
        )

    def brighter(factor: float) -> Callable[[Rows], Rows]:
        return lambda rows: (np.minimum(rows[0] * factor, top).astype(np.uint8), rows[1])

    def tenth(change: Callable[[Rows], Rows]) -> Callable[[Rows], Rows]:
        """Apply ``change`` only to the rows from 20 % to 30 %, like one bad shard of ten."""

        def changed(rows: Rows) -> Rows:
            first, last = len(rows[1]) // 5, len(rows[1]) * 3 // 10
            images, labels = rows[0].copy(), rows[1].copy()
            images[first:last], labels[first:last] = change((images[first:last], labels[first:last]))
            return images, labels

        return changed

    swapped = np.arange(contract.classes, dtype=np.uint8)
    swapped[[4, 6]] = [6, 4]
    whole: dict[str, Callable[[Rows], Rows]] = {
        "inverted": lambda rows: (top - rows[0], rows[1]),
        "transposed": transformed(lambda image: image.transpose(0, 2, 1)),
        "turned by 90 degrees": transformed(lambda image: np.rot90(image, -1, (1, 2))),
        "upside down": transformed(lambda image: image[:, ::-1, ::-1]),
        "mirrored left to right": transformed(lambda image: image[:, :, ::-1]),
        "mirrored top to bottom": transformed(lambda image: image[:, ::-1]),
        "columns moved by one": lambda rows: (np.roll(rows[0], 1, axis=1), rows[1]),
        "halved": lambda rows: (rows[0] // 2, rows[1]),
        "zeros and ones": lambda rows: ((rows[0] > top // 2).astype(np.uint8), rows[1]),
        "background of an eighth": lambda rows: (np.maximum(rows[0], top // 8), rows[1]),
        "pixels permuted": lambda rows: (rows[0][:, generator.permutation(contract.pixels)], rows[1]),
        "noise": lambda rows: (generator.integers(0, top + 1, rows[0].shape, np.uint8), rows[1]),
        "labels shifted by one": lambda rows: (rows[0], (rows[1] + 1) % contract.classes),
        "labels 4 and 6 swapped": lambda rows: (rows[0], swapped[rows[1]]),
        "labels shuffled": shuffled(1),
        "30 % of labels shuffled": shuffled(0.3),
        "15 % of labels shuffled": shuffled(0.15),
        "10 % brighter": brighter(1.1),
        "20 % brighter": brighter(1.2),
    }
    in_a_tenth = (
        *("inverted", "transposed", "mirrored left to right", "halved"),
        *("labels shifted by one", "labels shuffled"),
    )
    return whole | {f"a tenth: {name}": tenth(whole[name]) for name in in_a_tenth}


def _sample(rows: Rows, size: int, seed: int) -> Rows:
    indices = np.random.default_rng(seed).choice(len(rows[0]), size, replace=False)
    return rows[0][indices], rows[1][indices]


def _print(label: str, measured: list[Mapping[str, Measurement]], contract: DatasetContract) -> None:
    cells = []
    for check in contract.checks:
        values = [statistics[check.name].value for statistics in measured if check.name in statistics]
        ends = sorted({f"{min(values):.3g}", f"{max(values):.3g}"}, key=float) if values else ["-"]
        cells.append("..".join(ends))
    print(f"| {label} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
