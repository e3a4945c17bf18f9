"""Proof that a stored version is the one that was measured."""

from pathlib import Path
from typing import Any

from schemas.errors import StoredArtifactError
from tasks.golden import TOLERANCE
from tasks.judge import judge
from tasks.network import TOPOLOGY_NAME, check_topology
from tasks.store import check_version, checked_path, read_manifest, version_folder


def verify_version(root: Path, version: int) -> dict[str, Any]:
    """Check every file against the manifest, then load the model in a fresh process and repeat its golden predictions.

    Returns version, path, files, golden_difference. Raises `VersionNotFound`, or `StoredArtifactError` that says which
    file, and the expected and the found digest.
    """
    manifest = read_manifest(root, version)
    check_version(root, manifest)
    check_topology(checked_path(root, manifest, TOPOLOGY_NAME))
    folder = version_folder(root, version)
    difference = judge(folder).golden_difference
    if difference > TOLERANCE:
        raise StoredArtifactError(
            f"{folder}: golden predictions within {TOLERANCE} were expected, the largest difference is {difference}."
        )
    return {"version": version, "path": str(folder), "files": len(manifest["files"]), "golden_difference": difference}
