"""Find the objects of a remote that no version, and no recent run of any machine, refers to.

A run on another machine cannot be seen. It uses only objects that were written or used within `SECONDS_UNUSED`: a run
that reuses an older record writes it again. Older objects are garbage if no manifest of any dataset needs them.
"""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from schemas.errors import StoredArtifactError
from schemas.layout import MANIFEST_NAME
from tasks.runtime.remote import FILES, RETURNED, SECONDS_UNUSED, STAGES, STORES, Remote, StoredObject
from tasks.runtime.stages import BY_NAME, INGEST
from tasks.runtime.stored_file import parse_json

_PARALLEL = 16
_PER_SHARD = [stage.name for stage in BY_NAME.values() if stage.per_shard]
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
    for _, manifest in _read(remote, manifests):
        keys |= {str(stage["key"]) for stage in manifest["lineage"]}
        files |= _sha256_of_files(manifest)
    kept: list[StoredObject] = []
    old: list[StoredObject] = []
    for entry in remote.objects(STAGES):
        (kept if _stage_and_key(entry)[1] in keys or entry.age < SECONDS_UNUSED else old).append(entry)
    shards: set[str] = set()
    parts: set[str] = set()
    for _, record in _read(remote, kept):
        files |= _sha256_of_files(record)
        if record.get("stage") == INGEST.name:
            shards |= set(record["facts"]["shards"])
            parts |= set(record["facts"]["part_sha256"])
    # No manifest names the outputs per shard. Without them a split with one more shard costs the work of every shard.
    per_shard = [entry for entry in old if _stage_and_key(entry)[0] in _PER_SHARD]
    for entry, record in _read(remote, per_shard if shards else ()):
        if _stage_and_key(entry)[1] in shards or record["inputs"].get("part") in parts:
            files |= _sha256_of_files(record)
            old.remove(entry)
    yield from old
    for entry in remote.objects(FILES):
        if entry.age >= SECONDS_UNUSED and entry.name.rpartition("/")[2] not in files:
            yield entry
    yield from (entry for entry in remote.objects(RETURNED) if entry.age >= SECONDS_UNUSED)


def _stage_and_key(entry: StoredObject) -> tuple[str, str | None]:
    _, stage, *key = entry.name.split("/")
    return stage, key[0] if len(key) == 2 else None


def _sha256_of_files(record: Mapping[str, Any]) -> set[str]:
    return {str(file["sha256"]) for file in record["files"].values()}


def _read(remote: Remote, entries: Iterable[StoredObject]) -> Iterator[tuple[StoredObject, dict[str, Any]]]:
    """Yield manifests or records with their JSON. One that was deleted meanwhile is left out."""

    def read(entry: StoredObject) -> tuple[StoredObject, dict[str, Any]] | None:
        content = remote.read(entry.name)
        if content is None:
            return None
        try:
            value: dict[str, Any] = parse_json(content)
            _ = [file["sha256"] for file in value["files"].values()]
            _ = [stage["key"] for stage in value.get("lineage", ())]
            if value.get("stage") == INGEST.name:
                _ = [value["facts"]["shards"], value["facts"]["part_sha256"]]
            elif value.get("stage") in _PER_SHARD:
                _ = value["inputs"].get("part")
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise StoredArtifactError(
                f"{remote.address}/{entry.name}: expected a record of files ({error!r}). Remove it if no run needs it."
            ) from error
        return entry, value

    with ThreadPoolExecutor(_PARALLEL) as pool:
        yield from filter(None, pool.map(read, entries))
