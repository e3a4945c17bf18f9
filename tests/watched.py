"""Simulated predictions of a version: real images of the sample, with calibrated probabilities."""

from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt

from schemas.contract import FASHION_MNIST
from schemas.layout import METRICS_NAME, PREDICTIONS_NAME, PROFILE_NAME
from schemas.predictions import PredictionProfile
from tasks.checks.image_profile import profile_images, write_profile
from tasks.data.csv_reader import open_csv
from tasks.model.test_predictions import StoredPredictions, write_predictions
from tasks.registry.prediction_records import recording
from tasks.registry.store import ModelStore, StoredVersion
from tasks.runtime.files import write_json
from tests.sample import SAMPLE
from tests.stored import add_promoted

Images = npt.NDArray[np.uint8]
Change = Callable[[Images], Images]


def sample_images() -> tuple[Images, npt.NDArray[np.int64]]:
    """Return the images and labels of the committed train sample."""
    with open_csv(SAMPLE / "fashion-mnist_train.csv.gz", FASHION_MNIST) as csv:
        rows = np.concatenate(list(csv))
    return rows[:, 1:], rows[:, 0].astype(np.int64)


class Simulation:
    """A version, and days of predictions by it. Labels are drawn from the probabilities, which are thus calibrated."""

    def __init__(self, artifacts: Path, seed: int = 0) -> None:
        self.artifacts = artifacts
        self.generator = np.random.default_rng(seed)
        self.images, self.image_labels = sample_images()
        self.of_class = [np.flatnonzero(self.image_labels == label) for label in range(10)]
        self.store = ModelStore.of(artifacts, FASHION_MNIST.name)
        self.version = self.add_version()

    def draw(self, rows: int, more_of: int | None = None) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """Return probabilities float32 (rows, 10), and a label per row.

        more_of: a class that is five times as frequent. Class 6 is confused with 2 and 4.
        """
        pool = 8 * rows
        sharpness = self.generator.choice([2.0, 4.0, 7.0, 10.0], pool, p=[0.15, 0.2, 0.25, 0.4])
        top = self.generator.integers(0, 10, pool)
        scores = self.generator.normal(0, 0.5, (pool, 10))
        scores[np.arange(pool), top] += sharpness
        for one, other in ((6, 2), (6, 4), (2, 6), (4, 6)):
            scores[top == one, other] += (sharpness - 1)[top == one]
        probabilities = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
        labels = (probabilities.cumsum(axis=1) < self.generator.random((pool, 1))).sum(axis=1).clip(0, 9)
        weights = np.where(labels == more_of, 5.0, 1.0)
        chosen = self.generator.choice(pool, rows, replace=False, p=weights / weights.sum())
        return probabilities[chosen].astype(np.float32), labels[chosen]

    def images_of(self, labels: npt.NDArray[np.int64]) -> Images:
        return self.images[[self.generator.choice(self.of_class[label]) for label in labels]]

    def add_version(self) -> StoredVersion:
        probabilities, labels = self.draw(4_000)
        predicted = probabilities.argmax(axis=1)
        recall = [float((predicted == labels)[labels == label].mean()) for label in range(10)]
        profile = profile_images(self.images, self.image_labels.astype(np.uint8), FASHION_MNIST)

        def write(folder: Path) -> None:
            stored = StoredPredictions(
                [number.to_bytes(16) for number in range(len(labels))], labels.astype(np.int32), probabilities
            )
            write_predictions(folder / PREDICTIONS_NAME, stored, FASHION_MNIST)
            write_profile(folder / PROFILE_NAME, profile)
            rows = [{"recall": share, "rows": 400} for share in recall]
            write_json(folder / METRICS_NAME, {"per_class": rows})

        return add_promoted(self.store.root, write=write)

    def predict(
        self,
        now: datetime,
        rows: int = 500,
        change: Change = lambda images: images,
        more_of: int | None = None,
        version: StoredVersion | None = None,
        shadow_of: int | None = None,
    ) -> tuple[PredictionProfile, Images, npt.NDArray[np.int64]]:
        """Record predictions at ``now``. Return the profile, and the images with their true labels."""
        probabilities, labels = self.draw(rows, more_of)
        images = change(self.images_of(labels))
        self.record(now, images, probabilities, version or self.version, shadow_of)
        return self.last, images, labels

    def record(
        self,
        now: datetime,
        images: Images,
        probabilities: npt.NDArray[np.float32],
        version: StoredVersion,
        shadow_of: int | None = None,
    ) -> None:
        with recording(self.artifacts, version, FASHION_MNIST, now, shadow_of) as record:
            record.add(images, probabilities)
            self.last = record.finish("out.parquet", "0" * 64, None, [])
