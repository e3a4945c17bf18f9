"""Delete versions that are not needed, and stage outputs, checkpoints and leftovers that no kept version refers to.

Kept are the versions with an alias, the champion's predecessor, the newest ones, the newest one that waits for a
decision, and damaged ones. A folder is renamed to a temporary name before its deletion: for readers it is complete or
absent, whenever the process is killed.

With FASHION_ANN_REMOTE, a version is removed for all machines, and objects that no machine needs are deleted there.

The artifacts folder may contain files of the user. A folder is deleted only if its name is that of a stage output or a
version, and its own record confirms that. It must contain no file that the record does not list.
"""

import math
import re
import stat
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from schemas.errors import OtherLayout, StoredArtifactError, VersionNotFound, WrongUsage
from schemas.layout import (
    MANIFEST_NAME,
    RECORD_NAME,
    SIGNATURE_NAME,
    VALIDATION_FOLDER,
    Artifacts,
    is_litter,
    is_short_key,
    name_of_temporary,
    short_key,
)
from tasks.registry.alias_log import CHAMPION, alias_values, champions
from tasks.registry.remote_gc import unreferenced_objects
from tasks.registry.store import ModelStore
from tasks.runtime.files import contains_mount_point, discard_folder, is_discarded, remove_leftover
from tasks.runtime.locks import artifacts_lock
from tasks.runtime.stage_cache import read_record
from tasks.runtime.stages import INGEST, PREPARE_SHARD, SCAN_SHARD, Stage, output_folders
from tasks.runtime.stored_file import read_json

Kind = Literal["version", "stage", "checkpoint", "leftover", "remote"]

DEFAULT_KEEP = 5

_CHECKPOINT = re.compile(r"[0-9a-f]{64}\.npz")
_QUARANTINE = re.compile(r"[a-z]+-[0-9a-f]+\.parquet")
_RETURNED = re.compile(r"[0-9a-f]{32}|[0-9a-f]{64}")  # as Prefect names a result, and as its main flow renames it


# Links that are deleted, by device and inode.
_Links = Counter[tuple[int, int]]


@dataclass(frozen=True)
class Removal:
    """One file or folder to delete, and the bytes that this frees. ``leftover``: of a killed run or an earlier removal.

    A file with several hard links, such as the rows of a shard, is counted with the last link that is deleted.
    path: for the kind "remote", the address of an object.
    """

    kind: Kind
    path: Path | str
    bytes: int


@dataclass(frozen=True)
class Plan:
    """The items to delete and the versions to keep. ``notes`` are sentences for people: reasons, what was cleaned.

    run_active: stage outputs stay because a run may rely on them.
    """

    removed: tuple[Removal, ...]
    kept_versions: tuple[int, ...]
    notes: tuple[str, ...]
    run_active: bool = False

    @property
    def bytes(self) -> int:
        return sum(removal.bytes for removal in self.removed)


def plan(artifacts_dir: Path, dataset: str, keep: int = DEFAULT_KEEP) -> Plan:
    """Return what `collect` would delete, and change nothing.

    keep: number of newest versions that are always kept, at least 1, so that version numbers only rise.

    Raises `StoredArtifactError` if the alias log cannot be read: the champion is unknown then.
    """
    planned = _plan(artifacts_dir, ModelStore.of(artifacts_dir, dataset).refresh(), keep, with_stages=True)
    if any(removal.kind in ("stage", "checkpoint") for removal in planned.removed):
        # A dry run takes no lock, so it does not know whether a run is active.
        note = "Stage outputs and checkpoints are deleted only while no run is active."
        return replace(planned, notes=(*planned.notes, note))
    return planned


def collect(
    artifacts_dir: Path,
    dataset: str,
    keep: int = DEFAULT_KEEP,
    seconds: float = math.inf,
    on_plan: Callable[[Plan], None] = lambda plan: None,
) -> Plan:
    """Delete what `plan` lists, and return it. Stage outputs stay while a run is active.

    on_plan: receives the plan before anything is deleted.

    Calls `ModelStore.recover` before the first deletion. Raises `LockHeld` if another process writes to the store for
    ``seconds``.
    """
    store = ModelStore.of(artifacts_dir, dataset)
    if not artifacts_dir.is_dir() and store.mirror is None:
        return plan(artifacts_dir, dataset, keep)
    # A run takes these two locks in the other order. This cannot deadlock: it does not wait for the second one.
    with store.lock(seconds), artifacts_lock(artifacts_dir, exclusive=True) as exclusive:
        store.synchronize()
        planned = _plan(artifacts_dir, store, keep, with_stages=exclusive)
        on_plan(planned)
        # Before any deletion, because it raises for a log that does not match the versions.
        cleaned = [f"{line}." for line in store.recover()]
        # Versions first: if the process is killed here, the next one finds their stage outputs without a reference.
        removed = tuple(removal for removal in planned.removed if _remove(store, removal))
    return replace(planned, removed=removed, notes=(*cleaned, *planned.notes))


