"""Evaluate a stored model in a fresh process: its predictions, its accuracy under disturbances, and its cost."""

import resource
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt

from schemas.contract import DatasetContract
from schemas.layout import TOPOLOGY_NAME, WEIGHTS_NAME
from tasks.data.splits import PreparedSplit, open_split, scale_pixels
from tasks.data.statistics import wilson_interval
from tasks.model.backend import set_up_backend
from tasks.model.disturbances import disturb_each
from tasks.model.inference import StoredModelOutput, load_stored, predict_stored, run_stored_model
from tasks.model.latency import call_seconds
from tasks.runtime.worker_process import Emit

# The interval of an accuracy is below 0.01 to each side with these rows. More rows cost time.
_LARGEST_SAMPLE = 10_000
_SEED = 0
_BLOCK_VALUES = 2**20  # of float32: 4 MB per block and disturbance
_CALLS = {1: 40, 1_000: 15}  # by rows: 0.2 s


def evaluate_stored_model(folder: Path, prepared: Path, contract: DatasetContract) -> StoredModelOutput:
    """Run `run_stored_model` on the test split of ``prepared``, and measure the model.

    Keys of ``measured``:

    - ``robustness``: accuracy and accuracy_interval (Wilson, 95 %) by disturbance, see `tasks.model.disturbances`
    - ``robustness_rows``: the test rows that were disturbed, at most 10,000; the same ones for the same test split
    - ``cost``: see `_measure_cost`; unlike the others it differs from run to run
    """
    return run_stored_model(folder, prepared, module=__name__, height=contract.height, width=contract.width)


def main(job: dict[str, Any], emit: Emit) -> dict[str, Any]:
    """Return the values of a `StoredModelOutput`, as a worker process."""
    set_up_backend(seed=0)
    test = open_split(Path(job["prepared"]), "test")
    start = perf_counter()
    model = load_stored(job)
    cost = {"load_seconds": perf_counter() - start, **_measure_cost(model, Path(job["folder"]), test)}
    return {
        **predict_stored(model, job),
        "measured": {"cost": cost, **_measure_robustness(model, test, job["height"], job["width"])},
    }


def _measure_cost(model: Any, folder: Path, test: PreparedSplit) -> dict[str, Any]:
    """Return JSON: the latency of bytes to probabilities, the bytes of the stored model, and the peak memory so far.

    latency: p50_seconds and p95_seconds by number of rows, without the first call. peak_memory_bytes: resident, with
    the backend and its libraries.
    """

    def predict(images: npt.NDArray[np.uint8]) -> None:
        np.asarray(model(scale_pixels(images, test.scale), training=False))

    pixels = test.images[: max(_CALLS)]
    latency = {}
    for rows, calls in _CALLS.items():
        p50, p95 = np.quantile(call_seconds(predict, pixels, rows, calls), (0.5, 0.95))
        latency[str(rows)] = {"p50_seconds": float(p50), "p95_seconds": float(p95)}
    unit = 1 if sys.platform == "darwin" else 1_024
    return {
        "latency": latency,
        "bytes": sum((folder / name).stat().st_size for name in (TOPOLOGY_NAME, WEIGHTS_NAME)),
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit,
    }


def _measure_robustness(model: Any, test: PreparedSplit, height: int, width: int) -> dict[str, Any]:
    rows = len(test.labels)
    if rows > _LARGEST_SAMPLE:
        chosen = np.random.default_rng(_SEED).choice(rows, _LARGEST_SAMPLE, replace=False)
        test, rows = test.select(np.sort(chosen)), _LARGEST_SAMPLE

    def count_correct(place: slice) -> dict[str, int]:
        images = test.scaled(place).reshape(-1, height, width)
        generator = np.random.default_rng((_SEED, place.start))
        correct: dict[str, int] = {}
        for name, disturbed in disturb_each(images, generator):
            probabilities = np.asarray(model(disturbed.reshape(len(disturbed), -1), training=False))
            correct[name] = int((probabilities.argmax(axis=1) == test.labels[place]).sum())
        return correct

    step = max(1, _BLOCK_VALUES // (height * width))
    places = [slice(start, min(start + step, rows)) for start in range(0, rows, step)]
    with ThreadPoolExecutor(2) as pool:  # filters of images release the interpreter's lock
        counts = list(pool.map(count_correct, places))
    totals = {name: sum(count[name] for count in counts) for name in counts[0]}
    return {
        "robustness": {
            name: {"accuracy": total / rows, "accuracy_interval": wilson_interval(total, rows)}
            for name, total in totals.items()
        },
        "robustness_rows": rows,
    }
