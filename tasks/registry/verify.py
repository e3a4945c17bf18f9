"""Verify that a stored version is the one that was evaluated, and load its model."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from schemas.contract import contract_of
from schemas.errors import StoredArtifactError, VersionNotFound
from schemas.layout import TOPOLOGY_NAME, WEIGHTS_NAME
from tasks.model.inference import TOLERANCE, read_golden, run_stored_model
from tasks.model.network import Network, load_network, read_network, read_weights
from tasks.registry.alias_log import alias_values
from tasks.registry.store import ModelStore, StoredVersion
from tasks.runtime.worker_process import keep_workers


def check_version(version: StoredVersion) -> None:
    """Check signature and digests, and that the model is the network that the manifest's configuration defines.

    Raises `StoredArtifactError`, before Keras is imported.
    """
    version.check_signature()
    version.check()
    manifest, topology = version.manifest, version.folder / TOPOLOGY_NAME
    received = read_network(topology, version.digests)
    expected = Network.of(contract_of(manifest.dataset), manifest.recipe)
    if received != expected:
        raise StoredArtifactError(f"{topology}: expected {expected}, as the manifest defines, received {received}.")
    weights = version.folder / WEIGHTS_NAME
    if not all(np.isfinite(values).all() for values in read_weights(weights, expected, version.digests)):
        raise StoredArtifactError(f"{weights}: expected finite numbers.")


def verify(version: StoredVersion) -> float:
    """Check signature and files, load the model in a fresh process and repeat its golden predictions.

    Returns their largest difference. Raises `StoredArtifactError` with the file, the expected and the actual value.
    """
    check_version(version)
    read_golden(version.folder, contract_of(version.manifest.dataset).pixels, version.digests)
    difference = run_stored_model(version.folder, digests=version.digests).golden_difference
    if difference > TOLERANCE:
        raise StoredArtifactError(
            f"{version.folder}: expected golden predictions within {TOLERANCE}, the largest difference is {difference}."
        )
    return difference


@dataclass(frozen=True)
class Verified:
    """The result for one version. ``fault`` is None for an intact one, which has the other values.

    signed: whether it has a signature. signed_by: the fingerprint of the key of FASHION_ANN_VERIFY_KEY, None without
    the variable.
    """

    version: int
    path: str
    files: int
    golden_difference: float | None
    fault: str | None
    signed: bool = False
    signed_by: str | None = None


def verify_each(store: ModelStore, numbers: Iterable[int]) -> Iterator[Verified]:
    """Verify versions and yield the result of each. One that `gc` removes meanwhile is left out."""
    with keep_workers():
        for number in numbers:
            path = str(store.folder(number))
            try:
                version = store.version(number)
                difference, signed, signed_by = (
                    verify(version),
                    version.signature() is not None,
                    version.check_signature(),
                )
                yield Verified(number, path, len(version.manifest.files), difference, None, signed, signed_by)
            except VersionNotFound:
                continue
            except StoredArtifactError as error:
                yield Verified(number, path, 0, None, str(error))


def log_fault(store: ModelStore) -> str | None:
    """Return how the alias log contradicts the versions or its record, None if it does not."""
    try:
        aliases, numbers = alias_values(store.history()), store.numbers()
    except StoredArtifactError as error:
        return str(error)
    # `gc` keeps every version that has an alias.
    lost = [f"{alias} names version {number}" for alias, number in aliases.items() if number not in numbers]
    return f"{store.root} lacks versions: {', '.join(lost)}. Restore their folders from a copy." if lost else None


def load_model(version: StoredVersion) -> Any:
    """Return the `keras.Model` of a version: float32 (N, pixels) in [0, 1] to float32 (N, classes), not compiled.

    Sets up the backend for seed 0. Raises `StoredArtifactError` as `check_version` does, before Keras is imported.
    """
    check_version(version)
    from tasks.model.backend import set_up_backend

    set_up_backend(seed=0)
    return load_network(version.folder / TOPOLOGY_NAME, version.folder / WEIGHTS_NAME, version.digests)
