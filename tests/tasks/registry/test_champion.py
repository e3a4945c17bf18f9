"""Promotions and rollbacks on a store of real small models."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from cli.reproduce import _differences
from schemas.config import PromotionConfig, TrainingConfig
from schemas.contract import Split
from schemas.errors import CandidateRejected, StoredArtifactError, WrongUsage
from schemas.references import PreparedData, TrainedModel, ValidatedSplit
from tasks.evaluate import evaluate
from tasks.registry.alias_log import champions, read_alias_log
from tasks.registry.champion import NothingToRollBackTo, promote, rollback
from tasks.registry.store import store_folder, version_folder
from tasks.registry.verify import load_version, verify_version
from tasks.version import version


@pytest.fixture(scope="module")
def made(
    in_this_process: None,
    sample_data: dict[Split, ValidatedSplit],
    sample_prepared: PreparedData,
    sample_trained: TrainedModel,
    sample_artifacts: Path,
    small_config: TrainingConfig,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A store with three versions of one model; the first is champion. Copy it, do not write it."""
    artifacts = tmp_path_factory.mktemp("store")
    evaluation = evaluate.fn(sample_prepared, sample_trained, sample_artifacts)
    for key in ("1", "2", "3"):
        trained = sample_trained.model_copy(
            update={"record": sample_trained.record.model_copy(update={"key": key * 64})}
        )
        no_floor = PromotionConfig(minimum_accuracy=0, minimum_recall=0)
        version.fn(sample_data, sample_prepared, trained, evaluation, small_config, no_floor, artifacts)
    return store_folder(artifacts, "fashion-mnist")


@pytest.fixture
def store(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "models" / "fashion-mnist"))


def test_a_rollback_drill(store: Path) -> None:
    for number in (2, 3):
        event = promote(store, number, f"try {number}")
        assert (event["from"], event["to"], event["by"]) == (number - 1, number, "promote")
    assert [rollback(store, "it was worse")["to"] for _ in range(2)] == [2, 1]
    with pytest.raises(NothingToRollBackTo):
        rollback(store, "once more")
    log = read_alias_log(store)
    assert [event["to"] for event in log] == [1, 2, 3, 2, 1]
    assert [event["reason"] for event in log][1:] == ["try 2", "try 3", "it was worse", "it was worse"]
    assert champions(log) == [1]


def test_what_cannot_be_promoted_leaves_the_log_as_it_was(store: Path) -> None:
    before = (store / "aliases.jsonl").read_bytes()
    with pytest.raises(WrongUsage, match="champion already"):
        promote(store, 1, "again")
    with pytest.raises(WrongUsage, match="--reason"):
        promote(store, 2, "  ")
    weights = version_folder(store, 2) / "model.weights.h5"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    with pytest.raises(StoredArtifactError, match=r"0002/model\.weights\.h5: expected sha256 \w{64}, found \w{64}"):
        promote(store, 2, "forced", force=True)
    assert (store / "aliases.jsonl").read_bytes() == before


def test_a_refused_version_is_promoted_by_force_alone(
    sample_data: dict[Split, ValidatedSplit],
    sample_prepared: PreparedData,
    sample_trained: TrainedModel,
    sample_artifacts: Path,
    small_config: TrainingConfig,
    tmp_path: Path,
) -> None:
    evaluation = evaluate.fn(sample_prepared, sample_trained, sample_artifacts)
    strict = PromotionConfig(minimum_accuracy=1)
    with pytest.raises(CandidateRejected):
        version.fn(sample_data, sample_prepared, sample_trained, evaluation, small_config, strict, tmp_path)
    root = store_folder(tmp_path, "fashion-mnist")
    with pytest.raises(WrongUsage, match="refused by its own verdict"):
        promote(root, 1, "no other")
    assert promote(root, 1, "no other", force=True)["to"] == 1


def test_verify_tells_an_edited_topology_and_edited_golden_predictions(store: Path) -> None:
    verified = verify_version(store, 1)
    assert (verified["version"], verified["golden_difference"]) == (1, 0.0)
    for name in ("topology.json", "golden.json"):
        path = version_folder(store, 2) / name
        whole = path.read_bytes()
        path.write_bytes(whole.replace(b"relu", b"tanh").replace(b"0.", b"1.", 1))
        with pytest.raises(StoredArtifactError, match=name):
            verify_version(store, 2)
        path.write_bytes(whole)


def test_a_loaded_version_has_the_rows_right_that_its_metrics_say(store: Path, sample_prepared: PreparedData) -> None:
    manifest, model = load_version(store, "1")
    images = np.load(sample_prepared.record.path / "test_images.npy")
    labels = np.load(sample_prepared.record.path / "test_labels.npy")
    right = model.predict(images, verbose=0).argmax(axis=1) == labels
    assert right.mean() == pytest.approx(manifest["test_accuracy"])


def test_what_is_not_as_it_was_is_named_and_what_was_not_recorded_is_not(sample_trained: TrainedModel) -> None:
    record, device = sample_trained.record, {"kind": "gpu", "name": "H200", "driver": "570.1"}
    lineage = [record.model_dump(include={"stage", "key"})]
    assert _differences({"lineage": lineage, "device": {"kind": "gpu", "name": "H200"}}, record, device) == []
    assert _differences({"lineage": lineage, "device": {**device, "driver": "560.3"}}, record, device) == [
        "device: driver 560.3, now 570.1"
    ]
