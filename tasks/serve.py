"""A version out of the store, ready to predict: digests are checked before a file is opened, Keras is asked last."""

from pathlib import Path
from typing import Any

from tasks.network import TOPOLOGY_NAME, WEIGHTS_NAME, load_network
from tasks.store import check_version, read_manifest, resolve, version_folder


def load_version(root: Path, version: str) -> tuple[dict[str, Any], Any]:
    """Manifest and uncompiled `keras.Model` of a version: float32 (N, pixels) in [0, 1] to float32 (N, classes).

    ``version`` is a number ("3", "0003", "v3") or an alias, such as champion. The backend is set up for seed 0.

    Raises `VersionNotFound`, or `StoredArtifactError` when a file is not what the manifest says or no manifest names
    it; Keras is not even imported then.
    """
    manifest = read_manifest(root, resolve(root, version))
    check_version(root, manifest)
    from tasks.device import set_up_backend

    set_up_backend(seed=0)
    folder = version_folder(root, manifest["version"])
    return manifest, load_network(folder / TOPOLOGY_NAME, folder / WEIGHTS_NAME)
