"""The bill of materials of a version names its model, data and packages, in the form that CycloneDX 1.6 defines."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft7Validator

from schemas.config import PROJECT_ROOT
from tasks.registry.bom import write_bom
from tasks.runtime.files import sha256_file
from tasks.runtime.fingerprint import installed_extra, installed_version
from tests.stored import DIGEST, data_facts, facts, fill

# The parts of bom-1.6.schema.json that the document uses. Objects have no other keys there, either.
_TEXT = {"type": "string"}
_REFS = {"type": "array", "items": {"type": "string", "minLength": 1}, "uniqueItems": True}


def _object(required: str, **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "required": required.split(),
        "additionalProperties": False,
        "properties": properties,
    }


def _array(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items, "uniqueItems": True}


_PARAMETERS = _object(
    "",
    approach=_object("", type={"enum": ["supervised"]}),
    task=_TEXT,
    datasets={"type": "array", "items": _object("", ref=_TEXT)},
)
_COMPONENT = _object(
    "type name",
    **{
        "type": {"enum": ["application", "library", "platform", "file", "machine-learning-model", "data"]},
        **{"bom-ref": {"type": "string", "minLength": 1}, "name": _TEXT, "version": _TEXT, "purl": _TEXT},
        "hashes": _array(_object("alg content", alg={"enum": ["SHA-256"]}, content={"pattern": "^[0-9a-f]{64}$"})),
        "data": {"type": "array", "items": _object("type", type={"enum": ["dataset"]}, name=_TEXT)},
        "properties": {"type": "array", "items": _object("name", name=_TEXT, value=_TEXT)},
        "modelCard": _object("", modelParameters=_PARAMETERS),
        "components": _array({"$ref": "#/definitions/component"}),
    },
)
SCHEMA = {
    "definitions": {"component": _COMPONENT},
    **_object(
        "bomFormat specVersion",
        **{
            "$schema": {"const": "http://cyclonedx.org/schema/bom-1.6.schema.json"},
            "bomFormat": {"const": "CycloneDX"},
            "specVersion": {"const": "1.6"},
            "serialNumber": {"pattern": "^urn:uuid:[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$"},
            "version": {"const": 1},
            "metadata": _object("", component={"$ref": "#/definitions/component"}),
            "components": _array({"$ref": "#/definitions/component"}),
            "dependencies": _array(_object("ref", ref=_TEXT, dependsOn=_REFS)),
        },
    ),
}


def bom_of(folder: Path, number: int = 7, **changed: Any) -> dict[str, Any]:
    fill(folder)
    packages = {"python": "3.12.1", "fashion-ann": "0.1.0", **changed.pop("packages", {})}
    write_bom(folder, number, facts(packages=packages, **changed))
    bom: dict[str, Any] = json.loads((folder / "bom.cdx.json").read_bytes())
    return bom


def of_type(bom: dict[str, Any], kind: str) -> dict[str, dict[str, Any]]:
    return {component["name"]: component for component in bom["components"] if component["type"] == kind}


def test_the_document_has_the_form_of_cyclonedx(tmp_path: Path) -> None:
    bom = bom_of(tmp_path, code={"revision": "abc", "dirty": False})
    Draft7Validator(SCHEMA).validate(bom)
    refs = [component["bom-ref"] for component in (bom["metadata"]["component"], *bom["components"])]
    assert len(refs) == len(set(refs))
    for dependency in bom["dependencies"]:
        assert {dependency["ref"], *dependency["dependsOn"]} <= set(refs)
    datasets = of_type(bom, "machine-learning-model")["fashion-mnist"]["modelCard"]["modelParameters"]["datasets"]
    assert {entry["ref"] for entry in datasets} == {"train:images.csv", "test:images.csv"} <= set(refs)


def test_model_and_data_have_their_digests(tmp_path: Path) -> None:
    bom = bom_of(tmp_path, data=data_facts(train_csv="1" * 64, file="train.csv"))
    model = of_type(bom, "machine-learning-model")["fashion-mnist"]
    assert model["version"] == "7"
    assert {file["name"]: file["hashes"][0]["content"] for file in model["components"]} == {
        name: sha256_file(tmp_path / name) for name in ("topology.json", "model.weights.h5")
    }
    digests = [part["hashes"][0]["content"] for part in bom["components"] if part["type"] == "data"]
    assert digests == ["1" * 64, DIGEST]


def test_installed_packages_have_the_hashes_of_the_lock(tmp_path: Path) -> None:
    packages = of_type(bom_of(tmp_path), "library")
    lock = (PROJECT_ROOT / "requirements" / f"{installed_extra()}.lock").read_text()
    keras = packages["keras"]
    assert keras["purl"] == f"pkg:pypi/keras@{installed_version('keras')}"
    (entry,) = re.findall(r"^keras==.*(?:\n    --hash.*)+", lock, re.MULTILINE)
    assert [each["content"] for each in keras["hashes"]] == re.findall(r"sha256:(\w+)", entry)
    assert "pytest" not in packages
    assert all(package["version"] for package in packages.values())


@pytest.mark.parametrize("name", ["numpy", "jax", "a-package"])
def test_packages_of_the_training_have_its_versions(tmp_path: Path, name: str) -> None:
    """Without hashes unless the lock has this version: a worker elsewhere may have trained."""
    bom = bom_of(tmp_path, packages={name: "0.1+cuda"})
    package = of_type(bom, "library")[name]
    assert (package["version"], package["purl"]) == ("0.1+cuda", f"pkg:pypi/{name}@0.1%2Bcuda")
    assert "hashes" not in package
    assert of_type(bom, "platform")["python"]["version"] == "3.12.1"


def test_the_same_version_has_the_same_bytes(tmp_path: Path) -> None:
    first, second, third = (tmp_path / name for name in "abc")
    for folder, number in ((first, 7), (second, 7), (third, 8)):
        folder.mkdir()
        bom_of(folder, number)
    assert sha256_file(first / "bom.cdx.json") == sha256_file(second / "bom.cdx.json")
    assert sha256_file(first / "bom.cdx.json") != sha256_file(third / "bom.cdx.json")
