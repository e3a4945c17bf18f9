"""The model store on disk: immutable versions, and an append-only log of who is champion. It knows no Prefect.

Layout under ``root`` (artifacts/models/<dataset>): ``versions/0001/...`` with a ``manifest.json`` that was written
last, and ``aliases.jsonl``. Readers trust what a manifest names, after its digest was checked; nothing else.
"""

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock
from pydantic import ValidationError

from schemas.errors import StoredArtifactError, VersionNotFound
from schemas.layout import (
    ALIAS_LOG_NAME,
    MANIFEST_NAME,
    METRICS_NAME,
    STORED_NAMES,
    VERSIONS_FOLDER,
    Artifacts,
)
from schemas.store import Manifest
from tasks.registry.alias_log import _read_log, alias_values, append_event, read_alias_log
from tasks.runtime.files import (
    describe_files,
    digest_of,
    pretty_json,
    remove_path,
    sha256_file,
    sync_to_disk,
    write_json,
)

logger = logging.getLogger(__name__)


# What every version has; its manifest may name more.

# As `version_folder` writes them: a number has one name.
_VERSION_FOLDER = re.compile(r"[0-9]{4}|[1-9][0-9]{4,8}")


def store_folder(artifacts_dir: Path, dataset: str) -> Path:
    return Artifacts(artifacts_dir).store(dataset)


def version_folder(root: Path, version: int) -> Path:
    return root / VERSIONS_FOLDER / f"{version:04d}"


def version_numbers(root: Path) -> list[int]:
    """Ascending. A folder under a temporary name is no version."""
    folder = root / VERSIONS_FOLDER
    if not folder.is_dir():
        return []
    return sorted(int(entry.name) for entry in folder.iterdir() if _VERSION_FOLDER.fullmatch(entry.name))


def read_manifest(root: Path, version: int) -> dict[str, Any]:
    """A version's manifest (`schemas.store.Manifest`), after its own digest and its shape were checked.

    Raises `VersionNotFound`, or `StoredArtifactError` when the manifest is not what was written, or its folder is a
    link.
    """
    folder = version_folder(root, version)
    path = folder / MANIFEST_NAME
    if not folder.exists() and not folder.is_symlink():
        raise VersionNotFound(_no_such(root, str(version)))
    for place in (folder, path):
        if place.is_symlink():
            raise StoredArtifactError(f"{place} is a link; nothing outside the store is read.")
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        if not folder.exists():  # `gc` took it meanwhile
            raise VersionNotFound(_no_such(root, str(version))) from None
        raise StoredArtifactError(f"{path}: a manifest was expected, found none.") from None
    except OSError as error:
        raise StoredArtifactError(f"{path}: a manifest was expected, it cannot be read ({error.strerror}).") from error
    received = f"found bytes with sha256 {hashlib.sha256(content).hexdigest()}"
    try:
        manifest: dict[str, Any] = json.loads(content)
        stated = manifest["manifest_sha256"]
        found = digest_of({key: value for key, value in manifest.items() if key != "manifest_sha256"})
        unchanged = content == pretty_json(manifest)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise StoredArtifactError(
            f"{path}: expected a manifest that states its sha256, {received} ({error})."
        ) from error
    if found != stated:
        raise StoredArtifactError(f"{path}: expected content with sha256 {stated}, found {found}.")
    if not unchanged:
        raise StoredArtifactError(
            f"{path} was edited: expected the text that was written for sha256 {stated}, {received}."
        )
    try:
        held = Manifest.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise StoredArtifactError(f"{path}, {key}: {first['msg']}; it is no manifest of ours, {received}.") from error
    event = held.verdict.event
    if held.version != version or (event is not None and event.to != version):
        raise StoredArtifactError(f"{path} speaks of another version than {version}: it was put there by hand.")
    if missing := STORED_NAMES - set(held.files):
        raise StoredArtifactError(f"{path} does not name {', '.join(sorted(missing))}, which every version has.")
    return manifest


