import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from schemas.config import PROJECT_ROOT, TrainingConfig
from schemas.contract import Split
from schemas.references import Evaluation, ModelVersion, PreparedData, TrainedModel, ValidatedSplit
from tasks.evaluate import evaluate
from tasks.stage import sha256_file
from tasks.store import alias_values, list_versions, read_alias_log, show_version, store_folder
from tasks.version import code_revision, decide, version


@pytest.fixture(scope="module")
def evaluation(sample_prepared: PreparedData, sample_trained: TrainedModel, sample_artifacts: Path) -> Evaluation:
    return evaluate.fn(sample_prepared, sample_trained, sample_artifacts)


@pytest.fixture
def add(
    sample_data: dict[Split, ValidatedSplit],
    sample_prepared: PreparedData,
    sample_trained: TrainedModel,
    evaluation: Evaluation,
    small_config: TrainingConfig,
    tmp_path: Path,
) -> Any:
    """Adds a version to a store under tmp_path; a pretended accuracy and seed make it another candidate."""

    def run(accuracy: float | None = None, key: str | None = None) -> ModelVersion:
        trained, judged = sample_trained, evaluation
        if key is not None:
            trained = trained.model_copy(update={"record": trained.record.model_copy(update={"key": key})})
        if accuracy is not None:
            judged = judged.model_copy(update={"test_accuracy": accuracy})
        return version.fn(sample_data, sample_prepared, trained, judged, small_config, tmp_path)

    return run


def test_the_first_version_is_champion_and_holds_what_the_layout_says(add: Any, tmp_path: Path) -> None:
    made = add()
    root = store_folder(tmp_path, "fashion-mnist")
    assert (made.version, made.created, made.champion) == (1, True, True)
    assert made.path == root / "versions" / "0001"
    assert {path.name for path in made.path.iterdir()} == {
        *("topology.json", "model.weights.h5", "metrics.json", "report.html", "manifest.json")
    }
    assert [row["aliases"] for row in list_versions(root)] == [["champion"]]


def test_the_manifest_says_what_the_version_was_made_from(
    add: Any, tmp_path: Path, sample_prepared: PreparedData, sample_trained: TrainedModel, small_config: TrainingConfig
) -> None:
    made = add()
    shown = show_version(store_folder(tmp_path, "fashion-mnist"), 1)
    for name, entry in shown["files"].items():
        path = made.path / name
        assert (entry["bytes"], entry["sha256"]) == (path.stat().st_size, sha256_file(path))
    assert set(shown["files"]) == {"topology.json", "model.weights.h5", "metrics.json", "report.html"}
    assert shown["topology_id"] == sample_trained.topology_sha256 == shown["files"]["topology.json"]["sha256"]
    assert shown["configuration"] == small_config.model_dump()
    assert shown["seed"] == 7
    assert (shown["data"]["train"]["rows"], shown["data"]["test"]["rows"]) == (1_000, 200)
    assert shown["data"]["split_rows"] == {"train": 900, "validation": 100, "test": 200}
    assert shown["data"]["train"]["csv_sha256"] == sha256_file(
        PROJECT_ROOT / "tests" / "data" / "fashion-mnist_train.csv.gz"
    )
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
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", shown["created"])


def test_the_stored_files_alone_reproduce_the_metrics(add: Any, sample_prepared: PreparedData) -> None:
    made = add()
    model = keras.models.model_from_json((made.path / "topology.json").read_text())
    model.load_weights(made.path / "model.weights.h5")
    model.compile(loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    images = np.load(sample_prepared.record.path / "test_images.npy")
    labels = np.load(sample_prepared.record.path / "test_labels.npy")
    loss, accuracy = model.evaluate(images, labels, verbose=0)
    assert (accuracy, loss) == pytest.approx((made.test_accuracy, made.test_loss), abs=1e-6)


def test_the_same_inputs_make_no_second_version(add: Any, tmp_path: Path) -> None:
    add()
    again = add()
    assert (again.version, again.created) == (1, False)
    assert len(list_versions(store_folder(tmp_path, "fashion-mnist"))) == 1


def test_a_better_candidate_becomes_champion_and_the_log_says_so(add: Any, tmp_path: Path) -> None:
    add(accuracy=0.8)
    better = add(accuracy=0.9, key="b" * 64)
    worse = add(accuracy=0.85, key="c" * 64)
    equal = add(accuracy=0.9, key="d" * 64)
    root = store_folder(tmp_path, "fashion-mnist")
    assert (better.champion, worse.champion, equal.champion) == (True, False, False)
    log = read_alias_log(root)
    assert [(event["from"], event["to"]) for event in log] == [(None, 1), (1, 2)]
    assert alias_values(log) == {"champion": 2}
    assert "0.9000 is above 0.8000 of version 1" in log[1]["reason"]
    assert "0.8500 is not above 0.9000 of version 2" in worse.verdict
    assert show_version(root, 3)["parent"] == 2


def test_a_champion_that_cannot_be_read_gives_way(add: Any, tmp_path: Path) -> None:
    first = add(accuracy=0.9)
    (first.path / "manifest.json").write_text("{}")
    second = add(accuracy=0.8, key="b" * 64)
    assert second.champion
    assert "version 1, cannot be read" in second.verdict
    shutil.rmtree(second.path)
    third = add(accuracy=0.8, key="c" * 64)
    assert (third.version, third.champion) == (3, True)


def test_the_verdict_of_each_rule() -> None:
    assert decide(1, 0.1, None, None, None)["promoted"]
    assert decide(2, 0.91, 1, 0.9, None)["event"]["to"] == 2
    assert decide(2, 0.9, 1, 0.9, None)["event"] is None


def test_the_report_stands_alone(add: Any) -> None:
    made = add()
    html = (made.path / "report.html").read_text(encoding="utf-8")
    assert f"{made.test_accuracy:.4f}" in html
    assert html.count("data:image/png;base64,") == 2
    # Nothing is loaded from anywhere.
    assert not re.search(r"""(src|href)=["'](?!data:)""", html)
    assert "://" not in html


def test_the_code_revision_is_that_of_the_checkout() -> None:
    head = subprocess.run(
        ["git", "-C", str(PROJECT_ROOT), "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    ).stdout.strip()
    assert code_revision()["revision"] == head
    assert isinstance(code_revision()["dirty"], bool)
