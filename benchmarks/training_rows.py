"""The rows of an epoch and of the accuracy."""

import os
import statistics
import time
from collections.abc import Callable, Iterator
from functools import cache
from itertools import pairwise

from benchmarks.bench import RECIPES, VALIDATION_ROWS, Bench, output
from benchmarks.measure import Row, at_least, compared, interleaved
from schemas.config import TrainingConfig
from tasks.runtime.events import Event, TrainingProgress, subscribe
from tasks.train import train

_BATCH, _EPOCHS = 256, 8


def epoch_row(bench: Bench) -> Iterator[Row]:
    """Train an epoch. Both train on the same 55,000 rows with the same batch size, and evaluate 5,000 rows."""
    times = _epoch_times(bench)
    yield compared(f"epoch, batch {_BATCH}, s", times["ours"], "`model.fit`", times["plain"], limit=0.4)


def gemm_row(bench: Bench) -> Iterator[Row]:
    """Compare an epoch with its matrix products alone, in float32 on all cores."""
    times = _epoch_times(bench)
    peer = f"its matrix products in NumPy, {os.cpu_count()} threads"
    yield compared(f"epoch, batch {_BATCH}, against its limit, s", times["ours"], peer, times["gemm"], limit=1.8)


@cache
def _epoch_times(bench: Bench) -> dict[str, list[float]]:
    """Return the seconds per epoch of each round: the median time between epoch ends, which leaves out the first."""

    def ours(number: int) -> float:
        """Run the train stage, whose epochs end in this process: with validation, checkpoint and messages."""
        ends: list[float] = []

        def on_event(event: Event) -> None:
            if isinstance(event, TrainingProgress) and "val_loss" in event.figures:
                ends.append(time.perf_counter())

        config = TrainingConfig(epochs=_EPOCHS, batch_size=_BATCH, validation_size=VALIDATION_ROWS, seed=number)
        with subscribe(on_event):
            train.fn(bench.prepared, config, bench.folder / f"epochs-{number}")
        return _between(ends)

    def plain(number: int) -> float:
        arguments = (bench.prepared.record.path, str(_BATCH), str(_EPOCHS), str(number))
        return _between(output(bench.module("plain_fit", *arguments)))

    def gemm(number: int) -> float:
        rows, threads = str(bench.prepared.train_rows), str(os.cpu_count())
        seconds: list[float] = output(bench.module("gemm", rows, str(_BATCH), OPENBLAS_NUM_THREADS=threads))
        return min(seconds)  # as it is a limit

    return interleaved("epoch", bench.rounds, ours=ours, plain=plain, gemm=gemm)


def _between(ends: list[float]) -> float:
    return statistics.median(after - before for before, after in pairwise(ends))


def seeds_row(bench: Bench) -> Iterator[Row]:
    """Train both recipes with the seeds 0, 1, .. The rows of the whole command have trained the first of them."""

    def accuracy(recipe: str) -> Callable[[int], float]:
        known = bench.accuracies.setdefault(recipe, {})

        def of_seed(seed: int) -> float:
            if seed not in known:
                run = bench.train(bench.folder / "seeds", *RECIPES[recipe], "--seed", str(seed))
                known[seed] = run.result["test_accuracy"]
            return known[seed]

        return of_seed

    for recipe, goal in (("default", 0.9), ("45 epochs", 0.8965)):
        accuracies = interleaved("seeds", bench.seeds, **{recipe: accuracy(recipe)})[recipe]
        mean = statistics.fmean(accuracies)
        yield Row(
            f"test accuracy, {recipe} recipe, mean of {len(accuracies)} seeds",
            f"{mean:.4f} ({min(accuracies):.4f}..{max(accuracies):.4f})",
            goal=at_least(goal, mean),
        )