def check_version(root: Path, manifest: Mapping[str, Any]) -> None:
    """Check every file of a version, and that there are no others.

    Raises `StoredArtifactError` naming the file, the expected and the found digest.
    """
    folder = version_folder(root, manifest["version"])
    for entry in sorted(folder.rglob("*")):
        name = entry.relative_to(folder).as_posix()
        if name != MANIFEST_NAME and name not in manifest["files"]:
            raise StoredArtifactError(f"{entry} is not named by the manifest: no such file was expected. Remove it.")
    for name in manifest["files"]:
        checked_path(root, manifest, name)


def read_file(root: Path, manifest: Mapping[str, Any], name: str) -> bytes:
    """The bytes of a file that the manifest names, if they are what it says."""
    path = checked_path(root, manifest, name)
    return path.read_bytes()


def checked_path(root: Path, manifest: Mapping[str, Any], name: str) -> Path:
    """Path of a file of a version, after its sha256 was checked.

    Raises `StoredArtifactError` naming the file, the expected and the found digest.
    """
    entry = manifest["files"].get(name)
    path = version_folder(root, manifest["version"]) / name
    if entry is None:
        raise StoredArtifactError(f"{path} is not named by its manifest; it was not opened.")
    if path.is_symlink() or not path.is_file():
        raise StoredArtifactError(f"{path}: expected a file with sha256 {entry['sha256']}, found none.")
    found = sha256_file(path)
    if found != entry["sha256"]:
        raise StoredArtifactError(f"{path}: expected sha256 {entry['sha256']}, found {found}.")
    return path


def resolve(root: Path, name: str) -> int:
    """A version's number from "3", "0003", "v3" or an alias."""
    digits = name.removeprefix("v")
    numbers = version_numbers(root)
    if digits.isascii() and digits.isdigit():
        # Compared as text: a name may have more digits than Python makes a number of.
        for number in numbers:
            if str(number) == digits.lstrip("0"):
                return number
    elif name in (aliases := alias_values(read_alias_log(root))):
        if aliases[name] not in numbers:
            raise VersionNotFound(f"{name} names version {aliases[name]}, which is gone from {root}.")
        return aliases[name]
    raise VersionNotFound(_no_such(root, name))


def _no_such(root: Path, name: str) -> str:
    numbers = version_numbers(root)
    held = f"versions {numbers[0]} to {numbers[-1]}" if numbers else "no version yet; `fashion-ann train` makes one"
    return f"There is no version or alias {name!r} in {root}. It holds {held}."


def list_versions(root: Path) -> list[dict[str, Any]]:
    """One summary a version, oldest first: version, created, test_accuracy, test_loss, outcome, aliases, path.

    ``damaged`` is None, or why the manifest cannot be read: what it would have said is then None, too.
    """
    values = alias_values(read_alias_log(root))
    rows = []
    for number in version_numbers(root):
        manifest: dict[str, Any] = {}
        damaged = None
        try:
            manifest = read_manifest(root, number)
        except VersionNotFound:
            continue  # `gc` took it meanwhile
        except StoredArtifactError as error:
            damaged = str(error)
        rows.append(
            {
                "version": number,
                **{name: manifest.get(name) for name in ("created", "test_accuracy", "test_loss")},
                "outcome": manifest["verdict"]["outcome"] if manifest else None,
                "aliases": sorted(alias for alias, version in values.items() if version == number),
                "path": str(version_folder(root, number)),
                "damaged": damaged,
            }
        )
    return rows


def show_version(root: Path, version: int) -> dict[str, Any]:
    """The manifest, with the metrics under ``metrics``, the aliases and the path, once every file was checked."""
    manifest = read_manifest(root, version)
    check_version(root, manifest)
    values = alias_values(read_alias_log(root))
    return {
        **manifest,
        "metrics": json.loads(read_file(root, manifest, METRICS_NAME)),
        "aliases": sorted(alias for alias, held in values.items() if held == version),
        "path": str(version_folder(root, version)),
    }


def store_lock(root: Path) -> FileLock:
    """One writer at a time; the kernel lets go of it when its holder dies."""
    root.mkdir(parents=True, exist_ok=True)
    return FileLock(root / ".lock")


