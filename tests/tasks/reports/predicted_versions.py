"""Add versions with chosen predictions for six test images to a store."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from schemas.contract import FASHION_MNIST
from tasks.model.test_predictions import StoredPredictions, image_digest, write_predictions
from tasks.registry.store import ModelStore
from tasks.reports.comparison import Comparison, compare
from tasks.runtime.files import write_json
from tests.stored import add_stored, data_facts

KEY = "ab" * 32  # cache key of the prepare stage
IMAGES: npt.NDArray[np.uint8] = np.random.default_rng(0).integers(0, 256, (6, FASHION_MNIST.pixels), dtype=np.uint8)


def add_predicted(
    artifacts: Path,
    rows: list[int],
    predicted: list[int],
    measured: Mapping[str, Any] | None = None,
    **configuration: Any,
) -> int:
    """Add a version tested on these rows of `IMAGES`, and return its number.

    The label of an image is its row. The predicted classes have probability 0.91. measured: content of metrics.json.
    """
    probabilities = np.full((len(rows), 10), 0.01, dtype=np.float32)
    probabilities[range(len(rows)), predicted] = 0.91

    def write(folder: Path) -> None:
        write_json(folder / "metrics.json", dict(measured or {}))
        digests = [image_digest(image) for image in IMAGES[rows]]
        predictions = StoredPredictions(digests, np.array(rows, dtype=np.int32), probabilities)
        write_predictions(folder / "test_predictions.parquet", predictions, FASHION_MNIST)

    return add_stored(
        ModelStore.of(artifacts, FASHION_MNIST.name).root,
        write=write,
        configuration=configuration,
        data=data_facts(KEY, "fashion-mnist_test.csv"),
        lineage=[{"stage": "prepare", "split": None, "key": KEY, "digest": KEY, "reused": False, "seconds": 1.0}],
        code={"revision": "c0ffee", "dirty": False},
    ).number


def write_prepared(artifacts: Path, images: npt.NDArray[np.uint8] = IMAGES) -> None:
    """Write the test images as the prepare stage does."""
    folder = artifacts / "prepared" / KEY[:16] / "test"
    folder.mkdir(parents=True)
    np.save(folder / "images-00000.npy", images)
    np.save(folder / "labels-00000.npy", np.arange(len(images), dtype=np.int32))


def compare_versions(artifacts: Path, data: Path | None = None) -> Comparison:
    """Compare versions 1 and 2."""
    return compare(ModelStore.of(artifacts, FASHION_MNIST.name), artifacts, data or artifacts / "none", 1, 2)
