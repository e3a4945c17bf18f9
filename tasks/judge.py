"""Ask a stored model in a fresh process, which knows nothing but its files.

Run as ``python -m tasks.judge`` it is that process. Nothing of Prefect is imported here.
"""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tasks.device import import_backend, set_up_backend
from tasks.golden import largest_difference
from tasks.network import TOPOLOGY_NAME, WEIGHTS_NAME, judge_rows, load_network, predict_rows
from tasks.own_process import Tell, answer, own_process


@dataclass(frozen=True)
class Answer:
    """What a stored model said. golden_difference: `tasks.golden.largest_difference`.

    Of the test split its loss, the probabilities float32 (N, classes) and the true labels int32 (N,); None and no rows
    where it was not asked.
    """

    golden_difference: float
    loss: float | None
    probabilities: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int32]

    @property
    def right(self) -> npt.NDArray[np.bool_]:
        """bool (N,): which rows the model has right."""
        return np.asarray(self.probabilities.argmax(axis=1) == self.labels)


def judge(folder: Path, prepared: Path | None = None) -> Answer:
    """Have the model of ``folder`` repeat its golden predictions, and predict the test split of ``prepared``.

    The caller has checked the digests of the files. Raises `StoredArtifactError` when they cannot be loaded.
    """
    with judging(folder, prepared) as answer:
        return answer()


@contextmanager
def judging(folder: Path, prepared: Path | None) -> Iterator[Callable[[], Answer]]:
    """`judge`, begun when the block is entered; what it yields waits for the answer."""
    job = {
        "folder": str(folder.absolute()),
        "prepared": None if prepared is None else str(prepared.absolute()),
    }
    with own_process(__name__, job) as process:

        def wait() -> Answer:
            found = process.result()
            said = found.pop("probabilities")
            if prepared is None:
                return Answer(**found, probabilities=np.zeros((0, 1), np.float32), labels=np.zeros(0, np.int32))
            return Answer(**found, probabilities=np.load(said), labels=np.load(prepared / "test_labels.npy"))

        yield wait


def main(job: dict[str, Any], tell: Tell) -> dict[str, Any]:
    set_up_backend(seed=0)
    folder = Path(job["folder"])
    model = load_network(folder / TOPOLOGY_NAME, folder / WEIGHTS_NAME)
    loss = said = None
    if job["prepared"] is not None:
        images = np.load(Path(job["prepared"]) / "test_images.npy", mmap_mode="r")
        labels = np.load(Path(job["prepared"]) / "test_labels.npy")
        # In the folder for temporary files of this process, which is gone once the answer is read.
        said = str(Path(tempfile.mkdtemp()) / "probabilities.npy")
        np.save(said, predict_rows(model, images))
        model.compile(loss="sparse_categorical_crossentropy")
        # Keras's own figure, so that anyone's model.evaluate gives the same.
        loss = float(judge_rows(model, images, labels)["loss"])
    return {"golden_difference": largest_difference(model, folder), "loss": loss, "probabilities": said}


if __name__ == "__main__":
    answer(main, import_backend)
