"""Find the objects of a remote that no version, and no recent run of any machine, refers to.

A run on another machine cannot be seen. It uses only objects that were written or used within `SECONDS_UNUSED`: a run
that reuses an older record writes it again. Older objects are garbage if no manifest of any dataset names them.
"""

import re
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from schemas.errors import StoredArtifactError
from schemas.layout import MANIFEST_NAME
from tasks.runtime.remote import FILES, RETURNED, SECONDS_UNUSED, STAGES, STORES, Remote, StoredObject
from tasks.runtime.stored_file import parse_json

_PARALLEL = 16
_MANIFEST = re.compile(rf"{STORES}/([^/]+)/versions/([0-9]+)/{re.escape(MANIFEST_NAME)}")


def unreferenced_objects(remote: Remote, dataset: str, removed: Collection[int]) -> Iterator[StoredObject]:
    """Yield the garbage: records of stages, then files, then returned references.

    removed: versions of ``dataset`` that are about to be removed.

    Raises `StoredArtifactError` if a manifest cannot be read: everything that it may name stays.
    """
    manifests = []
    for entry in remote.objects(STORES):
        match = _MANIFEST.fullmatch(entry.name)
        if match and not (match[1] == dataset and int(match[2]) in removed):
            manifests.append(entry)
    keys: set[str] = set()
    files: set[str] = set()
    for manifest in _read(remote, manifests):
        keys |= {str(stage["key"]) for stage in manifest["lineage"]}
        files |= {str(file["sha256"]) for file in manifest["files"].values()}
    kept = []
    for entry in remote.objects(STAGES):
        key = entry.name.split("/")[2] if entry.name.count("/") == 3 else None
        if key in keys or entry.age < SECONDS_UNUSED:
            kept.append(entry)
        else:
            yield entry
    for record in _read(remote, kept):
        files |= {str(file["sha256"]) for file in record["files"].values()}
    for entry in remote.objects(FILES):
        if entry.age >= SECONDS_UNUSED and entry.name.rpartition("/")[2] not in files:
            yield entry
    yield from (entry for entry in remote.objects(RETURNED) if entry.age >= SECONDS_UNUSED)


def _read(remote: Remote, entries: Iterable[StoredObject]) -> Iterator[dict[str, Any]]:
    """Yield the JSON of manifests or records. One that was deleted meanwhile is left out."""

    def read(entry: StoredObject) -> dict[str, Any] | None:
        content = remote.read(entry.name)
        if content is None:
            return None
        try:
            value: dict[str, Any] = parse_json(content)
            _ = [file["sha256"] for file in value["files"].values()]
            _ = [stage["key"] for stage in value.get("lineage", ())]
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise StoredArtifactError(
                f"{remote.address}/{entry.name}: expected a record of files ({error!r}). Remove it if no run needs it."
            ) from error
        return value

    with ThreadPoolExecutor(_PARALLEL) as pool:
        yield from filter(None, pool.map(read, entries))
