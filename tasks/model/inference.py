"""Ask a stored model in a fresh process, which knows nothing but its files.

Run as ``python -m tasks.model.inference`` it is that process. Nothing of Prefect is imported here.
"""

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from schemas.layout import GOLDEN_NAME, TOPOLOGY_NAME, WEIGHTS_NAME, images_name, labels_name
from tasks.model.backend import import_backend, set_up_backend
from tasks.model.network import evaluate_rows, load_network, predict_rows
from tasks.runtime.files import write_json
from tasks.runtime.worker_process import Emit, run_worker, serve_job


@dataclass(frozen=True)
class StoredModelOutput:
    """What a stored model said. golden_difference: `tasks.model.inference.golden_difference_of`.

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


def run_stored_model(folder: Path, prepared: Path | None = None) -> StoredModelOutput:
    """Have the model of ``folder`` repeat its golden predictions, and predict the test split of ``prepared``.

    The caller has checked the digests of the files. Raises `StoredArtifactError` when they cannot be loaded.
    """
    with start_stored_model(folder, prepared) as serve_job:
        return serve_job()


@contextmanager
def start_stored_model(folder: Path, prepared: Path | None) -> Iterator[Callable[[], StoredModelOutput]]:
    """`run_stored_model`, begun when the block is entered; what it yields waits for the answer."""
    job = {
        "folder": str(folder.absolute()),
        "prepared": None if prepared is None else str(prepared.absolute()),
    }
    with run_worker(__name__, job) as process:

        def wait() -> StoredModelOutput:
            found = process.result()
            said = found.pop("probabilities")
            if prepared is None:
                return StoredModelOutput(
                    **found, probabilities=np.zeros((0, 1), np.float32), labels=np.zeros(0, np.int32)
                )
            return StoredModelOutput(
                **found, probabilities=np.load(said), labels=np.load(prepared / labels_name("test"))
            )

        yield wait


def main(job: dict[str, Any], emit: Emit) -> dict[str, Any]:
    set_up_backend(seed=0)
    folder = Path(job["folder"])
    model = load_network(folder / TOPOLOGY_NAME, folder / WEIGHTS_NAME)
    loss = said = None
    if job["prepared"] is not None:
        images = np.load(Path(job["prepared"]) / images_name("test"), mmap_mode="r")
        labels = np.load(Path(job["prepared"]) / labels_name("test"))
        # In the folder for temporary files of this process, which is gone once the answer is read.
        said = str(Path(tempfile.mkdtemp()) / "probabilities.npy")
        np.save(said, predict_rows(model, images))
        model.compile(loss="sparse_categorical_crossentropy")
        # Keras's own figure, so that anyone's model.evaluate gives the same.
        loss = float(evaluate_rows(model, images, labels)["loss"])
    return {"golden_difference": golden_difference_of(model, folder), "loss": loss, "probabilities": said}


GOLDEN_ROWS = 32
# Another device adds up in another order: 1e-6 was seen on float32 probabilities. A wrong weight shows far above.
TOLERANCE = 1e-5


def write_golden(model: Any, images: npt.NDArray[np.float32], folder: Path) -> None:
    """Keep ``images``, float32 (n, pixels) in [0, 1], with the probabilities (n, classes) that ``model`` gives now."""
    images = np.asarray(images[:GOLDEN_ROWS])
    probabilities = np.asarray(model.predict_on_batch(images))
    # A float32 written with all its digits comes back as it was.
    write_json(folder / GOLDEN_NAME, {"images": images.tolist(), "probabilities": probabilities.tolist()})


def golden_difference_of(model: Any, folder: Path) -> float:
    """Between what ``model`` says of the golden images of ``folder`` and what was said then.

    1, the most that two probabilities can differ by, where it says NaN or has another number of classes.
    """
    golden = json.loads((folder / GOLDEN_NAME).read_bytes())
    again = np.asarray(model.predict_on_batch(np.asarray(golden["images"], dtype=np.float32)))
    expected = np.asarray(golden["probabilities"], dtype=np.float32)
    if again.shape != expected.shape:
        return 1.0
    difference = np.abs(again.astype(np.float64) - expected)
    return float(np.where(np.isnan(difference), 1.0, difference).max())


if __name__ == "__main__":
    serve_job(main, import_backend)
