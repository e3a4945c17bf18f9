"""A version is loaded as it was stored, or not at all."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from schemas.errors import StoredArtifactError, VersionNotFound
from tasks.model import backend as device
from tasks.registry import verify as serve
from tasks.registry.store import store_folder, version_folder
from tasks.registry.verify import load_version
from tests.plain_keras import plain_network


@pytest.fixture
def root(two_versions: Path) -> Path:
    return store_folder(two_versions, "fashion-mnist")


@pytest.mark.parametrize(("name", "number"), [("champion", 1), ("1", 1), ("2", 2), ("0002", 2), ("v2", 2)])
def test_the_named_version_is_loaded_with_its_own_weights(root: Path, name: str, number: int) -> None:
    manifest, model = load_version(root, name)
    folder = version_folder(root, number)
    plain = plain_network(folder)
    assert manifest["version"] == number
    images = np.random.default_rng(0).random((32, 784), dtype=np.float32)
    np.testing.assert_array_equal(model(images), plain(images))


def test_the_backend_is_set_up_before_the_network_is_made(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(device, "set_up_backend", lambda seed: calls.append(f"set up {seed}"))
    monkeypatch.setattr(serve, "load_network", lambda topology, weights: calls.append("load"))
    load_version(root, "1")
    assert calls == ["set up 0", "load"]


@pytest.fixture
def without_keras(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(*arguments: object, **options: object) -> None:
        raise AssertionError("Keras was asked")

    monkeypatch.setattr(device, "set_up_backend", asked)
    monkeypatch.setattr(serve, "load_network", asked)


@pytest.mark.usefixtures("without_keras")
@pytest.mark.parametrize("name", ["manifest.json", "topology.json", "model.weights.h5"])
def test_a_damaged_file_is_told_before_keras_is_asked(root: Path, tmp_path: Path, name: str) -> None:
    copy = shutil.copytree(root, tmp_path / "store")
    path = version_folder(copy, 1) / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(StoredArtifactError, match=name):
        load_version(copy, "champion")


@pytest.mark.usefixtures("without_keras")
@pytest.mark.parametrize("name", ["3", "challenger", ""])
def test_a_version_that_is_not_there_is_told(root: Path, name: str) -> None:
    with pytest.raises(VersionNotFound, match="versions 1 to 2"):
        load_version(root, name)
