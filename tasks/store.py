"""The model store on disk: immutable versions, and an append-only log of who is champion. It knows no Prefect.

Layout under ``root`` (artifacts/models/<dataset>): ``versions/0001/...`` with a ``manifest.json`` that was written
last, and ``aliases.jsonl``. Readers trust what a manifest names, after its digest was checked; nothing else.
"""

import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock

from schemas.errors import StoredArtifactError, VersionNotFound
from tasks.stage import describe_files, digest_of, json_for_people, sha256_file, write_json

logger = logging.getLogger(__name__)

MANIFEST_NAME = "manifest.json"
METRICS_NAME = "metrics.json"
VERDICT_NAME = "verdict.json"
CHAMPION = "champion"
# Who moved an alias, where what it means hangs on it: the event takes moves back instead of making one.
ROLLBACK = "rollback"

_VERSION_FOLDER = re.compile(r"\d{4,}")


def store_folder(artifacts_dir: Path, dataset: str) -> Path:
    return artifacts_dir / "models" / dataset


def version_folder(root: Path, version: int) -> Path:
    return root / "versions" / f"{version:04d}"


def utc_now() -> str:
    """ISO 8601, UTC, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def version_numbers(root: Path) -> list[int]:
    """Ascending. A folder under a temporary name is no version."""
    folder = root / "versions"
    if not folder.is_dir():
        return []
    return sorted(int(entry.name) for entry in folder.iterdir() if _VERSION_FOLDER.fullmatch(entry.name))


def read_manifest(root: Path, version: int) -> dict[str, Any]:
    """A version's manifest, after its own digest was checked.

    Raises `VersionNotFound`, or `StoredArtifactError` when the manifest is not what was written.
    """
    folder = version_folder(root, version)
    if not folder.is_dir():
        raise VersionNotFound(_no_such(root, str(version)))
    path = folder / MANIFEST_NAME
    try:
        if path.is_symlink():
            raise ValueError("it is a link")
        content = path.read_bytes()
        manifest: dict[str, Any] = json.loads(content)
        stated = manifest["manifest_sha256"]
        found = digest_of({key: value for key, value in manifest.items() if key != "manifest_sha256"})
        unchanged = content == json_for_people(manifest)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise StoredArtifactError(f"{path} cannot be read as a manifest ({error}).") from error
    if found != stated:
        raise StoredArtifactError(f"{path}: expected content with sha256 {stated}, found {found}.")
    if not unchanged or manifest["version"] != version:
        raise StoredArtifactError(f"{path} was edited: it is not the text that was written for version {version}.")
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
    """Path of a file of a version, after its size and sha256 were checked.

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
    if digits.isascii() and digits.isdigit():
        if int(digits) in version_numbers(root):
            return int(digits)
    elif name in (aliases := alias_values(read_alias_log(root))):
        return aliases[name]
    raise VersionNotFound(_no_such(root, name))


def _no_such(root: Path, name: str) -> str:
    numbers = version_numbers(root)
    held = f"versions {numbers[0]} to {numbers[-1]}" if numbers else "no version yet; `fashion-ann train` makes one"
    return f"There is no version or alias {name!r} in {root}. It holds {held}."


def read_alias_log(root: Path) -> list[dict[str, Any]]:
    """All events, oldest first. A last line without its line end was cut off by a kill and never happened."""
    path = root / "aliases.jsonl"
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")
    events: list[dict[str, Any]] = []
    chained = ""
    for number, line in enumerate(lines[:-1], start=1):
        try:
            event = json.loads(line)
            if not isinstance(event["to"], int) or not isinstance(event["alias"], str):
                raise TypeError("an alias and a version number were expected")
            stated = event.pop("sha256")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise StoredArtifactError(f"{path} line {number} cannot be read as an event ({error}).") from error
        chained = _chained(event, chained)
        if line != _log_line(event, chained):
            raise StoredArtifactError(
                f"{path} line {number} was edited, or one before it is gone: expected sha256 {chained}, found {stated}."
            )
        events.append(event)
    return events


def _chained(event: Mapping[str, Any], before: str) -> str:
    """The digest of an event and of all events before it, so that none can be changed or taken out of the middle."""
    return digest_of({"before": before, "event": dict(event)})


def _log_line(event: Mapping[str, Any], chained: str) -> bytes:
    return json.dumps({**event, "sha256": chained}, sort_keys=True).encode()


def alias_values(events: list[dict[str, Any]]) -> dict[str, int]:
    """The version that each alias names: its last event decides."""
    return {event["alias"]: event["to"] for event in events}


def champions(events: list[dict[str, Any]]) -> list[int]:
    """Who was champion, one after the other; the last is the present one, the one before is what a rollback gives.

    A rollback takes the champions after its target off again.
    """
    stack: list[int] = []
    for event in events:
        if event["alias"] != CHAMPION:
            continue
        if event["by"] == ROLLBACK:
            while stack and stack[-1] != event["to"]:
                stack.pop()
        if not stack or stack[-1] != event["to"]:
            stack.append(event["to"])
    return stack


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
    """The manifest, with the metrics under ``metrics``, the aliases and the path."""
    manifest = read_manifest(root, version)
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


def find_made_from(root: Path, key: str) -> int | None:
    """The newest version that these inputs made before, if any. A damaged one is said, and is none."""
    for number in reversed(version_numbers(root)):
        try:
            manifest = read_manifest(root, number)
            if manifest["made_from"] == key:
                for name in manifest["files"]:
                    checked_path(root, manifest, name)
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
    versions = root / "versions"
    versions.mkdir(parents=True, exist_ok=True)
    number = max([*version_numbers(root), *(event["to"] for event in read_alias_log(root))], default=0) + 1
    temporary = versions / f".{number:04d}.{os.getpid()}.tmp"
    temporary.mkdir()
    try:
        stated = write(temporary, number)
        manifest = {**stated, "version": number, "files": describe_files(temporary)}
        manifest["manifest_sha256"] = digest_of(manifest)
        write_json(temporary / MANIFEST_NAME, manifest)
        temporary.rename(version_folder(root, number))
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return manifest


def append_event(root: Path, event: Mapping[str, Any]) -> None:
    """Add one line to the alias log, to the disk. The caller holds `store_lock` and has called `settle`."""
    chained = ""
    for earlier in [*read_alias_log(root), event]:
        chained = _chained(earlier, chained)
    with (root / "aliases.jsonl").open("ab") as file:
        file.write(_log_line(event, chained) + b"\n")
        file.flush()
        os.fsync(file.fileno())


def settle(root: Path) -> list[str]:
    """Finish or undo what a killed writer left; returns what was done, for people. The caller holds `store_lock`."""
    done = []
    for left in (root / "versions").glob(".*.tmp"):
        shutil.rmtree(left)
        done.append(f"removed {left}, a version that was not finished, or not wholly removed")
    log = root / "aliases.jsonl"
    if log.exists() and not (content := log.read_bytes()).endswith(b"\n") and content:
        # The event had not happened: its line was not whole.
        os.truncate(log, content.rfind(b"\n") + 1)
        done.append(f"cut an unfinished last line off {log}")
    numbers = version_numbers(root)
    if numbers:
        try:
            event = read_manifest(root, numbers[-1])["verdict"]["event"]
        except StoredArtifactError:
            return done  # a damaged version states nothing
        if event is not None and event not in read_alias_log(root):
            append_event(root, event)
            done.append(f"logged the promotion of version {numbers[-1]}, which its manifest states")
    return done
