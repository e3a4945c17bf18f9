import json
import re
import shutil
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from schemas.config import PROJECT_ROOT, PromotionConfig, TrainingConfig
from schemas.contract import FASHION_MNIST, Split
from schemas.errors import CandidateRejected, StoredArtifactError
from schemas.layout import HISTORY_NAME, WEIGHTS_NAME
from schemas.references import Evaluation, ModelVersion, PreparedData, TrainedModel, ValidatedSplit
from tasks.evaluate import evaluate
from tasks.model.backend import set_up_backend
from tasks.model.fit import save_model
from tasks.model.inference import write_golden
from tasks.model.network import build_network
from tasks.model.test_predictions import StoredPredictions, read_predictions, write_predictions
from tasks.registry.alias_log import alias_values, read_alias_log
from tasks.registry.store import list_versions, show_version, store_folder
from tasks.runtime.files import sha256_file
from tasks.version import _measure, code_revision, version
from tests.plain_keras import plain_network

# What 900 images teach in three epochs is below the floor.
NO_FLOOR = PromotionConfig(minimum_accuracy=0, minimum_recall=0)


@pytest.fixture(scope="module", autouse=True)
def _quickly(in_this_process: None) -> None:
    pass


@pytest.fixture(scope="module")
def sample_evaluation(
    sample_prepared: PreparedData, sample_trained: TrainedModel, sample_artifacts: Path
) -> Evaluation:
    return evaluate.fn(sample_prepared, sample_trained, sample_artifacts)


@pytest.fixture(scope="module")
def worse_trained(
    sample_prepared: PreparedData,
    sample_trained: TrainedModel,
    small_config: TrainingConfig,
    tmp_path_factory: pytest.TempPathFactory,
) -> TrainedModel:
    """The network with its first weights, as if they were what training came to."""
    folder = tmp_path_factory.mktemp("worse")
    set_up_backend(small_config.seed)
    network = build_network(FASHION_MNIST, small_config.dropout)
    save_model(network, FASHION_MNIST, small_config, folder)
    write_golden(network, np.load(sample_prepared.record.path / "validation_images.npy"), folder)
    shutil.copy(sample_trained.record.path / HISTORY_NAME, folder)
    record = sample_trained.record.model_copy(update={"path": folder, "key": "2" * 64, "digest": "2" * 64})
    weights = sha256_file(folder / WEIGHTS_NAME)
    return sample_trained.model_copy(update={"record": record, "weights_sha256": weights})


@pytest.fixture
def add(
    sample_data: dict[Split, ValidatedSplit],
    sample_prepared: PreparedData,
    sample_trained: TrainedModel,
    small_config: TrainingConfig,
    sample_artifacts: Path,
    tmp_path: Path,
) -> Any:
    """Adds a version to a store under tmp_path; another model or key makes it another candidate."""

    def run(
        trained: TrainedModel = sample_trained, key: str | None = None, promotion: PromotionConfig = NO_FLOOR
    ) -> ModelVersion:
        judged = evaluate.fn(sample_prepared, trained, sample_artifacts)
        if key is not None:
            trained = trained.model_copy(update={"record": trained.record.model_copy(update={"key": key})})
        return version.fn(sample_data, sample_prepared, trained, judged, small_config, promotion, tmp_path)

    return run


def test_the_first_version_is_champion_and_holds_what_the_layout_says(add: Any, tmp_path: Path) -> None:
    made = add()
    root = store_folder(tmp_path, "fashion-mnist")
    assert (made.version, made.created, made.champion) == (1, True, True)
    assert made.path == root / "versions" / "0001"
    assert {path.name for path in made.path.iterdir()} == {
        *("topology.json", "model.weights.h5", "metrics.json", "profile.json", "report.html"),
        *("golden.json", "verdict.json", "test_predictions.parquet", "manifest.json"),
    }
    assert [row["aliases"] for row in list_versions(root)] == [["champion"]]


