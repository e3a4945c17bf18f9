"""Ask a stored model in a fresh process, which knows nothing but its files.

Run as ``python -m tasks.judge`` it is that process. Nothing of Prefect is imported here.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tasks.device import set_up_backend
from tasks.golden import largest_difference
from tasks.network import TOPOLOGY_NAME, WEIGHTS_NAME, judge_rows, load_network, predict_rows
from tasks.own_process import OwnProcess, Tell, answer, own_process


@dataclass(frozen=True)
class Judged:
    """``right``, bool (N,): which test rows the model has right, none where it was not asked.

    golden_difference: `tasks.golden.largest_difference`.
    """

    golden_difference: float
    right: npt.NDArray[np.bool_]


def judge(folder: Path, prepared: Path | None = None) -> Judged:
    """Have the model of ``folder`` repeat its golden predictions, and predict the test split of ``prepared``.

    The caller has checked the digests of the files. Raises `StoredArtifactError` when they cannot be loaded.
    """
    with tempfile.TemporaryDirectory() as scratch:
        probabilities = Path(scratch) / "probabilities.npy"
        with judging(folder, prepared, probabilities) as process:
            difference = process.result()["golden_difference"]
        right = np.zeros(0, np.bool_) if prepared is None else right_rows(probabilities, prepared)
    return Judged(difference, right)


def right_rows(probabilities: Path, prepared: Path) -> npt.NDArray[np.bool_]:
    """bool (N,): where the largest of the probabilities, float32 (N, classes), is that of the test row's label."""
    labels = np.load(prepared / "test_labels.npy")
    return np.asarray(np.load(probabilities).argmax(axis=1) == labels)


@contextmanager
def judging(folder: Path, prepared: Path | None, probabilities: Path) -> Iterator[OwnProcess]:
    """`judge` while it goes on. The result is JSON: golden_difference, and the loss on the test split or null.

    ``probabilities`` gets those of the test split, float32 (N, classes).
    """
    job = {
        "folder": str(folder.absolute()),
        "prepared": None if prepared is None else str(prepared.absolute()),
        "probabilities": str(probabilities.absolute()),
    }
    with own_process(__name__, job) as process:
        yield process


def main(job: dict[str, Any], tell: Tell) -> dict[str, float | None]:
    set_up_backend(seed=0)
    folder = Path(job["folder"])
    model = load_network(folder / TOPOLOGY_NAME, folder / WEIGHTS_NAME)
    loss = None
    if job["prepared"] is not None:
        images = np.load(Path(job["prepared"]) / "test_images.npy", mmap_mode="r")
        labels = np.load(Path(job["prepared"]) / "test_labels.npy")
        np.save(job["probabilities"], predict_rows(model, images))
        model.compile(loss="sparse_categorical_crossentropy")
        # Keras's own figure, so that anyone's model.evaluate gives the same.
        loss = float(judge_rows(model, images, labels)["loss"])
    return {"golden_difference": largest_difference(model, folder), "loss": loss}


if __name__ == "__main__":
    answer(main)
