"""Remove what nothing reaches: old versions, and outputs of stages that no kept version was made from. No Prefect.

Kept are the versions that an alias names, the champion's predecessor, the newest ones, and every damaged one. What is
removed gets a temporary name first, so that it is whole or gone for readers, whenever the process is killed.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from schemas.errors import StoredArtifactError, VersionNotFound, WrongUsage
from schemas.layout import VERSIONS_FOLDER, Artifacts, short_key
from tasks.registry.alias_log import alias_values, champions
from tasks.registry.store import (
    history,
    read_manifest,
    recover,
    store_folder,
    store_lock,
    version_folder,
    version_numbers,
)
from tasks.runtime.files import remove_path
from tasks.runtime.locks import artifacts_lock

Kind = Literal["version", "stage", "checkpoint", "leftover"]

DEFAULT_KEEP = 5


@dataclass(frozen=True)
class Removal:
    """One thing that goes, and the bytes of its files. ``leftover``: what a killed run or an earlier removal left."""

    kind: Kind
    path: Path
    bytes: int


@dataclass(frozen=True)
class Plan:
    """What goes and what stays. ``notes`` are sentences for people: why something stays, what was cleaned."""

    removed: tuple[Removal, ...]
    kept_versions: tuple[int, ...]
    notes: tuple[str, ...]

    @property
    def bytes(self) -> int:
        return sum(removal.bytes for removal in self.removed)


def plan(artifacts_dir: Path, dataset: str, keep: int = DEFAULT_KEEP) -> Plan:
    """What `collect` would remove. Reads, and writes nothing.

    keep: so many of the newest versions stay whatever they are; at least 1, so that numbers only rise.
    Raises `StoredArtifactError` when the alias log cannot be read: nobody knows then who is champion.
    """
    planned = _plan(artifacts_dir, dataset, keep, with_stages=True)
    if {"stage", "checkpoint"} & {removal.kind for removal in planned.removed}:
        # Whether a run goes on is not asked: that takes a lock.
        note = "Outputs of stages and checkpoints go only if no run is going on then."
        return Plan(planned.removed, planned.kept_versions, (*planned.notes, note))
    return planned


def collect(artifacts_dir: Path, dataset: str, keep: int = DEFAULT_KEEP) -> Plan:
    """Remove what `plan` lists, and return it; outputs of stages are left while a run goes on.

    What a killed writer or an earlier removal left is cleaned first (`tasks.registry.store.recover`).
    """
    _demand_one(keep)
    if not artifacts_dir.is_dir():
        return Plan((), (), ())
    root = store_folder(artifacts_dir, dataset)
    # A run takes the two locks in the other order; that this one does not wait for the second is what makes it safe.
    with store_lock(root), artifacts_lock(artifacts_dir, exclusive=True) as exclusive:
        planned = _plan(artifacts_dir, dataset, keep, with_stages=exclusive)
        # Before anything is removed: it refuses a log that does not fit the versions.
        cleaned = [f"{line}." for line in recover(root)]
        # Versions first: killed in between, what they were made from is found again.
        for removal in planned.removed:
            _remove(removal)
    return Plan(planned.removed, planned.kept_versions, (*cleaned, *planned.notes))


def _demand_one(keep: int) -> None:
    if keep < 1:
        raise WrongUsage(f"--keep: 1 or more was expected, received {keep}. The newest version always stays.")


def _plan(artifacts_dir: Path, dataset: str, keep: int, *, with_stages: bool) -> Plan:
    _demand_one(keep)
    root = store_folder(artifacts_dir, dataset)
    numbers = version_numbers(root)
    damaged = dict(_damaged(root, numbers))
    kept = _kept(root, numbers, keep, set(damaged))
    notes = [f"Version {number} is damaged and stays: {why}" for number, why in damaged.items()]

    removed = [_removal("leftover", path) for path in sorted((root / VERSIONS_FOLDER).glob(".*.tmp"))]
    removed += [_removal("version", version_folder(root, number)) for number in numbers if number not in kept]
    if not with_stages:
        notes.append("A run is going on: outputs of stages were left, because it may rely on them. Run gc again later.")
    else:
        keys = _keys_reached(artifacts_dir, root, kept)
        if keys is None:
            notes.append(
                "Outputs of stages were left: a version that stays does not say what it was made from. Restore it from "
                "a copy, or remove its folder by hand, and run gc again."
            )
        else:
            removed += _unreached(artifacts_dir, keys)
    return Plan(tuple(removed), tuple(sorted(kept)), tuple(notes))


def _damaged(root: Path, numbers: list[int]) -> Iterator[tuple[int, str]]:
    for number in numbers:
        try:
            read_manifest(root, number)
        except (StoredArtifactError, VersionNotFound) as error:
            yield number, str(error)


def _kept(root: Path, numbers: list[int], keep: int, damaged: set[int]) -> set[int]:
    events = history(root)
    # Of the champions that are still there: one that somebody removed by hand is nothing to roll back to.
    held = [number for number in champions(events) if number in numbers]
    # Who was champion just before, too: after a rollback that is not the predecessor, and may be wanted back.
    before = {event["from"] for event in events[-1:]} & set(numbers)
    return {*numbers[-keep:], *held[-2:], *before, *damaged, *(set(alias_values(events).values()) & set(numbers))}


def _keys_reached(artifacts_dir: Path, root: Path, kept: set[int]) -> set[str] | None:
    """Beginnings of the keys of all stages that a kept version names, or None where one of them cannot be read.

    Stages are shared by the stores of all datasets: of the other ones every version counts as kept.
    """
    reached = {(root, number) for number in kept}
    for other in Artifacts(artifacts_dir).stores.glob("*/"):
        if other != root:
            reached |= {(other, number) for number in version_numbers(other)}
    keys: set[str] = set()
    for store, number in reached:
        try:
            keys |= {short_key(entry["key"]) for entry in read_manifest(store, number)["lineage"]}
        except (StoredArtifactError, VersionNotFound, KeyError, TypeError):
            return None
    return keys


def _unreached(artifacts_dir: Path, keys: set[str]) -> Iterator[Removal]:
    """Outputs, locks, checkpoints and temporary names that belong to none of ``keys``. No run may be going on."""
    artifacts = Artifacts(artifacts_dir)
    gone: set[Path] = set()
    for folder in artifacts.stage_folders():
        if folder.parent in gone or not folder.is_dir():
            continue  # what validate found goes with its data, whatever name that has
        for path in sorted(folder.iterdir()):
            if path.name.startswith("."):
                key = path.name[1:].partition(".")[0]
                # A lock is no more than a name: it stays with its output.
                if path.name.endswith(".tmp") or (path.name.endswith(".lock") and key not in keys):
                    gone.add(path)
                    yield _removal("leftover", path)
            elif path.is_dir() and path.name not in keys:
                gone.add(path)
                yield _removal("stage", path)
    for path in sorted(artifacts.checkpoints.glob("*")):
        if path.suffix == ".npz":
            yield _removal("checkpoint", path)
    # Quarantined rows stay: the file may be their only copy.
    for folder, pattern in (
        (artifacts.checkpoints, ".*.tmp"),
        (artifacts.quarantine, ".*.tmp"),
        (artifacts.returned, "*"),
    ):
        for leftover in sorted(folder.glob(pattern)):
            yield _removal("leftover", leftover)


def _removal(kind: Kind, path: Path) -> Removal:
    files = [path] if not path.is_dir() or path.is_symlink() else path.rglob("*")
    total = 0
    for file in files:
        try:
            total += 0 if file.is_dir() and not file.is_symlink() else file.lstat().st_size
        except FileNotFoundError:  # a plan holds no lock
            continue
    return Removal(kind, path, total)


def _remove(removal: Removal) -> None:
    path = removal.path
    if removal.kind in ("version", "stage"):
        # The name that `recover`, the stage's next run and the next gc clean up.
        hidden = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        path.rename(hidden)
        path = hidden
    # Of the others `recover` may have been there.
    remove_path(path)
