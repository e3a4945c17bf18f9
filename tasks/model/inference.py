"""Run a stored model in a fresh process that knows only its files, and compare its golden predictions."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from schemas.errors import StoredArtifactError
from schemas.layout import GOLDEN_NAME, TOPOLOGY_NAME, WEIGHTS_NAME
from tasks.data.splits import PreparedSplit, open_split
from tasks.model.backend import set_up_backend
from tasks.model.network import inactive_units, load_network, predict_rows
from tasks.model.warm_up import WORKER
from tasks.runtime.files import write_json
from tasks.runtime.stored_file import read_json
from tasks.runtime.worker_process import Emit, run_worker

# Another device adds in another order, which changed float32 probabilities by 1e-6. A wrong weight changes them more.
TOLERANCE = 1e-5


@dataclass(frozen=True)
class StoredModelOutput:
    """Output of a stored model. Without a test split ``loss`` is None and the arrays have no rows.

    probabilities: float32 (N, classes). labels: the true classes, int32 (N,). inactive_units: see
    `tasks.model.network.inactive_units`. measured: see `tasks.model.evaluation.evaluate_stored_model`.
    """

    golden_difference: float
    loss: float | None
    probabilities: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int32]
    inactive_units: dict[str, int] = field(default_factory=dict)
    measured: dict[str, Any] = field(default_factory=dict)

    @property
    def right(self) -> npt.NDArray[np.bool_]:
        """Return which rows are predicted correctly, bool (N,)."""
        return np.asarray(self.probabilities.argmax(axis=1) == self.labels)


def run_stored_model(
    folder: Path,
    prepared: Path | None = None,
    digests: Mapping[str, str] | None = None,
    module: str = __name__,
    **further: Any,
) -> StoredModelOutput:
    """Load the model in ``folder`` in a fresh process and predict its golden images and the test split of ``prepared``.

    digests: the sha256 that its files must have, by name. module, further: the module whose ``main`` runs in that
    process, and what it needs besides. Raises `StoredArtifactError` if the files cannot be loaded.
    """
    job = {
        "folder": str(folder.absolute()),
        "prepared": None if prepared is None else str(prepared.absolute()),
        "digests": dict(digests or {}),
        **further,
    }
    with run_worker(module, job, WORKER) as process:
        result = process.result()
        path = result.pop("probabilities")
        if prepared is None:
            probabilities, labels = np.zeros((0, 1), np.float32), np.zeros(0, np.int32)
        else:
            probabilities, labels = np.load(path), open_split(prepared, "test").labels
        return StoredModelOutput(**result, probabilities=probabilities, labels=labels)


def main(job: dict[str, Any], emit: Emit) -> dict[str, Any]:
    """Return the values of a `StoredModelOutput`, as a worker process."""
    set_up_backend(seed=0)
    return predict_stored(load_stored(job), job)


def load_stored(job: dict[str, Any]) -> Any:
    """Return the `keras.Model` of a job of `run_stored_model`."""
    folder = Path(job["folder"])
    return load_network(folder / TOPOLOGY_NAME, folder / WEIGHTS_NAME, job["digests"])


def predict_stored(model: Any, job: dict[str, Any]) -> dict[str, Any]:
    """Return golden_difference, and the results on the test split, of a job of `run_stored_model`."""
    loss = path = None
    inactive: dict[str, int] = {}
    if job["prepared"] is not None:
        test = open_split(Path(job["prepared"]), "test")
        # In the worker's temporary folder, which is removed once the output is read.
        path = str(Path(tempfile.mkdtemp()) / "probabilities.npy")
        probabilities, loss = predict_rows(model, test)
        np.save(path, probabilities)
        inactive = inactive_units(model, test)
    golden = golden_difference(model, Path(job["folder"]), job["digests"])
    return {"golden_difference": golden, "loss": loss, "probabilities": path, "inactive_units": inactive}


def write_golden(model: Any, split: PreparedSplit, folder: Path) -> None:
    """Write the golden predictions: the first 32 images of ``split``, normalized, with their probabilities."""
    images = split.scaled(slice(32))
    probabilities = np.asarray(model(images, training=False))
    # JSON keeps all digits of a float32.
    write_json(folder / GOLDEN_NAME, {"images": images.tolist(), "probabilities": probabilities.tolist()})


def read_golden(
    folder: Path, pixels: int, digests: Mapping[str, str] | None = None
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return the golden images, float32 (N, pixels), and their probabilities, float32 (N, classes).

    Raises `StoredArtifactError` for a file with other content than `write_golden` writes.
    """
    path = folder / GOLDEN_NAME
    content = read_json(path, (digests or {}).get(GOLDEN_NAME))
    try:
        images, probabilities = (np.asarray(content[name]) for name in ("images", "probabilities"))
        rows = len(images)
        if {images.dtype.kind, probabilities.dtype.kind} - {"i", "f"} or images.shape != (rows, pixels):
            raise ValueError(f"received {images.dtype} {images.shape} and {probabilities.dtype} {probabilities.shape}")
        if not rows or probabilities.ndim != 2 or len(probabilities) != rows:
            raise ValueError(f"received {len(images)} images and probabilities of shape {probabilities.shape}")
        return images.astype(np.float32), probabilities.astype(np.float32)
    except (KeyError, TypeError, ValueError) as error:
        raise StoredArtifactError(
            f"{path}: expected images with {pixels} pixels each and their probabilities ({error!s:.300})."
        ) from error


def golden_difference(model: Any, folder: Path, digests: Mapping[str, str] | None = None) -> float:
    """Return the largest absolute difference from the golden predictions stored in ``folder``.

    NaN, or another number of classes, counts as 1: the largest possible difference of two probabilities.
    """
    images, expected = read_golden(folder, model.input_shape[1], digests)
    actual = np.asarray(model(images, training=False))
    if actual.shape != expected.shape:
        return 1.0
    difference = np.abs(actual.astype(np.float64) - expected)
    return float(np.where(np.isnan(difference), 1.0, difference).max())
