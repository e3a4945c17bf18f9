"""Read a version back: every digest is checked before a file is opened, and Keras is asked last."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tasks.network import TOPOLOGY_NAME, WEIGHTS_NAME, load_network
from tasks.store import check_version, checked_path, read_manifest

_BATCH = 1_000


def load_version(root: Path, version: int) -> tuple[dict[str, Any], Any]:
    """Manifest and `keras.Model` of a version, once the whole of it was checked.

    The backend was set up before (`tasks.device.set_up_backend`). Raises `VersionNotFound`, or `StoredArtifactError`
    naming the file, the expected and the found digest.
    """
    manifest = read_manifest(root, version)
    check_version(root, manifest)
    paths = [checked_path(root, manifest, name) for name in (TOPOLOGY_NAME, WEIGHTS_NAME)]
    return manifest, load_network(*paths)


def right_rows(model: Any, images: npt.NDArray[np.float32], labels: npt.NDArray[np.int32]) -> npt.NDArray[np.bool_]:
    """bool (N,): which rows the model has right, of images float32 (N, pixels) and labels int32 (N,)."""
    predicted = model.predict(images, batch_size=_BATCH, verbose=0).argmax(axis=1)
    return np.asarray(predicted == labels)
