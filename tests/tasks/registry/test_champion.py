"""Promotions and rollbacks on a store of real small models."""

import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cli.reproduce import changes_since, reproduction_verdict
from schemas.config import PromotionConfig, TrainingConfig
from schemas.contract import FASHION_MNIST, Split
from schemas.errors import CandidateRejected, NothingToRollBackTo, StoredArtifactError, WrongUsage
from schemas.references import Evaluation, PreparedData, TrainedModel, ValidatedSplit
from tasks.evaluate import evaluate
from tasks.registry.alias_log import champions
from tasks.registry.champion import promote, rollback, set_alias
from tasks.registry.prediction_records import recording
from tasks.registry.store import ModelStore
from tasks.registry.verify import verify
from tasks.version import version
from tests.field_faults import field_fault
from tests.stored import data_facts, facts


@pytest.fixture(scope="module")
def evaluation(
    in_this_process: None, sample_prepared: PreparedData, sample_trained: TrainedModel, sample_artifacts: Path
) -> Evaluation:
    return evaluate.fn(sample_prepared, sample_trained, sample_artifacts)


@pytest.fixture(scope="module")
def three_versions(
    sample_data: dict[Split, ValidatedSplit],
    sample_prepared: PreparedData,
    sample_trained: TrainedModel,
    evaluation: Evaluation,
    small_config: TrainingConfig,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """Return a store with three versions of one model, of which the first is champion; copy it."""
    artifacts = tmp_path_factory.mktemp("store")
    for key in ("1", "2", "3"):
        record = sample_trained.record.model_copy(update={"key": key * 64})
        trained = sample_trained.model_copy(update={"record": record})
        no_floor = PromotionConfig(minimum_accuracy=0, minimum_recall=0)
        version.fn(sample_data, sample_prepared, trained, evaluation, small_config, no_floor, artifacts)
    return ModelStore.of(artifacts, "fashion-mnist").root


@pytest.fixture
def store(three_versions: Path, tmp_path: Path) -> ModelStore:
    return ModelStore(Path(shutil.copytree(three_versions, tmp_path / "store")))


def test_promotions_and_rollbacks_are_logged(store: ModelStore) -> None:
    for number in (2, 3):
        event = promote(store, number, f"try {number}").event
        assert (event.before, event.to, event.by) == (number - 1, number, "promote")
    assert [rollback(store, "it was worse").event.to for _ in range(2)] == [2, 1]
    with pytest.raises(NothingToRollBackTo):
        rollback(store, "once more")
    log = store.aliases.read()
    assert [event.to for event in log] == [1, 2, 3, 2, 1]
    assert [event.reason for event in log][1:] == ["try 2", "try 3", "it was worse", "it was worse"]
    assert champions(log) == [1]


def test_a_rejected_promotion_leaves_the_log_unchanged(store: ModelStore) -> None:
    before = store.aliases.path.read_bytes()
    with pytest.raises(WrongUsage, match="champion already"):
        promote(store, 1, "again")
    for move in (lambda: promote(store, 2, "  "), lambda: set_alias(store, 2, "staging", "")):
        with pytest.raises(WrongUsage, match="--reason"):
            move()
    weights = store.folder(2) / "model.weights.h5"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    with pytest.raises(StoredArtifactError, match=r"0002/model\.weights\.h5: expected sha256 \w{64}, received \w{64}"):
        promote(store, 2, "forced", force=True)
    assert store.aliases.path.read_bytes() == before


def test_another_alias_leaves_the_champion(store: ModelStore) -> None:
    event = set_alias(store, 2, "staging", "to be tried").event
    assert (event.alias, event.before, event.to, event.by) == ("staging", None, 2, "alias")
    assert set_alias(store, 3, "staging", "better").event.before == 2
    assert (store.resolve("staging"), store.aliases.champion()) == (3, 1)
    assert (store.aliases_of(2), store.aliases_of(3)) == ([], ["staging"])
    assert champions(store.aliases.read()) == [1]
    with pytest.raises(WrongUsage, match="names version 3 already"):
        set_alias(store, 3, "staging", "again")


@pytest.mark.parametrize(
    "name", ["champion", "Champion", "", "7", "v7", "v07", "a b", "a/b", "-a", "a_b", "ä", "a" * 65, "a\n"]
)
def test_wrong_name_of_an_alias_is_rejected(store: ModelStore, name: str) -> None:
    before = store.aliases.path.read_bytes()
    with pytest.raises(WrongUsage, match="Expected an alias"):
        set_alias(store, 2, name, "a test")
    assert store.aliases.path.read_bytes() == before


def test_a_failed_rollback_keeps_the_champion(store: ModelStore) -> None:
    promote(store, 2, "a test")
    (store.folder(1) / "report.html").write_text("edited")
    with pytest.raises(StoredArtifactError, match="Version 2 stays champion"):
        rollback(store, "a test")
    assert store.aliases.champion() == 2


def test_cleaning_is_reported_also_after_a_failure(store: ModelStore, caplog: pytest.LogCaptureFixture) -> None:
    leftover = store.folder(4).with_name(".0004.77.tmp")
    leftover.mkdir()
    with pytest.raises(WrongUsage):
        promote(store, 1, "again")
    assert str(leftover) in caplog.text
    leftover.mkdir()
    assert str(leftover) in promote(store, 2, "a test").cleaned[0]


def test_a_rejected_version_is_promoted_only_by_force(
    sample_data: dict[Split, ValidatedSplit],
    sample_prepared: PreparedData,
    sample_trained: TrainedModel,
    evaluation: Evaluation,
    small_config: TrainingConfig,
    tmp_path: Path,
) -> None:
    strict = PromotionConfig(minimum_accuracy=1)
    with pytest.raises(CandidateRejected):
        version.fn(sample_data, sample_prepared, sample_trained, evaluation, small_config, strict, tmp_path)
    store = ModelStore.of(tmp_path, "fashion-mnist")
    with pytest.raises(WrongUsage, match="rejected by its own verdict"):
        promote(store, 1, "no other")
    event = promote(store, 1, "no other", force=True).event
    assert (event.to, event.by) == (1, "promote --force")


def test_verify_rejects_edited_model_files(store: ModelStore) -> None:
    assert verify(store.version(1)) == 0.0
    for name in ("topology.json", "golden.json"):
        path = store.folder(2) / name
        content = path.read_bytes()
        path.write_bytes(content.replace(b"relu", b"tanh").replace(b"0.", b"1.", 1))
        with pytest.raises(StoredArtifactError, match=name):
            verify(store.version(2))
        path.write_bytes(content)


@pytest.mark.parametrize(
    ("recorded", "change"),
    [
        ({}, None),
        ({"device": {"driver": "560.3"}}, "device: driver 560.3, now 570.1"),
        ({"device": {"name": "AMD EPYC, 2 cores"}}, "device: name AMD EPYC, 2 cores, now H200"),
        ({"environment": {"XLA_FLAGS": "--a"}}, "environment: XLA_FLAGS --a, now unset"),
        ({"packages": {"keras": "3.14"}}, "package: keras 3.14, now 3.15"),
        ({"code_sha256": "1" * 64}, f"code of the train stage: {'1' * 64}, now "),
        ({"lock_sha256": "1" * 64}, f"lock: {'1' * 64}, now "),
        ({"code_sha256": None, "key": "1" * 64}, "cache key of the train stage, for an unrecorded reason: 1"),
        ({"prepared": "1" * 64}, f"prepared data: {'1' * 64}, now "),
    ],
)
@field_fault(
    "hidden input of a cached result",
    "`reproduce` runs with other variables, packages, code, lock, data or CPU",
    "It names each recorded entry that differs, with both values",
)
def test_changes_since_a_version_are_listed(
    sample_prepared: PreparedData, sample_trained: TrainedModel, recorded: dict[str, Any], change: str | None
) -> None:
    """Values that the manifest does not record are no change."""
    device = sample_trained.device.model_copy(update={"kind": "gpu", "name": "H200", "driver": "570.1"})
    packages = {**sample_trained.packages, "keras": "3.15"}
    trained = sample_trained.model_copy(update={"device": device, "packages": packages})
    fitted = trained.record.model_copy(update={"key": recorded.get("key", trained.record.key)})
    manifest = facts(
        lineage=[fitted.model_dump(mode="json", exclude={"path"})],
        data={**data_facts(), "prepared_sha256": recorded.get("prepared", sample_prepared.sha256)},
        device={"kind": "gpu", "name": "H200", "count": 1, "backend": device.backend, **recorded.get("device", {})},
        environment={**trained.environment, **recorded.get("environment", {})},
        packages={**packages, **recorded.get("packages", {})},
        **{name: recorded.get(name, getattr(trained, name)) for name in ("code_sha256", "lock_sha256")},
    )
    changes = changes_since(manifest, trained, sample_prepared.sha256)
    assert len(changes) == (change is not None)
    assert all(line.startswith(str(change)) for line in changes)


PACKAGE, CODE = "package: keras 3.14, now 3.15", f"code of the train stage: {'1' * 64}, now 2"


@pytest.mark.parametrize(
    ("identical", "differs", "p_value", "verdict"),
    [
        (True, [], 1.0, "reproduced"),
        (True, [CODE], 1.0, "reproduced"),
        (False, [], 1.0, "not reproduced"),
        (False, [PACKAGE], 0.6, "equivalent"),
        (False, [PACKAGE], 0.01, "not reproduced"),
        (False, [CODE], 0.6, "not reproduced"),
        (False, ["prepared data: 1, now 2", PACKAGE], 0.6, "not reproduced"),
        (False, ["cache key of the train stage, for an unrecorded reason: 1, now 2"], 0.6, "not reproduced"),
    ],
)
@field_fault(
    "failure without a message",
    "`reproduce` trains other weights, and code or packages changed",
    "It prints a verdict and its reason; other code or data ends with status 1",
)
def test_a_reproduction_always_has_a_verdict(identical: bool, differs: list[str], p_value: float, verdict: str) -> None:
    received, reason = reproduction_verdict(identical, differs, p_value)
    assert received == verdict
    if differs and not identical:
        assert differs[0].partition(":")[0] in reason


def test_a_demanded_shadow_is_counted_beside_the_champion(three_versions: Path, tmp_path: Path) -> None:
    store = ModelStore.of(tmp_path, "fashion-mnist")
    shutil.copytree(three_versions, store.root)
    images, probabilities = np.zeros((100, 784), np.uint8), np.full((100, 10), 0.1, np.float32)
    now = datetime.now(UTC)
    for day, number, beside in ((0, 2, 1), (1, 2, 1), (0, 2, 3), (0, 2, None), (0, 3, 1)):  # day 1: the same images
        with recording(tmp_path, store.version(number), FASHION_MNIST, now - timedelta(days=day), beside) as record:
            record.add(images + number, probabilities)
            record.finish("out.parquet", "0" * 64, None, [])
    with pytest.raises(WrongUsage, match="expected 101 rows as a shadow of version 1, the champion, received 100"):
        promote(store, 2, "a test", minimum_shadow_rows=101)
    assert promote(store, 2, "a test", minimum_shadow_rows=100).event.to == 2
    assert promote(store, 3, "a test", minimum_shadow_rows=101, force=True).event.to == 3
