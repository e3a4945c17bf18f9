"""Compare recipes on validation splits, which is where the default recipe comes from; the test split chooses nothing.

    python -m benchmarks.recipes '{}' '{"epochs": 40, "weight_decay": 0.1, "dropout": 0.15}'

A recipe is JSON of `schemas.config.TrainingConfig`: what it leaves out is the default. Each is trained with the seeds
0, 1, .. (split, weights, order and dropout follow the seed) on train without 10,000 rows, and judged on those. Recipes
take turns, so every recipe meets the same splits.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.measure import spread
from schemas.config import TrainingConfig, data_folder
from schemas.contract import FASHION_MNIST, SPLITS
from schemas.references import PreparedData
from tasks.data.published_data import fetch_data
from tasks.ingest import ingest
from tasks.model.backend import set_up_backend
from tasks.model.fit import EpochMetrics, fit_network
from tasks.prepare import prepare
from tasks.validate import validate

_VALIDATION_ROWS = 10_000  # twice the default: its accuracy is known to 0.003


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.recipes", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipes", nargs="+", metavar="JSON")
    parser.add_argument("--seeds", type=int, default=6, metavar="N", help="fits of each recipe (default: 6)")
    options = parser.parse_args()
    found: dict[str, list[EpochMetrics]] = {recipe: [] for recipe in options.recipes}
    csvs = fetch_data(FASHION_MNIST, data_folder())
    with tempfile.TemporaryDirectory(prefix="fashion-ann-recipes-") as folder:
        artifacts = Path(folder)
        parquet = {split: ingest.fn(csvs[split], FASHION_MNIST.name, artifacts) for split in SPLITS}
        train_split = validate.fn(parquet["train"], FASHION_MNIST.name, artifacts)
        data = (train_split, validate.fn(parquet["test"], FASHION_MNIST.name, artifacts, train_split))
        for seed in range(options.seeds):
            prepared = prepare.fn(*data, FASHION_MNIST.name, _VALIDATION_ROWS, seed, artifacts)
            for recipe in options.recipes:
                config = TrainingConfig(**{**json.loads(recipe), "seed": seed})
                found[recipe].append(_last_epoch(prepared, config))
                print(f"seed {seed}: {recipe} {found[recipe][-1]['val_accuracy']:.4f}", flush=True)
    print("\n| recipe | validation accuracy, mean | its range | loss | fit, s |\n|---|---|---|---|---|")
    for recipe, figures in found.items():
        accuracies = [one["val_accuracy"] for one in figures]
        print(
            f"| `{recipe}` | {statistics.fmean(accuracies):.4f} | {min(accuracies):.4f}..{max(accuracies):.4f} "
            f"| {statistics.fmean(one['val_loss'] for one in figures):.4f} "
            f"| {spread([one['fit_seconds'] for one in figures], digits=0)} |"
        )


def _last_epoch(prepared: PreparedData, config: TrainingConfig) -> EpochMetrics:
    arrays = {
        name: np.load(prepared.record.path / f"{name}.npy")
        for name in ("train_images", "train_labels", "validation_images", "validation_labels")
    }
    set_up_backend(config.seed)
    _, history = fit_network(
        FASHION_MNIST,
        config,
        (arrays["train_images"], arrays["train_labels"]),
        (arrays["validation_images"], arrays["validation_labels"]),
    )
    return {**history[-1], "fit_seconds": sum(figures["seconds"] for figures in history)}


if __name__ == "__main__":
    main()
