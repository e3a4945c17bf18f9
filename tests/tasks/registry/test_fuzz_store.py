"""Any bytes in place of a stored file end in success or `StoredArtifactError`."""

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from schemas.config import TrainingConfig
from schemas.contract import FASHION_MNIST
from schemas.errors import StoredArtifactError
from schemas.store import PairedVerdict, RecallMetrics, StoredMetrics, Verdict
from tasks.checks.image_profile import read_profile
from tasks.model.inference import read_golden
from tasks.model.network import Network, read_network, read_weights
from tasks.model.test_predictions import read_predictions
from tasks.registry.alias_log import AliasLog
from tasks.registry.manifest import read_manifest
from tasks.runtime.files import digest_of, pretty_json
from tasks.runtime.stored_file import parse_json, read_json
from tests.stored import event

NETWORK = Network.of(FASHION_MNIST, TrainingConfig(dropout=0.05))


def _models(*models: Any) -> Callable[[Path], object]:
    return lambda path: [model.parse(read_json(path), "a test") for model in models]


def _profile(path: Path) -> None:
    try:
        read_profile(path.read_bytes(), FASHION_MNIST)
    except ValueError as error:  # its callers name the file
        raise StoredArtifactError(str(error)) from error


READERS: dict[str, Callable[[Path], object]] = {
    "manifest.json": lambda path: read_manifest(path.parent, 1),
    "aliases.jsonl": lambda path: AliasLog(path).read(),
    "aliases.state.json": lambda path: AliasLog(path.with_name("aliases.jsonl")).state(),
    "topology.json": read_network,
    "golden.json": lambda path: read_golden(path.parent, FASHION_MNIST.pixels),
    "metrics.json": _models(RecallMetrics, StoredMetrics),
    "verdict.json": _models(PairedVerdict, Verdict),
    "profile.json": _profile,
    "model.weights.h5": lambda path: read_weights(path, NETWORK),
    "test_predictions.parquet": lambda path: read_predictions(path, FASHION_MNIST),
}
FUZZ = settings(
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=40,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture(scope="module")
def valid(sample_version: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a valid file for each reader."""
    folder = Path(shutil.copytree(sample_version, tmp_path_factory.mktemp("fuzz") / "0001"))
    golden = json.loads((folder / "golden.json").read_bytes())
    (folder / "golden.json").write_text(json.dumps({name: rows[:1] for name, rows in golden.items()}))  # quick to copy
    log = AliasLog(folder / "aliases.jsonl")
    for version in (1, 2):
        log.append(event(version))
    for name, read in READERS.items():
        read(folder / name)
    return folder


@pytest.fixture
def folder(valid: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(valid, tmp_path / "0001"))


def _read(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    try:
        READERS[path.name](path)
    except StoredArtifactError as error:
        assert str(error)


@pytest.mark.parametrize("name", READERS)
@FUZZ
@given(content=st.binary(max_size=200))
def test_any_bytes(folder: Path, name: str, content: bytes) -> None:
    _read(folder / name, content)


# In the parts of a file that describe it: its first and its last bytes.
PLACES = st.integers(-6_000, 12_000)
EDITS = st.lists(st.tuples(PLACES, st.integers(0, 255)), min_size=1, max_size=6)


@pytest.mark.parametrize("name", READERS)
@FUZZ
@given(edits=EDITS, cut=st.none() | st.integers(-6_000, -1), more=st.binary(max_size=8))
def test_changed_bytes(
    folder: Path, valid: Path, name: str, edits: list[tuple[int, int]], cut: int | None, more: bytes
) -> None:
    content = bytearray((valid / name).read_bytes())
    for place, value in edits:
        content[place % len(content)] = value
    _read(folder / name, bytes(content[:cut]) + more)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from([10**400, -1, "1", 1e308]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Return each container of a JSON value with each of its keys, but only the first entry of a list."""
    children = value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    return [place for key, child in children for place in [(value, key), *_places(child)]]


@pytest.mark.parametrize("name", [name for name in READERS if name.endswith(".json")])
@FUZZ
@given(data=st.data())
def test_another_value_at_any_key(folder: Path, valid: Path, name: str, data: st.DataObject) -> None:
    content = copy.deepcopy(parse_json((valid / name).read_bytes()))
    container, key = data.draw(st.sampled_from(_places(content)))
    if isinstance(container, dict) and data.draw(st.booleans()):
        del container[key]
    else:
        container[key] = data.draw(JSON)
    text = json.dumps(content).encode()
    if name == "manifest.json" and isinstance(content, dict):
        content.pop("manifest_sha256", None)
        try:  # sealed again
            text = pretty_json({**content, "manifest_sha256": digest_of(content)})
        except ValueError:  # not a finite number
            return
    _read(folder / name, text)


@FUZZ
@given(data=st.data())
def test_another_line_of_the_alias_log(folder: Path, data: st.DataObject) -> None:
    moved = {**event(1).as_json(), data.draw(st.sampled_from(["alias", "from", "to", "by", "more"])): data.draw(JSON)}
    try:
        digest = digest_of({"before": "", "event": moved})
    except ValueError:  # not a finite number
        return
    _read(folder / "aliases.jsonl", json.dumps({**moved, "sha256": digest}, sort_keys=True).encode() + b"\n")
