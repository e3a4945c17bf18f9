"""A version out of the store, ready to predict."""

from pathlib import Path
from typing import Any

from tasks.store import checked_path, read_manifest, resolve
from tasks.train import TOPOLOGY_NAME, WEIGHTS_NAME


def load_version(root: Path, version: str) -> tuple[dict[str, Any], Any]:
    """Manifest and uncompiled `keras.Model` of a version: float32 (N, pixels) in [0, 1] to float32 (N, classes).

    ``version`` is a number ("3", "0003", "v3") or an alias, such as champion. The backend is set up for seed 0.

    Raises `VersionNotFound`, or `StoredArtifactError` when a file is not what the manifest says; Keras is not even
    imported then.
    """
    manifest = read_manifest(root, resolve(root, version))
    topology = checked_path(root, manifest, TOPOLOGY_NAME)
    weights = checked_path(root, manifest, WEIGHTS_NAME)
    from tasks.device import set_up_backend
    from tasks.network import load_network

    set_up_backend(seed=0)
    return manifest, load_network(topology, weights)
