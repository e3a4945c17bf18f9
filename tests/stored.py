"""Versions that hold no network, for what the store does whatever is in its files."""

import json
from pathlib import Path
from typing import Any

from schemas.layout import STORED_NAMES
from tasks.registry.store import add_version, store_lock

DIGEST = "0" * 64


def event(version: int, by: str = "a test") -> dict[str, Any]:
    return {
        **{"when": "2026-01-01T00:00:00.000Z", "alias": "champion", "from": None, "to": version, "by": by},
        **{"reason": "a test", "flow_run": None},
    }


def fill(folder: Path) -> None:
    """Every file that a version has, empty but for what is there already."""
    for name in STORED_NAMES:
        if not (folder / name).exists():
            (folder / name).write_text("{}")


def stated(**what: Any) -> dict[str, Any]:
    """What a manifest says before `add_version` adds number, files and digest."""
    return {
        "dataset": "fashion-mnist",
        "created": "2026-01-01T00:00:00.000Z",
        "made_from": DIGEST,
        "test_accuracy": 0.9,
        "test_loss": 0.3,
        "topology_id": DIGEST,
        "data": {},
        "configuration": {},
        "seed": 0,
        "code": {},
        "lock_sha256": DIGEST,
        "packages": {},
        "device": {},
        "training_seconds": 1.0,
        "epochs_run": 1,
        "parent": None,
        "flow_run_id": None,
        "verdict": {"outcome": "kept", "reason": "a test", "event": None},
        "lineage": [],
        **what,
    }


def verdict(number: int, promoted: bool) -> dict[str, Any]:
    return {
        "outcome": "promoted" if promoted else "kept",
        "reason": "a test",
        "event": event(number) if promoted else None,
    }


def add_stored(root: Path, accuracy: float = 0.9, promoted: bool = False, key: str = "key") -> dict[str, Any]:
    """Add such a version; returns its manifest. Its promotion, if any, is not in the log yet."""

    def write(folder: Path, number: int) -> dict[str, Any]:
        (folder / "metrics.json").write_text(json.dumps({"test_accuracy": accuracy}))
        fill(folder)
        return stated(made_from=key, test_accuracy=accuracy, verdict=verdict(number, promoted))

    with store_lock(root):
        return add_version(root, write)
