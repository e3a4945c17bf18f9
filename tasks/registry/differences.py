"""Settings and provenance of versions, as their manifests record them, and the differences between versions."""

from collections.abc import Mapping
from typing import Any

from schemas.errors import StoredArtifactError
from schemas.store import VersionFacts
from tasks.runtime.stages import EVALUATE, PREPARE, TRAIN, Stage

_KEY = "cache key of "


def settings(manifest: VersionFacts) -> dict[str, Any]:
    """Return the settings of a version in short, for a table: also its data, topology, code and device."""
    return {
        **manifest.used_settings,
        **{"promotion_policy" if key == "policy" else key: value for key, value in manifest.promotion.items()},
        "train_data": manifest.data.train.identity[:8],
        "test_data": manifest.data.test.identity[:8],
        "topology": manifest.topology_id[:8],
        "train_code": manifest.code_sha256 and manifest.code_sha256[:8],
        "device": manifest.device.name,
    }


def differences(
    before: VersionFacts, after: VersionFacts, champion: VersionFacts | None = None
) -> list[dict[str, Any]]:
    """Return a row for each recorded property in which the versions differ: ``what``, ``before`` and ``after``.

    champion: a third version, whose value is then in each row, too.
    """
    versions = {"before": before, "after": after} | ({} if champion is None else {"champion": champion})
    recorded = {name: _recorded(manifest) for name, manifest in versions.items()}
    rows: list[dict[str, Any]] = []
    for what in dict.fromkeys(what for properties in recorded.values() for what in properties):
        values = {name: properties.get(what) for name, properties in recorded.items()}
        if any(value != values["before"] for value in values.values()):
            rows.append({"what": what, **values})
    # A cache key differs with any other property. Alone it shows that code differs which no other property covers.
    return [row for row in rows if not row["what"].startswith(_KEY)] or rows


def unknown_differences(before: VersionFacts, after: VersionFacts) -> list[str]:
    """Return a sentence for each part that may differ although no recorded property does."""
    unknown = []
    if before.code_sha256 is None or after.code_sha256 is None:
        unknown.append("The code of the train stage is not recorded for both versions.")
    evaluated = _key(before, EVALUATE)
    if evaluated is not None and evaluated == _key(after, EVALUATE):
        return unknown  # the key covers the code of all stages up to the test metrics
    if before.code.revision is None or after.code.revision is None:
        unknown.append("The revision of the code is not recorded for both versions.")
    elif before.code.dirty is not False or after.code.dirty is not False:
        unknown.append("The code may differ beyond its revision: a version was made with uncommitted changes.")
    return unknown


def _recorded(manifest: VersionFacts) -> Mapping[str, Any]:
    data = manifest.data
    return {
        **manifest.used_settings,
        **{f"promotion, {key}": value for key, value in manifest.promotion.items()},
        "topology, sha256": manifest.topology_id,
        "train data, sha256": data.train.identity,
        "test data, sha256": data.test.identity,
        **{f"{split} rows": rows for split, rows in data.split_rows.items()},
        "code of the train stage, sha256": manifest.code_sha256,
        "code": manifest.code.revision,
        "uncommitted changes": manifest.code.dirty,
        "lock, sha256": manifest.lock_sha256,
        **{f"package {name}": version for name, version in manifest.packages.items()},
        **manifest.environment,
        **{"device" if key == "name" else f"device, {key}": value for key, value in manifest.device.as_json().items()},
        **{f"{_KEY}{stage.name}": key for stage in (PREPARE, TRAIN, EVALUATE) if (key := _key(manifest, stage))},
    }


def _key(manifest: VersionFacts, stage: Stage) -> str | None:
    try:
        return manifest.stage(stage.name).key
    except StoredArtifactError:
        return None
