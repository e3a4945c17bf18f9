"""Golden predictions: what the model said when it was trained, to be repeated by what is stored of it.

Run as ``python -m tasks.golden FOLDER`` in a fresh process it loads topology and weights of that folder alone.
"""

import gc
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from schemas.config import PROJECT_ROOT
from schemas.errors import StoredArtifactError
from tasks.network import TOPOLOGY_NAME, WEIGHTS_NAME, load_network
from tasks.stage import write_json

GOLDEN_NAME = "golden.json"
GOLDEN_ROWS = 32
# Another device adds up in another order: 1e-6 was seen on float32 probabilities. A wrong weight shows far above.
TOLERANCE = 1e-5
_PATIENCE_SECONDS = 600


def write_golden(model: Any, images: npt.NDArray[np.float32], folder: Path) -> None:
    """Keep ``images``, float32 (n, pixels) in [0, 1], with the probabilities (n, classes) that ``model`` gives now."""
    images = np.asarray(images[:GOLDEN_ROWS])
    probabilities = np.asarray(model.predict_on_batch(images))
    # A float32 written with all its digits comes back as it was.
    write_json(folder / GOLDEN_NAME, {"images": images.tolist(), "probabilities": probabilities.tolist()})


def largest_difference(folder: Path) -> float:
    """Load the model of ``folder`` and predict the golden images again; NaN counts as infinitely far."""
    golden = json.loads((folder / GOLDEN_NAME).read_bytes())
    model = load_network(folder / TOPOLOGY_NAME, folder / WEIGHTS_NAME)
    again = np.asarray(model.predict_on_batch(np.asarray(golden["images"], dtype=np.float32)))
    expected = np.asarray(golden["probabilities"], dtype=np.float32)
    if again.shape != expected.shape:
        return float("inf")
    difference = np.abs(again.astype(np.float64) - expected)
    return float(np.where(np.isnan(difference), np.inf, difference).max())


def repeat_in_fresh_process(folder: Path) -> float:
    """`largest_difference`, computed by a new process that knows nothing but the stored files.

    Raises `StoredArtifactError` with what it said when it cannot load them.
    """
    try:
        done = subprocess.run(  # noqa: S603  # our own interpreter and module
            [sys.executable, "-m", "tasks.golden", str(folder.absolute())],
            cwd=PROJECT_ROOT,
            capture_output=True,
            text=True,
            timeout=_PATIENCE_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise StoredArtifactError(f"{folder} was not loaded in {_PATIENCE_SECONDS} s by a fresh process.") from error
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise StoredArtifactError(f"{folder} cannot be loaded by a fresh process: {said[-1] if said else 'no word'}")
    return float(json.loads(done.stdout)["largest_difference"])


def main(folder: str) -> None:
    # The process ends with its answer: collecting garbage among all that is imported would take a third of its time.
    gc.disable()
    from tasks.device import set_up_backend

    set_up_backend(seed=0)
    sys.stdout.write(json.dumps({"largest_difference": largest_difference(Path(folder))}) + "\n")
    gc.freeze()


if __name__ == "__main__":
    main(sys.argv[1])
