"""Measure how often days of predictions are flagged: `python -m benchmarks.watched DATASET`.

Draws days from the test images of the champion: quiet ones, and ones with other images or other shares of the classes.
Half of the test split is the version's baseline. The bounds were chosen on days from a quarter (--part validation), and
the days of the last quarter (--part proof) are others. Prints, per change and rows per day: days flagged by each check,
and estimated accuracies whose interval contains the true one.
"""

import argparse
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from schemas.config import artifacts_folder, data_folder
from schemas.contract import DatasetContract, contract_of
from tasks.checks.estimated_accuracy import calibration_table, confidence_counts, estimate_accuracy
from tasks.checks.image_checks import half_histograms
from tasks.data.splits import scale_pixels
from tasks.registry.alias_log import CHAMPION
from tasks.registry.prediction_checks import read_class_profile, read_recall
from tasks.registry.store import ModelStore
from tasks.registry.verify import load_model
from tasks.registry.watched_predictions import Baseline, measure_day

Bytes = npt.NDArray[np.uint8]
_SIZES = (200, 500)  # a quarter of Fashion-MNIST's test split has 2,500 images
_MORE = 5  # times as many images of one class


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.watched", description=__doc__)
    parser.add_argument("dataset")
    parser.add_argument("--artifacts-dir", metavar="D")
    parser.add_argument("--part", choices=("validation", "proof"), default="proof")
    parser.add_argument("--days", type=int, default=100)
    options = parser.parse_args()
    contract = contract_of(options.dataset)
    version = ModelStore.of(artifacts_folder(options.artifacts_dir), contract.name).version(CHAMPION)
    model = load_model(version)
    rows = pd.read_csv(data_folder() / contract.csv_name("test"), dtype=np.uint8).to_numpy()
    images, labels = np.ascontiguousarray(rows[:, 1:]), np.searchsorted(contract.class_labels, rows[:, 0])
    order = np.random.default_rng(0).permutation(len(images))
    known, validation, proof = np.split(order, [len(order) // 2, len(order) * 3 // 4])
    drawn = validation if options.part == "validation" else proof
    probabilities = _predict(model, images, contract)
    predicted, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    right = predicted == labels
    baseline = Baseline(
        calibration_table(labels[known], predicted[known], confidence[known], contract.classes),
        np.bincount(predicted[known], minlength=contract.classes),
        float(right[known].mean()),
        read_recall(version, contract),
        read_class_profile(version, contract),
    )
    hardest = int(np.argmin([right[known][labels[known] == label].mean() for label in range(contract.classes)]))
    more = np.where(labels[drawn] == hardest, float(_MORE), 1.0)
    print(f"| change | rows per day | days | flagged | by check | intervals with the true accuracy |\n{'|---' * 6}|")
    for change, changed in _changes(images[drawn], contract).items():
        of_change = _predict(model, changed, contract)
        for size in _SIZES:
            generator = np.random.default_rng(size)
            _print_days(
                change, size, options.days, changed, of_change, labels[drawn], None, baseline, contract, generator
            )
    of_part = probabilities[drawn]
    for size in _SIZES:
        generator = np.random.default_rng(size)
        name = f"{_MORE} times as many {contract.class_names[hardest]}"
        _print_days(
            name, size, options.days, images[drawn], of_part, labels[drawn], more, baseline, contract, generator
        )


def _changes(images: Bytes, contract: DatasetContract) -> Mapping[str, Bytes]:
    values = images.astype(np.float32)
    gains = {f"brightness x {gain}": gain for gain in (0.8, 0.9, 0.95, 1.05, 1.1, 1.2)}
    return {
        "none": images,
        "inverted": contract.pixel_max - images + contract.pixel_min,
        **{
            name: np.clip(np.rint(values * gain), contract.pixel_min, contract.pixel_max).astype(np.uint8)
            for name, gain in gains.items()
        },
    }


def _print_days(
    change: str,
    size: int,
    days: int,
    images: Bytes,
    probabilities: npt.NDArray[np.float32],
    labels: npt.NDArray[np.integer[Any]],
    weights: npt.NDArray[np.float64] | None,
    baseline: Baseline,
    contract: DatasetContract,
    generator: np.random.Generator,
) -> None:
    """Print a row of the table. weights: how often each image is drawn, None for equally often."""
    predicted, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    found: Counter[str] = Counter()
    flagged = covered = 0
    share = None if weights is None else weights / weights.sum()
    for _ in range(days):
        part = generator.choice(len(images), min(size, len(images)), replace=False, p=share)
        counts = confidence_counts(predicted[part], confidence[part], contract.classes)
        estimated = estimate_accuracy(baseline.table, counts)
        measured = measure_day(counts, half_histograms(images[part], contract), baseline, estimated)
        names = [name for name, measurement in measured.items() if contract.check(name).warns(measurement.value)]
        found.update(names)
        flagged += bool(names)
        low, high = estimated.interval
        covered += low <= float((predicted[part] == labels[part]).mean()) <= high
    checks = ", ".join(f"{name} {times}" for name, times in found.most_common()) or "none"
    print(f"| {change} | {size} | {days} | {flagged} | {checks} | {covered} |", flush=True)


def _predict(model: Any, images: Bytes, contract: DatasetContract) -> npt.NDArray[np.float32]:
    return np.asarray(model.predict(scale_pixels(images, contract.scale), batch_size=4_096, verbose=0))


if __name__ == "__main__":
    main()
