"""Write and read `manifest.json`, which names every file of a version with its sha256."""

import hashlib
from pathlib import Path
from typing import Any

from schemas.errors import OtherLayout, StoredArtifactError, VersionNotFound
from schemas.layout import MANIFEST_NAME, STORED_NAMES
from schemas.store import EMPTY_LOG, LAYOUT, LogHead, Manifest, VersionFacts
from tasks.runtime.files import describe_files, digest_of, is_discarded, pretty_json, write_json
from tasks.runtime.stored_file import parse_json, read_stored


def write_manifest(folder: Path, number: int, facts: VersionFacts, alias_log: LogHead = EMPTY_LOG) -> Manifest:
    """Write the manifest of a version whose other files are all in ``folder``."""
    added = {"layout": LAYOUT, "version": number, "files": describe_files(folder), "alias_log": alias_log.as_json()}
    content = {**facts.as_json(), **added}
    content["manifest_sha256"] = digest_of(content)
    write_json(folder / MANIFEST_NAME, content)
    return Manifest.model_validate({**content, "text": pretty_json(content)})


def read_content(folder: Path, number: int) -> tuple[bytes, dict[str, Any]]:
    """Return the bytes of the manifest of version ``number``, and its JSON object after checking its digest.

    Raises `VersionNotFound` if the folder does not exist, and `StoredArtifactError` if the content was changed or if
    the manifest or the folder is a link.
    """
    path = folder / MANIFEST_NAME
    for place in (folder, path):
        if place.is_symlink():
            raise StoredArtifactError(f"{place} is a link; only files inside the store are read.")
    try:
        text = read_stored(path)
    except StoredArtifactError:
        if not folder.exists() or is_discarded(folder, MANIFEST_NAME):
            raise VersionNotFound(f"There is no version {number}: {folder} does not exist.") from None
        raise
    except OSError as error:
        raise StoredArtifactError(f"{path}: expected a manifest, which cannot be read ({error.strerror}).") from error
    try:
        content: dict[str, Any] = parse_json(text)
        expected = content["manifest_sha256"]
        actual = digest_of({key: value for key, value in content.items() if key != "manifest_sha256"})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoredArtifactError(
            f"{path}: expected a manifest with its sha256, {_received(text)} ({error})."
        ) from error
    if actual != expected:
        raise StoredArtifactError(f"{path}: expected content with sha256 {expected}, received {actual}.")
    return text, content


def read_manifest(folder: Path, number: int) -> Manifest:
    """Read the manifest of version ``number`` after checking its digest, its spelling and its shape.

    Raises what `read_content` raises, `OtherLayout` if another release wrote the manifest and this one cannot read it,
    and `StoredArtifactError` if the text was edited.
    """
    path = folder / MANIFEST_NAME
    text, content = read_content(folder, number)
    if text != pretty_json(content):
        raise StoredArtifactError(
            f"{path} was edited: expected the text written for sha256 {content['manifest_sha256']}, {_received(text)}."
        )
    try:
        manifest = Manifest.parse({**content, "text": text}, str(path))
        if missing := STORED_NAMES - set(manifest.files):
            raise StoredArtifactError(f"{path} does not name {', '.join(sorted(missing))}, which every version has.")
    except StoredArtifactError as error:
        layout = content.get("layout", 1)
        if layout == LAYOUT or not isinstance(layout, int):
            raise
        age, writer = ("an older", "an earlier") if layout < LAYOUT else ("a newer", "a later")
        raise OtherLayout(
            f"Version {number} has {age} layout of the store ({layout}, expected {LAYOUT}), which {writer} release "
            f"wrote. {error} Train again, or use that release."
        ) from error
    event = manifest.verdict.event
    if manifest.version != number or (event and event.to != number):
        raise StoredArtifactError(f"{path} describes another version than {number}. Restore the version from a copy.")
    return manifest


def _received(text: bytes) -> str:
    return f"received bytes with sha256 {hashlib.sha256(text).hexdigest()}"
