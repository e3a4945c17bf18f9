"""Compare training recipes on validation splits. The default recipe was chosen with this; the test split was not used.

    python -m benchmarks.recipes '{}' '{"epochs": 40, "weight_decay": 0.1, "dropout": 0.15}'

A recipe is the JSON of a `schemas.config.TrainingConfig`; missing keys have their defaults. Each recipe is trained with
the seeds 0, 1, .. on the train split without 10,000 rows, and evaluated on these. The seed decides the split, the
weights, the order and dropout. Recipes take turns, so all of them see the same splits.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path

from benchmarks.measure import spread
from schemas.config import TrainingConfig, data_folder
from schemas.contract import FASHION_MNIST, SPLITS
from schemas.references import PreparedData
from tasks.data.published_data import fetch_data
from tasks.data.splits import open_split
from tasks.ingest import ingest
from tasks.model.backend import set_up_backend
from tasks.model.checkpoint import EpochMetrics
from tasks.model.fit import fit_network
from tasks.prepare import prepare
from tasks.validate import validate

_VALIDATION_ROWS = 10_000  # twice the default: the standard error of an accuracy of 0.9 is 0.003


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.recipes", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipes", nargs="+", metavar="JSON")
    parser.add_argument("--seeds", type=int, default=6, metavar="N", help="fits per recipe (default: 6)")
    options = parser.parse_args()
    results: dict[str, list[EpochMetrics]] = {recipe: [] for recipe in options.recipes}
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
                results[recipe].append(_last_epoch(prepared, config))
                print(f"seed {seed}: {recipe} {results[recipe][-1]['val_accuracy']:.4f}", flush=True)
    print("\n| recipe | validation accuracy, mean | range | loss | seconds per fit |\n|---|---|---|---|---|")
    for recipe, fits in results.items():
        accuracies = [fit["val_accuracy"] for fit in fits]
        print(
            f"| `{recipe}` | {statistics.fmean(accuracies):.4f} | {min(accuracies):.4f}..{max(accuracies):.4f} "
            f"| {statistics.fmean(fit['val_loss'] for fit in fits):.4f} "
            f"| {spread([fit['fit_seconds'] for fit in fits], digits=0)} |"
        )


def _last_epoch(prepared: PreparedData, config: TrainingConfig) -> EpochMetrics:
    train, validation = (open_split(prepared.record.path, split) for split in ("train", "validation"))
    set_up_backend(config.seed)
    _, history = fit_network(FASHION_MNIST, config, train, validation)
    return {**history[-1], "fit_seconds": sum(epoch["seconds"] for epoch in history)}


if __name__ == "__main__":
    main()