def find_by_inputs(root: Path, key: str) -> int | None:
    """The newest version that these inputs made before, if any. A damaged one is said, and is none."""
    for number in reversed(version_numbers(root)):
        try:
            manifest = read_manifest(root, number)
            if manifest["made_from"] == key:
                check_version(root, manifest)
                return number
        except StoredArtifactError as error:
            # A damaged old version must not keep a new one out.
            logger.warning("%s", error)
    return None


def add_version(root: Path, write: Callable[[Path, int], dict[str, Any]]) -> dict[str, Any]:
    """Add the next version; returns its manifest. The caller holds `store_lock`.

    write: puts the files into the folder that it is handed and returns the manifest without ``version``, ``files`` and
    digest. Killed at any moment, the version is whole or absent.
    """
    versions = root / VERSIONS_FOLDER
    versions.mkdir(parents=True, exist_ok=True)
    number = max([*version_numbers(root), *(event["to"] for event in read_alias_log(root))], default=0) + 1
    temporary = versions / f".{number:04d}.{os.getpid()}.tmp"
    temporary.mkdir()
    try:
        stated = write(temporary, number)
        manifest = {**stated, "version": number, "files": describe_files(temporary)}
        manifest["manifest_sha256"] = digest_of(manifest)
        write_json(temporary / MANIFEST_NAME, manifest)
        for path in (*temporary.iterdir(), temporary):
            sync_to_disk(path)
        temporary.rename(version_folder(root, number))
        sync_to_disk(versions)
    except OSError as error:
        # A full disk names no file by itself.
        error.filename = error.filename or str(temporary)
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return manifest


def recover(root: Path, *, restore: bool = False) -> list[str]:
    """Finish or undo what a killed writer left; returns what was done, for people. The caller holds `store_lock`.

    Raises `StoredArtifactError` when the log lacks a promotion that a manifest states (`history`); with
    ``restore`` it is logged again.
    """
    done = []
    for left in (root / VERSIONS_FOLDER).glob(".*.tmp"):
        remove_path(left)
        done.append(f"removed {left}, a version that was not finished, or not wholly removed")
    log = root / ALIAS_LOG_NAME
    _, tail = _read_log(root)
    if tail:
        # The event had not happened: its line was not whole.
        os.truncate(log, log.stat().st_size - len(tail))
        done.append(f"cut an unfinished last line off {log}")
    elif log.exists() and (content := log.read_bytes()) and not content.endswith(b"\n"):
        with log.open("ab") as file:
            file.write(b"\n")
        done.append(f"ended the last line of {log}, which had lost its line end")
    for number, event in _unlogged(root, restore=restore):
        append_event(root, event)
        done.append(f"logged the promotion of version {number}, which its manifest states")
    return done


def history(root: Path) -> list[dict[str, Any]]:
    """The alias log as the next writer will leave it (`recover`), oldest first, checked against the versions.

    Raises `StoredArtifactError` when it lacks a promotion that a manifest states: a log that was lost, or cut at its
    end, replays to another champion.
    """
    return [*read_alias_log(root), *(event for _, event in _unlogged(root))]


def _unlogged(root: Path, *, restore: bool = False) -> Iterator[tuple[int, dict[str, Any]]]:
    """Versions whose manifest states a promotion that the log does not have, and the event.

    A kill between a version and its promotion leaves that of the newest one to be logged. Of any other it raises
    `StoredArtifactError`, unless it is to be logged again (``restore``).
    """
    events = read_alias_log(root)
    numbers = version_numbers(root)
    for number in numbers:
        try:
            event = read_manifest(root, number)["verdict"]["event"]
        except (StoredArtifactError, VersionNotFound):
            continue  # a damaged version states nothing
        if event is None or event in events:
            continue
        if number != numbers[-1] and not restore:
            raise StoredArtifactError(_lost(root, number))
        yield number, event


def _lost(root: Path, number: int) -> str:
    return (
        f"{root / ALIAS_LOG_NAME} lacks the promotion of version {number} that its manifest states: the log was lost, or cut "
        "at its end. Restore it from a copy; without one, `fashion-ann promote V --reason R --force` logs the stated "
        "promotions again and then makes V champion."
    )
