"""Stored versions that someone changed and sealed again: every digest matches the changed files."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from schemas.layout import MANIFEST_NAME
from schemas.store import AliasEvent
from tasks.registry.store import ModelStore
from tasks.runtime.files import describe_files, digest_of, write_json
from tests.stored import event


def reseal(folder: Path, change: Callable[[dict[str, Any]], object] = lambda manifest: None) -> None:
    """Write the manifest of a version again, for its present files and with a ``change`` of its other content."""
    path = folder / MANIFEST_NAME
    manifest: dict[str, Any] = json.loads(path.read_bytes())
    del manifest["manifest_sha256"]
    described = describe_files(folder)
    manifest["files"] = {name: described.get(name, entry) for name, entry in manifest["files"].items()}
    change(manifest)
    write_json(path, {**manifest, "manifest_sha256": digest_of(manifest)})


def three_versions(version: Path, artifacts: Path) -> ModelStore:
    """Copy a version of the sample three times into a store. The third is the champion after the second."""
    store = ModelStore.of(artifacts, "fashion-mnist")
    for number in (1, 2, 3):
        shutil.copytree(version, store.folder(number))

        def renumber(manifest: dict[str, Any], number: int = number) -> None:
            verdict = {**manifest["verdict"], "outcome": "kept", "event": None}
            manifest.update(version=number, verdict=verdict, alias_log=None)

        reseal(store.folder(number), renumber)
    moves: list[AliasEvent] = [event(1), event(2, 1), event(3, 2)]
    with store.lock():
        for move in moves:
            store.aliases.append(move)
    return store
