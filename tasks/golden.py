"""Golden predictions: what the model said when it was trained, to be repeated by what is stored of it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tasks.stage import write_json

GOLDEN_NAME = "golden.json"
GOLDEN_ROWS = 32
# Another device adds up in another order: 1e-6 was seen on float32 probabilities. A wrong weight shows far above.
TOLERANCE = 1e-5


def write_golden(model: Any, images: npt.NDArray[np.float32], folder: Path) -> None:
    """Keep ``images``, float32 (n, pixels) in [0, 1], with the probabilities (n, classes) that ``model`` gives now."""
    images = np.asarray(images[:GOLDEN_ROWS])
    probabilities = np.asarray(model.predict_on_batch(images))
    # A float32 written with all its digits comes back as it was.
    write_json(folder / GOLDEN_NAME, {"images": images.tolist(), "probabilities": probabilities.tolist()})


def largest_difference(model: Any, folder: Path) -> float:
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