def test_the_manifest_says_what_the_version_was_made_from(
    add: Any, tmp_path: Path, sample_prepared: PreparedData, sample_trained: TrainedModel, small_config: TrainingConfig
) -> None:
    import keras

    made = add()
    shown = show_version(store_folder(tmp_path, "fashion-mnist"), 1)
    for name, entry in shown["files"].items():
        path = made.path / name
        assert (entry["bytes"], entry["sha256"]) == (path.stat().st_size, sha256_file(path))
    assert set(shown["files"]) == {path.name for path in made.path.iterdir()} - {"manifest.json"}
    assert shown["topology_id"] == sample_trained.topology_sha256 == shown["files"]["topology.json"]["sha256"]
    assert shown["configuration"] == small_config.model_dump()
    assert shown["seed"] == 7
    assert (shown["data"]["train"]["rows"], shown["data"]["test"]["rows"]) == (1_000, 200)
    assert shown["data"]["split_rows"] == {"train": 900, "validation": 100, "test": 200}
    assert shown["data"]["train"]["csv_sha256"] == sha256_file(
        PROJECT_ROOT / "tests" / "data" / "fashion-mnist_train.csv.gz"
    )
    assert [entry["file"] for entry in shown["data"]["train"]["csv_files"]] == ["fashion-mnist_train.csv.gz"]
    assert shown["data"]["train"]["quarantined"] == 0
    drift = [check for check in shown["data"]["test"]["checks"] if check["check"] == "drift"]
    assert [(check["bound"], check["severity"], check["result"]) for check in drift] == [("<= 0.1", "warning", "met")]
    assert 0 < drift[0]["figure"] < 0.1
    assert shown["device"] == sample_trained.device.model_dump()
    assert shown["parent"] is None
    assert shown["flow_run_id"] is None
    assert shown["packages"]["keras"] == keras.__version__
    assert shown["metrics"]["test_accuracy"] == made.test_accuracy == shown["test_accuracy"]
    stages = [(entry["stage"], entry["split"]) for entry in shown["lineage"]]
    assert stages == [
        *(("ingest", "train"), ("validate", "train"), ("ingest", "test"), ("validate", "test")),
        *(("prepare", None), ("train", None), ("evaluate", None)),
    ]
    assert all(entry["seconds"] > 0 for entry in shown["lineage"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", shown["created"])


def test_the_manifest_says_how_long_the_flow_run_took_so_far(
    add: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = SimpleNamespace(start_time=datetime.now(UTC) - timedelta(minutes=5))
    monkeypatch.setattr("tasks.version.FlowRunContext", SimpleNamespace(get=lambda: begun))
    add()
    assert 300 <= show_version(store_folder(tmp_path, "fashion-mnist"), 1)["seconds_since_start"] < 600


def test_the_stored_files_alone_reproduce_the_metrics(add: Any, sample_prepared: PreparedData) -> None:
    made = add()
    model = plain_network(made.path)
    images = np.load(sample_prepared.record.path / "test_images.npy")
    labels = np.load(sample_prepared.record.path / "test_labels.npy")
    loss, accuracy = model.evaluate(images, labels, verbose=0)
    assert (accuracy, loss) == pytest.approx((made.test_accuracy, made.test_loss), abs=1e-6)


def test_the_same_inputs_make_no_second_version(add: Any, tmp_path: Path) -> None:
    add()
    again = add()
    assert (again.version, again.created) == (1, False)
    assert len(list_versions(store_folder(tmp_path, "fashion-mnist"))) == 1


def test_the_same_model_again_is_kept_as_within_noise_and_its_verdict_is_written(add: Any, tmp_path: Path) -> None:
    add()
    twin = add(key="b" * 64)
    root = store_folder(tmp_path, "fashion-mnist")
    assert (twin.version, twin.champion) == (2, False)
    verdict = json.loads((twin.path / "verdict.json").read_bytes())
    assert (verdict["outcome"], verdict["champion"]) == ("kept", 1)
    paired = verdict["rules"][-1]
    assert (paired["figure"], paired["fixed"], paired["broken"], paired["rows"]) == (1.0, 0, 0, 200)
    assert alias_values(read_alias_log(root)) == {"champion": 1}
    assert show_version(root, 2)["parent"] == 1


def test_a_better_candidate_becomes_champion_and_the_log_says_so(
    add: Any, worse_trained: TrainedModel, tmp_path: Path
) -> None:
    add(trained=worse_trained)
    better = add()
    worse = add(trained=worse_trained, key="c" * 64)
    assert (better.champion, worse.champion) == (True, False)
    log = read_alias_log(store_folder(tmp_path, "fashion-mnist"))
    assert [(event["from"], event["to"]) for event in log] == [(None, 1), (1, 2)]
    assert "better than version 1 on the same 200 test rows" in log[1]["reason"]
    assert "worse than version 2" in worse.verdict


def test_a_candidate_below_the_floor_is_stored_and_refused_each_time(add: Any, tmp_path: Path) -> None:
    root = store_folder(tmp_path, "fashion-mnist")
    strict = PromotionConfig(minimum_accuracy=0.99)
    for _ in range(2):  # the second time the version is there already
        with pytest.raises(CandidateRejected, match=r"Refused: test accuracy is .*, expected >= 0.99"):
            add(promotion=strict)
    (row,) = list_versions(root)
    assert (row["outcome"], row["aliases"]) == ("refused", [])


def test_other_bounds_give_the_same_model_another_verdict(add: Any, tmp_path: Path) -> None:
    with pytest.raises(CandidateRejected):
        add(promotion=PromotionConfig(minimum_accuracy=0.99))
    second = add()
    assert (second.version, second.created, second.champion) == (2, True, True)
    assert [row["outcome"] for row in list_versions(store_folder(tmp_path, "fashion-mnist"))] == ["refused", "promoted"]


def test_the_champion_is_measured_on_the_rows_of_the_candidate(
    add: Any, sample_prepared: PreparedData, sample_evaluation: Evaluation, tmp_path: Path
) -> None:
    """Also when they are not those that the champion's own figures come from."""
    add()
    folder = tmp_path / "prepared"
    shutil.copytree(sample_prepared.record.path, folder)
    labels = np.load(folder / "test_labels.npy")
    images = np.load(folder / "test_images.npy")
    np.save(folder / "test_labels.npy", labels[:50])
    np.save(folder / "test_images.npy", images[:50])
    changed = sample_prepared.model_copy(update={"record": sample_prepared.record.model_copy(update={"path": folder})})
    said = read_predictions(sample_evaluation.record.path / "test_predictions.parquet", FASHION_MNIST)
    fifty = StoredPredictions(said.images[:50], said.labels[:50], said.probabilities[:50])
    shutil.copytree(sample_evaluation.record.path, tmp_path / "evaluated")
    write_predictions(tmp_path / "evaluated" / "test_predictions.parquet", fifty, FASHION_MNIST)
    record = sample_evaluation.record.model_copy(update={"path": tmp_path / "evaluated"})
    judged = sample_evaluation.model_copy(update={"record": record})
    measured = _measure(store_folder(tmp_path, "fashion-mnist"), changed, judged, 1)
    assert measured.paired is not None
    assert (measured.paired.rows, measured.paired.fixed, measured.paired.broken) == (50, 0, 0)


def test_a_model_that_does_not_repeat_its_golden_predictions_is_refused(
    add: Any, sample_trained: TrainedModel, tmp_path: Path
) -> None:
    folder = tmp_path / "trained"
    shutil.copytree(sample_trained.record.path, folder)
    golden = json.loads((folder / "golden.json").read_bytes())
    golden["probabilities"][3][4] += 0.001
    (folder / "golden.json").write_text(json.dumps(golden))
    changed = sample_trained.model_copy(
        update={"record": sample_trained.record.model_copy(update={"path": folder, "digest": "1" * 64})}
    )
    with pytest.raises(CandidateRejected, match="golden predictions"):
        add(trained=changed)


def test_weights_that_changed_after_they_were_judged_make_no_version(
    add: Any, sample_trained: TrainedModel, tmp_path: Path
) -> None:
    other = sample_trained.model_copy(update={"weights_sha256": "0" * 64})
    with pytest.raises(StoredArtifactError, match="changed since it was trained"):
        add(trained=other)
    assert list_versions(store_folder(tmp_path, "fashion-mnist")) == []


def test_a_damaged_champion_is_not_replaced_and_one_that_is_gone_is(add: Any, tmp_path: Path) -> None:
    first = add()
    with (first.path / "report.html").open("a") as report:
        report.write("x")
    second = add(key="b" * 64)
    assert not second.champion
    assert "version 1, the champion, cannot be measured" in second.verdict
    assert "report.html" in second.verdict
    shutil.rmtree(first.path)
    third = add(key="c" * 64)
    assert (third.version, third.champion) == (3, True)


def test_the_code_revision_is_that_of_the_checkout() -> None:
    head = subprocess.run(
        ["git", "-C", str(PROJECT_ROOT), "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    ).stdout.strip()
    assert code_revision()["revision"] == head
    assert isinstance(code_revision()["dirty"], bool)