def _plan(artifacts_dir: Path, store: ModelStore, keep: int, *, with_stages: bool) -> Plan:
    if keep < 1:
        raise WrongUsage(f"--keep: expected 1 or more, received {keep}. The newest version is always kept.")
    numbers = store.numbers()
    damaged: dict[int, str] = {}
    newest_waiting: set[int] = set()
    for number in numbers:
        try:
            with suppress(OtherLayout):  # deleted like any other version
                version = store.version(number)
                version.signature()
                if version.manifest.verdict.outcome == "waiting":
                    newest_waiting = {number}
            _require_own_files(store.folder(number))
        except (StoredArtifactError, VersionNotFound) as error:
            damaged[number] = str(error)
    kept = (_kept(store, numbers, keep) | newest_waiting) - store.removed_elsewhere | set(damaged)
    notes = [f"Version {number} is damaged and is kept: {reason}" for number, reason in damaged.items()]

    links = _Links()
    removed = [_removal("leftover", path, links) for path in store.leftovers()]
    removed += [_removal("version", store.folder(number), links) for number in numbers if number not in kept]
    unreferenced: list[Removal | str] = []
    keys = _referenced_keys(artifacts_dir, store, kept) if with_stages else None
    if keys is None:
        notes.append("Stage outputs are kept: a run is active and may rely on them. Run gc again later.")
    elif isinstance(keys, str):
        notes.append(
            f"Stage outputs are kept, because the stages of a version are unknown: {keys} Restore it from a copy, or "
            "remove its folder by hand, and run gc again."
        )
    else:
        unreferenced += _unreferenced(artifacts_dir, keys, links)
    unreferenced += _unreferenced_in_remote(store, set(numbers) - kept)
    removed += [entry for entry in unreferenced if isinstance(entry, Removal)]
    notes += [entry for entry in unreferenced if isinstance(entry, str)]
    return Plan(tuple(removed), tuple(sorted(kept)), tuple(notes), run_active=not with_stages)


def _require_own_files(folder: Path) -> None:
    """Raise `StoredArtifactError` if a version contains anything but the files that its manifest, of any layout, names.

    The digest of the manifest was checked.
    """
    files = read_json(folder / MANIFEST_NAME).get("files")
    named = {MANIFEST_NAME, SIGNATURE_NAME, *(files if isinstance(files, dict) else ())}
    for path in sorted(folder.iterdir()):
        if not is_litter(path.name) and (path.name not in named or path.is_symlink() or not path.is_file()):
            raise StoredArtifactError(f"{path} is not named by the manifest as a file. Move it away first.")


def _kept(store: ModelStore, numbers: list[int], keep: int) -> set[int]:
    events, stored = store.history(), set(numbers)
    # The champion, and the one that a rollback restores: versions that were removed by hand are passed over.
    last_champions = [number for number in champions(events) if number in stored][-2:]
    # After a rollback the previous champion is no predecessor, but may be wanted back.
    previous = stored & {event.before for event in [event for event in events if event.alias == CHAMPION][-1:]}
    return {*numbers[-keep:], *last_champions, *previous, *(stored & set(alias_values(events).values()))}


def _referenced_keys(artifacts_dir: Path, store: ModelStore, kept: set[int]) -> set[str] | str:
    """Return the short keys of all stages in the lineage of kept versions, or why a manifest cannot be read.

    All datasets share the stage outputs: every version of another store counts as kept.
    """
    others = (ModelStore(root) for root in Artifacts(artifacts_dir).stores.glob("*/") if root != store.root)
    versions = [(store, number) for number in kept]
    versions += [(other, number) for other in others for number in other.numbers()]
    keys: set[str] = set()
    for owner, number in versions:
        try:
            keys |= {short_key(entry.key) for entry in owner.version(number).manifest.lineage}
        except OtherLayout:
            continue  # this release cannot use its stage outputs
        except (StoredArtifactError, VersionNotFound) as error:
            return str(error)
    return keys | _keys_of_shards(artifacts_dir, keys)


def _keys_of_shards(artifacts_dir: Path, keys: set[str]) -> set[str]:
    """Return the short keys of the outputs per shard that the splits among ``keys`` were made from.

    No manifest names them. Without them a split with one more shard would cost the work of every shard.
    """
    shards: set[str] = set()
    parts: set[str] = set()
    for record in _records(INGEST, artifacts_dir):
        if short_key(record["key"]) in keys:
            shards |= {short_key(key) for key in record["facts"]["shards"]}
            parts |= set(record["facts"]["part_sha256"])
    for stage in (SCAN_SHARD, PREPARE_SHARD):
        shards |= {
            short_key(record["key"]) for record in _records(stage, artifacts_dir) if record["inputs"]["part"] in parts
        }
    return shards


