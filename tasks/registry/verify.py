"""Proof that a stored version is the one that was measured."""

from pathlib import Path
from typing import Any

from schemas.errors import StoredArtifactError
from schemas.layout import TOPOLOGY_NAME, WEIGHTS_NAME
from tasks.model.inference import TOLERANCE, run_stored_model
from tasks.model.network import check_topology, load_network
from tasks.registry.store import check_version, checked_path, read_manifest, resolve, version_folder


def verify_version(root: Path, version: int) -> dict[str, Any]:
    """Check every file against the manifest, then load the model in a fresh process and repeat its golden predictions.

    Returns version, path, files, golden_difference. Raises `VersionNotFound`, or `StoredArtifactError` that says which
    file, and the expected and the found digest.
    """
    manifest = read_manifest(root, version)
    check_version(root, manifest)
    check_topology(checked_path(root, manifest, TOPOLOGY_NAME))
    folder = version_folder(root, version)
    difference = run_stored_model(folder).golden_difference
    if difference > TOLERANCE:
        raise StoredArtifactError(
            f"{folder}: golden predictions within {TOLERANCE} were expected, the largest difference is {difference}."
        )
    return {"version": version, "path": str(folder), "files": len(manifest["files"]), "golden_difference": difference}


def load_version(root: Path, version: str) -> tuple[dict[str, Any], Any]:
    """Manifest and uncompiled `keras.Model` of a version: float32 (N, pixels) in [0, 1] to float32 (N, classes).

    ``version`` is a number ("3", "0003", "v3") or an alias, such as champion. The backend is set up for seed 0.

    Raises `VersionNotFound`, or `StoredArtifactError` when a file is not what the manifest says or no manifest names
    it; Keras is not even imported then.
    """
    manifest = read_manifest(root, resolve(root, version))
    check_version(root, manifest)
    from tasks.model.backend import set_up_backend

    set_up_backend(seed=0)
    folder = version_folder(root, manifest["version"])
    return manifest, load_network(folder / TOPOLOGY_NAME, folder / WEIGHTS_NAME)
