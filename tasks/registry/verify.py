"""Verify that a stored version is the one that was evaluated, and load its model."""

from typing import Any

from schemas.errors import StoredArtifactError
from schemas.layout import TOPOLOGY_NAME, WEIGHTS_NAME
from tasks.model.inference import TOLERANCE, run_stored_model
from tasks.model.network import check_topology, load_network
from tasks.registry.store import StoredVersion


def verify(version: StoredVersion) -> float:
    """Check every file, load the model in a fresh process and repeat its golden predictions.

    Returns their largest difference. Raises `StoredArtifactError` with the file, the expected and the actual value.
    """
    version.check()
    check_topology(version.folder / TOPOLOGY_NAME)
    difference = run_stored_model(version.folder).golden_difference
    if difference > TOLERANCE:
        raise StoredArtifactError(
            f"{version.folder}: expected golden predictions within {TOLERANCE}, the largest difference is {difference}."
        )
    return difference


def load_model(version: StoredVersion) -> Any:
    """Return the `keras.Model` of a version: float32 (N, pixels) in [0, 1] to float32 (N, classes), not compiled.

    Sets up the backend for seed 0. Raises `StoredArtifactError` if a file was changed, before Keras is imported.
    """
    version.check()
    from tasks.model.backend import set_up_backend

    set_up_backend(seed=0)
    return load_network(version.folder / TOPOLOGY_NAME, version.folder / WEIGHTS_NAME)