def _records(stage: Stage, artifacts_dir: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of a stage's intact outputs."""
    for path in stage.outputs(artifacts_dir).glob("*"):
        with suppress(StoredArtifactError, LookupError, TypeError):
            if is_short_key(path.name) and (record := read_record(path))["stage"] == stage.name:
                yield record


def _unreferenced_in_remote(store: ModelStore, removed: set[int]) -> list[Removal | str]:
    """Return the objects that are garbage once the versions ``removed`` are gone, or why all objects are kept."""
    if store.mirror is None:
        return []
    remote = store.mirror.remote
    try:
        garbage = list(unreferenced_objects(remote, store.mirror.dataset, removed))
    except StoredArtifactError as error:
        return [f"Everything in {remote.address} is kept: {error}"]
    return [Removal("remote", f"{remote.address}/{entry.name}", entry.size) for entry in garbage]


def _unreferenced(artifacts_dir: Path, keys: set[str], links: _Links) -> Iterator[Removal | str]:
    """Yield outputs, locks, checkpoints and temporary files that belong to none of ``keys``. No run may be active.

    For an output that must stay, yield a sentence with the reason instead.
    """
    artifacts = Artifacts(artifacts_dir)
    removed: set[Path] = set()
    for folder in output_folders(artifacts_dir):
        if folder.parent in removed or not folder.is_dir():
            continue  # a validation is removed together with its data
        if folder.name == VALIDATION_FOLDER and (folder.is_symlink() or folder.parent.is_symlink()):
            continue  # of another artifacts folder
        for path in sorted(folder.iterdir()):
            if (key := _key_of(path)) is None:
                continue
            # The lock of a kept output is kept.
            if path.suffix == ".tmp" or (path.suffix == ".lock" and key not in keys):
                removed.add(path)
                yield _removal("leftover", path, links)
            elif path.name not in keys and not path.suffix:
                if (reason := _reason_to_keep(path)) is None:
                    removed.add(path)
                    yield _removal("stage", path, links)
                else:
                    yield f"{path} is kept: {reason}"
    # Quarantined rows are kept: the file may be their only copy.
    others: tuple[tuple[Kind, Path, re.Pattern[str], bool], ...] = (
        ("checkpoint", artifacts.checkpoints, _CHECKPOINT, False),
        ("leftover", artifacts.checkpoints, _CHECKPOINT, True),
        ("leftover", artifacts.quarantine, _QUARANTINE, True),
        ("leftover", artifacts.returned, _RETURNED, False),
    )
    for kind, folder, pattern, temporary in others:
        for path in sorted(folder.glob("*")):
            name = name_of_temporary(path.name) if temporary else path.name
            if pattern.fullmatch(name or "") and path.is_file() and not path.is_symlink():
                yield _removal(kind, path, links)


def _key_of(path: Path) -> str | None:
    """Return the short key of a stage output, its lock or its temporary folder. None for any other file or folder."""
    key = path.name
    if (temporary := name_of_temporary(key)) is not None:
        key = temporary.removesuffix(f".{RECORD_NAME}")
    elif key.startswith(".") and key.endswith(".lock") and path.is_file():
        key = key[1:].removesuffix(".lock")
    return key if is_short_key(key) else None


def _reason_to_keep(folder: Path) -> str | None:
    """Return why the folder, which has the name of a stage output, is not deleted. None if a stage wrote all of it."""
    if folder.is_symlink() or not folder.is_dir():
        return "it is not a folder, so no stage wrote it."
    if contains_mount_point(folder):
        return "something is mounted in it. Unmount that first."
    if is_discarded(folder, RECORD_NAME):
        return None
    try:
        record = read_record(folder)
    except StoredArtifactError as error:
        return f"{error} Remove the folder by hand if a run wrote it."
    if short_key(str(record.get("key"))) != folder.name or not isinstance(record.get("files"), dict):
        return f"its {RECORD_NAME} is that of another output. Remove the folder by hand if a run wrote it."
    validation = folder / VALIDATION_FOLDER
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        if inside.as_posix() in {RECORD_NAME, *record["files"]} or any(map(is_litter, inside.parts)):
            continue
        if validation not in path.parents:
            foreign = path.is_symlink() or not path.is_dir()
        else:
            foreign = path.parent == validation and _key_of(path) is None
            if path.parent == validation and is_short_key(path.name) and (reason := _reason_to_keep(path)):
                return reason
        if foreign:
            return f"no stage wrote {path}. Move it away first."
    return None


def _removal(kind: Kind, path: Path, links: _Links) -> Removal:
    total = 0
    for file in [path] if path.is_symlink() else [path, *path.rglob("*")]:
        with suppress(FileNotFoundError):  # removed meanwhile: a dry run holds no lock
            status = file.lstat()
            inode = status.st_dev, status.st_ino
            links[inode] += 1
            total += status.st_size if not stat.S_ISDIR(status.st_mode) and links[inode] >= status.st_nlink else 0
    return Removal(kind, path, total)


def _remove(store: ModelStore, removal: Removal) -> bool:
    """Delete an item. Return False if a part of it cannot be deleted yet, which is logged."""
    if isinstance(removal.path, str):
        if store.mirror is not None:
            remote = store.mirror.remote
            remote.delete([removal.path.removeprefix(f"{remote.address}/")])
        return True
    match removal.kind:
        case "version":
            if store.mirror is not None:
                store.mirror.remove_version(int(removal.path.name))
            return discard_folder(removal.path, MANIFEST_NAME)
        case "stage":
            return discard_folder(removal.path, RECORD_NAME)
    return remove_leftover(removal.path)  # `ModelStore.recover` may have removed it already
