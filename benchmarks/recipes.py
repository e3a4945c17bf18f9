"""Compare training recipes by cross-validation inside the train split. The test split is not read.

    python -m benchmarks.recipes '{}' '{"epochs": 60, "weight_decay": 0.1}'

A recipe is the JSON of a `schemas.config.TrainingConfig`; missing keys have their defaults. The train split is divided
into stratified folds. Each fit trains as `fashion-ann train` does, on the rows outside one fold: ``validation_size`` of
them are held out. The network is then evaluated on the fold, which takes the place of the test split. The number of the
fold is the seed of the held-out rows, the weights, the order and dropout, so all recipes see the same splits.

Fits run in one process per core, with one thread each.
"""

import argparse
import json
import math
import multiprocessing
import os
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.measure import spread
from schemas.config import TrainingConfig, data_folder
from schemas.contract import FASHION_MNIST
from schemas.layout import SCALE_NAME
from tasks.data.published_data import fetch_data
from tasks.data.splits import open_split, stratified_split, write_part
from tasks.data.windows import window_count
from tasks.ingest import ingest
from tasks.model.backend import set_up_backend
from tasks.model.fit import fit_network
from tasks.model.network import evaluate_rows
from tasks.runtime.files import write_json
from tasks.runtime.memory import budget_bytes


class Fit(NamedTuple):
    """The result of one fit, on the rows of its fold. seconds: CPU time of the fit."""

    recipe: str
    fold: int
    accuracy: float
    loss: float
    seconds: float


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.recipes", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipes", nargs="+", metavar="JSON")
    parser.add_argument("--folds", type=int, default=12, metavar="K", help="folds of the train split (default: 12)")
    parser.add_argument("--first", type=int, metavar="N", help="fit only the first N folds, to compare many recipes")
    parser.add_argument("--results", type=Path, metavar="FILE", help="append fits, and repeat none of the file")
    options = parser.parse_args()
    lines = options.results.read_text().splitlines() if options.results and options.results.exists() else []
    fits = {fit[:2]: fit for fit in (Fit(*json.loads(line)) for line in lines)}
    folds = range(options.first or options.folds)
    missing = [(recipe, fold) for fold in folds for recipe in options.recipes if (recipe, fold) not in fits]
    os.environ |= {"TF_NUM_INTEROP_THREADS": "1", "TF_NUM_INTRAOP_THREADS": "1"}
    with (
        tempfile.TemporaryDirectory(prefix="fashion-ann-recipes-") as folder,
        ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool,
    ):
        _write_train(Path(folder))
        for fit in pool.map(partial(_fit, Path(folder), options.folds), missing):
            fits[fit[:2]] = fit
            print(json.dumps(fit), flush=True)
            if options.results:
                with options.results.open("a") as file:
                    file.write(json.dumps(fit) + "\n")
    print("\n| recipe | accuracy, mean | minus the first recipe | loss | CPU seconds per fit |\n|---|---|---|---|---|")
    baseline = [fits[options.recipes[0], fold].accuracy for fold in folds]
    for recipe in options.recipes:
        of_recipe = [fits[recipe, fold] for fold in folds]
        differences = [fit.accuracy - first for fit, first in zip(of_recipe, baseline, strict=True)]
        error = statistics.stdev(differences) / math.sqrt(len(differences))
        accuracy, loss = (statistics.fmean(values) for values in list(zip(*of_recipe, strict=True))[2:4])
        print(
            f"| `{recipe}` | {accuracy:.4f} | {statistics.fmean(differences):+.4f} ± {error:.4f} | {loss:.4f} "
            f"| {spread([fit.seconds for fit in of_recipe], digits=0)} |"
        )


def _write_train(folder: Path) -> None:
    csvs = fetch_data(FASHION_MNIST, data_folder())
    train = ingest.fn(csvs["train"], FASHION_MNIST.name, folder)
    (folder / "test").mkdir()
    for place, path in enumerate(train.files):
        write_part(path, folder / "test", place, FASHION_MNIST)  # no row of it is held out
    write_json(folder / SCALE_NAME, FASHION_MNIST.scale._asdict())


def _fit(folder: Path, folds: int, recipe_and_fold: tuple[str, int]) -> Fit:
    recipe, fold = recipe_and_fold
    config = TrainingConfig(**{**json.loads(recipe), "seed": fold})
    whole = open_split(folder, "test")

    order = np.random.default_rng(0).permutation(len(whole.labels))
    order = order[np.argsort(whole.labels[order], kind="stable")]  # each class in one piece, so every fold has all
    outside = np.sort(np.delete(order, np.s_[fold::folds]))
    train, held_out = stratified_split(whole.labels[outside], config.validation_size, config.seed)
    set_up_backend(config.seed)
    started = time.process_time()
    windows = window_count(len(train), FASHION_MNIST.pixels, budget_bytes(config.memory_budget))
    splits = (whole.select(outside[rows]) for rows in (train, held_out))
    network, _ = fit_network(FASHION_MNIST, config, *splits, windows=windows)
    seconds = time.process_time() - started
    metrics = evaluate_rows(network, whole.select(np.sort(order[fold::folds])))
    return Fit(recipe, fold, float(metrics["accuracy"]), float(metrics["loss"]), seconds)


if __name__ == "__main__":
    main()
