"""Write the bill of materials of a version: a CycloneDX 1.6 document for scanners of vulnerabilities and licences."""

from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import NAMESPACE_URL, uuid5

from schemas.contract import SPLITS
from schemas.layout import BOM_NAME, TOPOLOGY_NAME, WEIGHTS_NAME
from schemas.store import VersionFacts
from tasks.runtime.files import canonical_json, digest_of, sha256_file
from tasks.runtime.fingerprint import installed_lock, installed_version, locked_packages

_PROJECT, _MODEL = "fashion-ann", "model"


def write_bom(folder: Path, number: int, facts: VersionFacts) -> None:
    """Write the model, its data and the installed packages of the lock. ``folder`` has the files of the model.

    The same version gives the same bytes. A package that the training recorded has the version of the training. The
    digests of a package are those of all its archives in the lock, because pip does not record which one it installed.
    """
    data = [
        {
            "type": "data",
            "bom-ref": f"{split}:{csv.file}",
            "name": csv.file,
            "hashes": _hashes([csv.sha256]),
            "data": [{"type": "dataset", "name": f"{facts.dataset} {split}"}],
            "properties": [{"name": f"{_PROJECT}:origin", "value": facts.data.split(split).origin}],
        }
        for split in SPLITS
        for csv in facts.data.split(split).csv_files
    ]
    data_refs = [{"ref": component["bom-ref"]} for component in data]
    model = {
        "type": "machine-learning-model",
        "bom-ref": _MODEL,
        "name": facts.dataset,
        "version": str(number),
        "modelCard": {
            "modelParameters": {
                "approach": {"type": "supervised"},
                "task": "classification",
                "datasets": data_refs,
            }
        },
        "components": [
            {"type": "file", "name": name, "hashes": _hashes([sha256_file(folder / name)])}
            for name in (TOPOLOGY_NAME, WEIGHTS_NAME)
        ],
    }
    packages = _packages(facts.packages)
    python = {"type": "platform", "bom-ref": "python", "name": "python", "version": facts.packages.get("python", "")}
    project: dict[str, Any] = {"type": "application", "bom-ref": _PROJECT, "name": _PROJECT}
    project["version"] = facts.packages.get(_PROJECT, "")
    revision = [{"name": f"{_PROJECT}:revision", "value": facts.code.revision}] if facts.code.revision else []
    lock = {"name": f"{_PROJECT}:lock_sha256", "value": facts.lock_sha256}
    bom = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": {**project, "properties": [lock, *revision]}},
        "components": [model, *data, python, *packages],
        "dependencies": [
            {"ref": _MODEL, "dependsOn": [_PROJECT, *(entry["ref"] for entry in data_refs)]},
            {"ref": _PROJECT, "dependsOn": ["python", *(package["bom-ref"] for package in packages)]},
        ],
    }
    bom["serialNumber"] = f"urn:uuid:{uuid5(NAMESPACE_URL, digest_of(bom))}"
    (folder / BOM_NAME).write_bytes(canonical_json(bom) + b"\n")


def _packages(trained_with: dict[str, str]) -> list[dict[str, Any]]:
    """Return the component of each package of the lock that is installed, or that the training recorded."""
    locked = read_packages()
    components = []
    for name in sorted({*locked, *trained_with} - {"python", _PROJECT}):
        locked_version, digests, installed = locked.get(name) or (None, [], installed_version(name))
        version = trained_with.get(name) or installed
        if version is None:
            continue
        component: dict[str, Any] = {"type": "library", "name": name, "version": version}
        component["bom-ref"] = component["purl"] = f"pkg:pypi/{name}@{quote(version)}"
        if version == locked_version:
            component["hashes"] = _hashes(digests)
        components.append(component)
    return components


@cache  # it parses a hundred files
def read_packages() -> dict[str, tuple[str, list[str], str | None]]:
    """Return the packages of the lock by name: version and digests in the lock, and the installed version, if any."""
    locked = locked_packages(installed_lock().decode())
    return {name: (version, digests, installed_version(name)) for name, (version, digests) in locked.items()}


def _hashes(digests: Iterable[str]) -> list[dict[str, str]]:
    return [{"alg": "SHA-256", "content": digest} for digest in digests]
