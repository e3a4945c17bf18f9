"""Measure how often the checks of `predict` warn: `python -m benchmarks.predicted_checks DATASET`.

Prints the share of random subsets of the published test split, and of its classes, that cause a warning; then the
warnings for the same split with known faults. Reads the CSVs of the data folder, and the champion with its profile.
``--cost IMAGES.csv`` prints the CPU time of the checks as a share of the rest of `predict` on that CSV instead.
"""

import argparse
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from benchmarks.checks import faults
from schemas.config import artifacts_folder, data_folder
from schemas.contract import DatasetContract, contract_of
from schemas.layout import PROFILE_NAME
from schemas.references import CheckResult
from tasks.checks.image_checks import measure_predicted
from tasks.checks.image_profile import ImageProfile, read_profile
from tasks.checks.measurements import Measurement
from tasks.checks.scan import PredictedImages
from tasks.data.splits import scale_pixels
from tasks.registry import batch_prediction
from tasks.registry.alias_log import CHAMPION
from tasks.registry.prediction_checks import PredictionChecks
from tasks.registry.store import ModelStore
from tasks.registry.verify import load_model

Bytes = npt.NDArray[np.uint8]
_SIZES = (1, 5, 20, 100, 200, 1_000)
_DRAWS = 300


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.predicted_checks", description=__doc__)
    parser.add_argument("dataset")
    parser.add_argument("--artifacts-dir", metavar="D")
    parser.add_argument("--cost", metavar="IMAGES.csv", type=Path)
    options = parser.parse_args()
    if options.cost is not None:
        print(f"{measure_cost(options.cost, options.dataset, artifacts_folder(options.artifacts_dir)):.4f}")
        return
    contract = contract_of(options.dataset)
    version = ModelStore.of(artifacts_folder(options.artifacts_dir), contract.name).version(CHAMPION)
    model, profile = load_model(version), read_profile(version.read(PROFILE_NAME))
    rows = pd.read_csv(data_folder() / contract.csv_name("test"), dtype=np.uint8).to_numpy()
    images, labels = np.ascontiguousarray(rows[:, 1:]), rows[:, 0]
    predicted = _predict(model, images, contract)
    groups = {"all classes": np.arange(len(images))} | {
        name: np.flatnonzero(labels == label) for label, name in enumerate(contract.class_names)
    }
    print("| images of | rows | files | files with a warning | checks that warned |\n|---|---|---|---|---|")
    for group, members in groups.items():
        for size in sorted({len(members), *(size for size in _SIZES if size < len(members))}):
            generator = np.random.default_rng(size)
            draws = 1 if size == len(members) else _DRAWS
            files = [np.sort(generator.choice(members, size, replace=False)) for _ in range(draws)]
            found = [
                _warnings(measure_rows(images[part], predicted[part], profile, contract), contract) for part in files
            ]
            counts = ", ".join(f"{name} {times}" for name, times in Counter(chain.from_iterable(found)).most_common())
            print(f"| {group} | {size} | {draws} | {sum(map(bool, found))} | {counts} |", flush=True)
    print("\n| fault | rows | checks that warned |\n|---|---|---|")
    for fault, change in faults(contract).items():
        for size in sorted({20, 100, 200, len(images)}):
            faulty = np.ascontiguousarray(change((images[:size], labels[:size]))[0])
            names = _warnings(measure_rows(faulty, _predict(model, faulty, contract), profile, contract), contract)
            print(f"| {fault} | {size} | {', '.join(names)} |", flush=True)


class TimedChecks(PredictionChecks):
    """Checks that add up the CPU time that they take."""

    seconds = 0.0

    def add(self, *batch: Any) -> None:
        start = time.process_time()
        super().add(*batch)
        TimedChecks.seconds += time.process_time() - start

    def results(self) -> tuple[list[CheckResult], list[str]]:
        start = time.process_time()
        results = super().results()
        TimedChecks.seconds += time.process_time() - start
        return results


def measure_cost(images: Path, dataset: str, artifacts_dir: Path) -> float:
    """Return the CPU time of the checks, as a share of all other CPU time of this process, imports included."""
    vars(batch_prediction)["PredictionChecks"] = TimedChecks
    with tempfile.TemporaryDirectory() as folder:
        batch_prediction.predict_csv(images, Path(folder) / "out.parquet", CHAMPION, dataset, artifacts_dir)
    return TimedChecks.seconds / (time.process_time() - TimedChecks.seconds)


def measure_rows(
    images: Bytes, predicted: npt.NDArray[np.int64], profile: ImageProfile, contract: DatasetContract
) -> Mapping[str, Measurement]:
    """Measure images as `predict` does."""
    seen = PredictedImages(contract)
    seen.add(images, predicted)
    return measure_predicted(seen, contract, profile)


def _predict(model: Any, images: Bytes, contract: DatasetContract) -> npt.NDArray[np.int64]:
    return np.asarray(model.predict(scale_pixels(images, contract.scale), batch_size=4_096, verbose=0).argmax(axis=1))


def _warnings(measured: Mapping[str, Measurement], contract: DatasetContract) -> list[str]:
    return [name for name, measurement in measured.items() if contract.check(name).warns(measurement.value)]


if __name__ == "__main__":
    main()
