"""Small stored versions without a model, for tests of the store."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from schemas.layout import MANIFEST_NAME, STORED_NAMES
from schemas.store import AliasEvent, VersionFacts
from tasks.registry.store import ModelStore, StoredVersion
from tasks.runtime.files import digest_of, write_json

DIGEST = "0" * 64


def event(version: int, before: int | None = None, by: str = "a test", alias: str = "champion") -> AliasEvent:
    moved = {"alias": alias, "from": before, "to": version, "by": by}
    return AliasEvent.model_validate(
        {**moved, "when": "2026-01-01T00:00:00.000Z", "reason": "a test", "flow_run": None}
    )


def fill(folder: Path) -> None:
    """Write every file of a version that does not exist yet."""
    for name in STORED_NAMES:
        if not (folder / name).exists():
            (folder / name).write_text("{}")


def data_facts(train_csv: str = DIGEST, file: str = "images.csv") -> dict[str, Any]:
    """Return the data of a manifest. ``train_csv`` is the sha256 of the train CSV, and stands for that of its rows."""
    splits = {
        split: {
            "file": file,
            "csv_sha256": csv_sha256,
            "csv_files": [{"file": file, "sha256": csv_sha256}],
            "content_sha256": csv_sha256,
            "parquet_sha256": DIGEST,
            **{"rows": 6, "quarantined": 0, "origin": "supplied", "expectations": 1, "checks": [], "warnings": []},
        }
        for split, csv_sha256 in (("train", train_csv), ("test", DIGEST))
    }
    return {**splits, "split_rows": {"train": 5, "validation": 1, "test": 6}}


def metrics(accuracy: float) -> dict[str, Any]:
    """Return metrics.json of a model with this accuracy in its only class."""
    row = {"label": 0, "name": "Coat", "rows": 6, "precision": 1.0, "recall": accuracy, "f1": accuracy}
    return {"test_accuracy": accuracy, "per_class": [row]}


def verdict(moved: AliasEvent | None) -> dict[str, Any]:
    event = None if moved is None else moved.as_json()
    return {"outcome": "kept" if event is None else "promoted", "reason": "a test", "event": event}


def facts(**changed: Any) -> VersionFacts:
    """Return the facts of a manifest, to which `ModelStore.add` adds number, files and digest."""
    return VersionFacts.model_validate(
        {
            "dataset": "fashion-mnist",
            "created": "2026-01-01T00:00:00.000Z",
            "made_from": DIGEST,
            "test_accuracy": 0.9,
            "test_loss": 0.3,
            "topology_id": DIGEST,
            "data": data_facts(),
            "configuration": {},
            "promotion": {},
            "seed": 0,
            "code": {"revision": None, "dirty": None},
            "lock_sha256": DIGEST,
            "packages": {},
            "device": {"kind": "cpu", "name": "a CPU", "count": 1, "backend": "tensorflow"},
            "training_seconds": 1.0,
            "epochs_run": 1,
            "parent": None,
            "flow_run_id": None,
            "verdict": verdict(None),
            "lineage": [],
            **changed,
        }
    )


def add_stored(
    root: Path,
    accuracy: float = 0.9,
    promoted: bool = False,
    key: str = "key",
    write: Callable[[Path], object] = fill,
    private_key: Ed25519PrivateKey | None = None,
    **changed: Any,
) -> StoredVersion:
    """Add a version whose promotion, if any, is not logged yet. ``write`` may write some of its files.

    private_key: signs it.
    """
    store = ModelStore(root)

    def build(folder: Path, number: int) -> VersionFacts:
        write_json(folder / "metrics.json", metrics(accuracy))
        write(folder)
        fill(folder)
        moved = event(number, store.aliases.champion()) if promoted else None
        return facts(**{"made_from": key, "test_accuracy": accuracy, "verdict": verdict(moved), **changed})

    with store.lock():
        return store.add(build, private_key)


def make_older(stored: StoredVersion) -> None:
    """Rewrite the manifest of a version as an earlier release of this project wrote it: fewer keys, no layout."""
    path = stored.folder / MANIFEST_NAME
    content = json.loads(path.read_bytes())
    for key in ("manifest_sha256", "layout", "lineage"):
        del content[key]
    write_json(path, {**content, "manifest_sha256": digest_of(content)})


def add_promoted(root: Path, **changed: Any) -> StoredVersion:
    """Add a version and log its promotion."""
    stored = add_stored(root, promoted=True, **changed)
    assert stored.manifest.verdict.event is not None
    ModelStore(root).aliases.append(stored.manifest.verdict.event)
    return stored
