"""A version is loaded as it was stored, or not at all."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from schemas.errors import StoredArtifactError
from tasks.model import backend
from tasks.registry import verify
from tasks.registry.store import ModelStore
from tasks.registry.verify import load_model
from tests.plain_keras import plain_network


@pytest.fixture
def store(two_versions: Path) -> ModelStore:
    return ModelStore.of(two_versions, "fashion-mnist")


@pytest.mark.parametrize(("name", "number"), [("champion", 1), ("v2", 2)])
def test_a_version_is_loaded_with_its_own_weights(store: ModelStore, name: str, number: int) -> None:
    model = load_model(store.version(name))
    images = np.random.default_rng(0).random((32, 784), dtype=np.float32)
    np.testing.assert_array_equal(model(images), plain_network(store.folder(number))(images))


def test_the_backend_is_set_up_before_the_network(store: ModelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(backend, "set_up_backend", lambda seed: calls.append(f"set up {seed}"))
    monkeypatch.setattr(verify, "load_network", lambda topology, weights, digests: calls.append("load"))
    load_model(store.version("1"))
    assert calls == ["set up 0", "load"]


@pytest.mark.parametrize("name", ["topology.json", "model.weights.h5"])
def test_a_damaged_file_is_rejected_before_keras_starts(
    store: ModelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise AssertionError("Keras was called")

    monkeypatch.setattr(backend, "set_up_backend", fail)
    monkeypatch.setattr(verify, "load_network", fail)
    copy = ModelStore(Path(shutil.copytree(store.root, tmp_path / "store")))
    path = copy.folder(1) / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(StoredArtifactError, match=name):
        load_model(copy.version("champion"))
