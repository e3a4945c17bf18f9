import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from schemas.errors import OtherLayout, StoredArtifactError
from schemas.store import LAYOUT
from tasks.registry.manifest import read_manifest, write_manifest
from tasks.registry.store import ModelStore
from tasks.runtime.files import digest_of, write_json
from tests.stored import DIGEST, add_stored, event, facts, fill


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return add_stored(tmp_path).folder


def test_unknown_keys_are_kept(tmp_path: Path) -> None:
    unknown = {"float": 1e-30, "nested": [{"ä": None, "true": True}], "int": 2}
    fill(tmp_path)
    changed = facts(unknown=unknown, device={"kind": "gpu", "name": "a GPU", "count": 2, "backend": "jax", "new": 1.5})
    manifest = write_manifest(tmp_path, 1, changed)
    assert read_manifest(tmp_path, 1) == manifest
    assert manifest.as_json() == json.loads((tmp_path / "manifest.json").read_bytes())
    assert manifest.as_json()["unknown"] == unknown
    assert manifest.device.as_json()["new"] == 1.5


SPELLINGS: dict[str, Callable[[bytes], bytes]] = {
    "no indent": lambda text: json.dumps(json.loads(text), sort_keys=True).encode(),
    "keys unsorted": lambda text: (json.dumps(dict(reversed(json.loads(text).items())), indent=2) + "\n").encode(),
    "no final newline": lambda text: text[:-1],
    "another newline": lambda text: text + b"\n",
    "escaped letter": lambda text: text.replace(b'"a test"', b'"\\u0061 test"'),
    "a key twice": lambda text: text.replace(b'"seed": 0', b'"seed": 0,\n  "seed": 0'),
}


@pytest.mark.parametrize("respell", SPELLINGS.values(), ids=SPELLINGS)
def test_another_spelling_of_the_same_content_is_rejected(folder: Path, respell: Callable[[bytes], bytes]) -> None:
    path = folder / "manifest.json"
    text = path.read_bytes()
    path.write_bytes(respell(text))
    assert path.read_bytes() != text
    assert json.loads(path.read_bytes()) == json.loads(text)
    with pytest.raises(StoredArtifactError, match=r"manifest\.json(: .*occurs twice| was edited)"):
        read_manifest(folder, 1)


def test_every_changed_byte_is_rejected(folder: Path) -> None:
    path = folder / "manifest.json"
    text = path.read_bytes()
    for place in range(len(text)):
        path.write_bytes(text[:place] + bytes([text[place] ^ 1]) + text[place + 1 :])
        with pytest.raises(StoredArtifactError, match=r"manifest\.json"):
            read_manifest(folder, 1)


SHAPES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "no files": lambda manifest: manifest.pop("files"),
    "files as a list": lambda manifest: manifest.update(files=[]),
    "file without digest": lambda manifest: manifest["files"].update({"metrics.json": {}}),
    "path out of the folder": lambda manifest: manifest["files"].update({"../x": {"bytes": 0, "sha256": DIGEST}}),
    "no verdict file": lambda manifest: manifest["files"].pop("verdict.json"),
    "no verdict": lambda manifest: manifest.pop("verdict"),
    "no creation time": lambda manifest: manifest.pop("created"),
    "no lineage": lambda manifest: manifest.pop("lineage"),
    "no train data": lambda manifest: manifest["data"].pop("train"),
    "version as a boolean": lambda manifest: manifest.update(version=True),
    "another version": lambda manifest: manifest.update(version=2),
    "accuracy as a text": lambda manifest: manifest.update(test_accuracy="0.9"),
    "incomplete event": lambda manifest: manifest["verdict"].update(event={"alias": "champion", "to": 77}),
    "event of another version": lambda manifest: manifest["verdict"].update(event=event(77).as_json()),
}


@pytest.mark.parametrize("change", SHAPES.values(), ids=SHAPES)
def test_another_shape_is_rejected_even_with_a_valid_digest(
    folder: Path, change: Callable[[dict[str, Any]], Any]
) -> None:
    manifest = json.loads((folder / "manifest.json").read_bytes())
    change(manifest)
    manifest.pop("manifest_sha256")
    write_json(folder / "manifest.json", {**manifest, "manifest_sha256": digest_of(manifest)})
    with pytest.raises(StoredArtifactError, match=r"0001/manifest\.json"):
        read_manifest(folder, 1)
    store = ModelStore(folder.parents[1])
    assert store.recover() == []  # writers continue
    assert store.summaries()[0].damaged


def test_a_manifest_without_layout_is_read_if_it_has_all_keys(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_bytes())
    for key in ("layout", "manifest_sha256"):
        del manifest[key]
    write_json(folder / "manifest.json", {**manifest, "manifest_sha256": digest_of(manifest)})
    assert read_manifest(folder, 1).version == 1


@pytest.mark.parametrize(("layout", "message"), [(1, "an older layout"), (LAYOUT + 1, "a newer layout")])
def test_the_layout_of_another_release_is_reported(folder: Path, layout: int, message: str) -> None:
    manifest = json.loads((folder / "manifest.json").read_bytes())
    manifest.update(layout=layout)
    manifest["files"].pop("verdict.json")
    del manifest["manifest_sha256"]
    write_json(folder / "manifest.json", {**manifest, "manifest_sha256": digest_of(manifest)})
    with pytest.raises(OtherLayout, match=rf"Version 1 has {message}.* does not name verdict\.json"):
        read_manifest(folder, 1)


def test_a_renamed_version_is_rejected(folder: Path) -> None:
    folder = folder.rename(folder.with_name("0002"))
    with pytest.raises(StoredArtifactError, match=r"0002/manifest\.json describes another version"):
        read_manifest(folder, 2)


@pytest.mark.parametrize("name", ["0001", "0001/manifest.json"])
def test_a_link_is_not_followed(folder: Path, tmp_path: Path, name: str) -> None:
    path = folder.parent / name
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoredArtifactError, match=f"{name} is a link"):
        read_manifest(folder, 1)
