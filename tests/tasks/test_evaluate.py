import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest

from schemas.errors import TrainingDiverged
from schemas.references import Evaluation, PreparedData, TrainedModel
from tasks.data.splits import open_split
from tasks.evaluate import evaluate
from tests.field_faults import field_fault
from tests.plain_keras import plain_network

pytestmark = pytest.mark.usefixtures("in_this_process")


@pytest.fixture(scope="module")
def evaluation(
    in_this_process: None, sample_prepared: PreparedData, sample_trained: TrainedModel, sample_artifacts: Path
) -> Evaluation:
    return evaluate.fn(sample_prepared, sample_trained, sample_artifacts)


def test_metrics_equal_those_of_plain_keras(
    evaluation: Evaluation, sample_prepared: PreparedData, sample_trained: TrainedModel
) -> None:
    model = plain_network(sample_trained.record.path)
    test = open_split(sample_prepared.record.path, "test")
    loss, accuracy = model.evaluate(test.scaled(slice(None)), test.labels, verbose=0)
    metrics = json.loads((evaluation.record.path / "metrics.json").read_bytes())
    assert metrics["test_accuracy"] == evaluation.test_accuracy == pytest.approx(accuracy, abs=1e-6)
    assert metrics["test_loss"] == evaluation.test_loss == pytest.approx(loss, abs=1e-6)
    assert metrics["test_rows"] == 200
    assert metrics["history"] == json.loads((sample_trained.record.path / "history.json").read_bytes())
    assert math.isfinite(metrics["expected_calibration_error"])
    assert np.array(metrics["confusion_matrix"]).sum(axis=1).tolist() == [20] * 10


def test_robustness_is_that_of_plain_keras(
    evaluation: Evaluation, sample_prepared: PreparedData, sample_trained: TrainedModel
) -> None:
    model = plain_network(sample_trained.record.path)
    test = open_split(sample_prepared.record.path, "test")
    mirrored = test.scaled(slice(None)).reshape(-1, 28, 28)[:, :, ::-1].reshape(-1, 784)
    accuracy = (model.predict(mirrored, verbose=0).argmax(axis=1) == test.labels).mean()
    metrics = json.loads((evaluation.record.path / "metrics.json").read_bytes())
    assert metrics["robustness"]["mirror"]["accuracy"] == pytest.approx(accuracy)
    assert metrics["robustness_rows"] == 200


def test_repeats_the_robustness_and_measures_the_cost(
    evaluation: Evaluation, sample_prepared: PreparedData, sample_trained: TrainedModel, tmp_path: Path
) -> None:
    again = evaluate.fn(sample_prepared, sample_trained, tmp_path)
    first, second = (json.loads((one.record.path / "metrics.json").read_bytes()) for one in (evaluation, again))
    assert not again.record.reused
    assert {**first, "cost": None} == {**second, "cost": None}
    cost = first["cost"]
    folder = sample_trained.record.path
    assert cost["bytes"] == sum((folder / name).stat().st_size for name in ("topology.json", "model.weights.h5"))
    for latency in cost["latency"].values():
        assert 0 < latency["p50_seconds"] <= latency["p95_seconds"]
    assert 50_000_000 < cost["peak_memory_bytes"] < 20_000_000_000


def test_reuses_the_evaluation_of_an_unchanged_model(
    evaluation: Evaluation, sample_prepared: PreparedData, sample_trained: TrainedModel, sample_artifacts: Path
) -> None:
    assert evaluate.fn(sample_prepared, sample_trained, sample_artifacts).record.reused


@pytest.mark.usefixtures("evaluation")
def test_evaluates_again_on_another_test_split(
    sample_prepared: PreparedData, sample_trained: TrainedModel, sample_artifacts: Path
) -> None:
    changed = sample_prepared.model_copy(update={"sha256": "0" * 64})
    assert not evaluate.fn(changed, sample_trained, sample_artifacts).record.reused


@pytest.mark.usefixtures("evaluation")
def test_evaluates_again_with_other_variables(
    sample_prepared: PreparedData,
    sample_trained: TrainedModel,
    sample_artifacts: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=true")
    assert not evaluate.fn(sample_prepared, sample_trained, sample_artifacts).record.reused


@field_fault(
    "stray files and bad values",
    "The trained model predicts NaN on the test split",
    "`evaluate` reports it and stores no metrics",
)
def test_predictions_that_are_not_finite_are_not_stored(
    sample_prepared: PreparedData, sample_trained: TrainedModel, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(sample_trained.record.path, tmp_path / "trained"))
    model = plain_network(folder)
    model.set_weights([weights * np.float32("nan") for weights in model.get_weights()])
    model.save_weights(folder / "model.weights.h5")
    record = sample_trained.record.model_copy(update={"path": folder, "digest": "0" * 64})
    with pytest.raises(TrainingDiverged, match="not finite on the test split"):
        evaluate.fn(sample_prepared, sample_trained.model_copy(update={"record": record}), tmp_path)
    assert not list(tmp_path.glob("evaluated/*/*"))
