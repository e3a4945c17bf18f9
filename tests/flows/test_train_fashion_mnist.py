"""The main flow on the committed sample of the real data, against a real Prefect server."""

import base64
import re
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowFilter, FlowFilterName, FlowRunFilter, FlowRunFilterId
from prefect.exceptions import ParameterTypeError
from pydantic import ValidationError

from flows.train_fashion_mnist import train_fashion_mnist
from schemas.config import PROJECT_ROOT, PromotionConfig, TrainingConfig
from schemas.errors import DeviceUnavailable
from schemas.references import ModelVersion
from tasks.model.backend import gpu_driver_present
from tasks.registry.store import ModelStore
from tests.sample import SAMPLE

STAGES = ["ingest", "validate", "ingest", "validate", "prepare", "train", "evaluate"]


def _train(artifacts: Path, **training: Any) -> ModelVersion:
    config = TrainingConfig(**{"epochs": 2, "batch_size": 64, "validation_size": 100, **training})
    # What two epochs on a thousand images give is below the floor.
    promotion = PromotionConfig(minimum_accuracy=0, minimum_recall=0)
    made = train_fashion_mnist(data_dir=SAMPLE, artifacts_dir=artifacts, training=config, promotion=promotion)
    assert isinstance(made, ModelVersion)
    return made


@pytest.fixture(scope="module")
def artifacts(server: str, in_this_process: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifacts folder that one run of the flow has filled. With processes of their own it is tried as a command."""
    folder = tmp_path_factory.mktemp("artifacts")
    _train(folder)
    return folder


def _reused(artifacts: Path, version: int) -> list[bool]:
    lineage = ModelStore.of(artifacts, "fashion-mnist").version(version).manifest.lineage
    assert [entry.stage for entry in lineage] == STAGES
    return [entry.reused for entry in lineage]


def _fits() -> int:
    """Runs of fit-model that the server knows."""
    with get_client(sync_client=True) as client:
        return len(client.read_flow_runs(flow_filter=FlowFilter(name=FlowFilterName(any_=["fit-model"]))))


def test_the_flow_makes_a_version_that_learned_something(artifacts: Path) -> None:
    (row,) = ModelStore.of(artifacts, "fashion-mnist").summaries()
    assert (row.version, row.aliases) == (1, ["champion"])
    assert row.test_accuracy is not None
    assert row.test_accuracy > 0.5  # a guess is right one time in ten
    assert _reused(artifacts, 1) == [False] * 7


def test_an_unchanged_run_makes_no_version(artifacts: Path) -> None:
    before = len(ModelStore.of(artifacts, "fashion-mnist").summaries()), _fits()
    made = _train(artifacts)
    assert (made.version, made.created) == (1, False)
    assert (len(ModelStore.of(artifacts, "fashion-mnist").summaries()), _fits()) == before


def test_a_damaged_model_is_trained_anew_and_comes_out_the_same(artifacts: Path) -> None:
    (weights,) = (artifacts / "trained").glob("*/model.weights.h5")
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1])
    made = _train(artifacts)
    assert (made.version, made.created) == (1, False)
    assert weights.read_bytes() == whole


def test_a_changed_seed_redoes_train_and_not_ingest(artifacts: Path) -> None:
    before = _fits()
    made = _train(artifacts, seed=3)
    assert made.created
    assert _fits() == before + 1
    assert _reused(artifacts, made.version) == [True] * 4 + [False] * 3


def test_a_changed_recipe_redoes_train_and_not_prepare(artifacts: Path) -> None:
    made = _train(artifacts, learning_rate=1e-3)
    assert made.created
    assert _reused(artifacts, made.version) == [True] * 5 + [False] * 2


def test_the_run_is_on_the_server_with_its_artifacts_and_a_child_of_its_own(artifacts: Path) -> None:
    run_id = ModelStore.of(artifacts, "fashion-mnist").version(1).manifest.flow_run_id
    with get_client(sync_client=True) as client:
        run = client.read_flow_run(run_id)
        assert run.state is not None
        assert run.state.is_completed()
        tasks = client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run.id])))
        names = {task.name for task in tasks}
        assert names >= {
            *("fetch", "ingest train", "ingest test", "validate train", "validate test", "prepare"),
            *("evaluate", "version"),
        }
        (child,) = {task.state.state_details.child_flow_run_id for task in tasks} - {None}
        assert len(tasks) == 9
        assert (run.name, set(run.tags)) == ("fashion-mnist v0001 seed 0", {"fashion-mnist", "v0001", "promoted"})
        assert client.read_flow_run(child).name == "fashion-mnist fit seed 0"
        ours = {run.id, child}
        found = [artifact for artifact in client.read_artifacts(limit=200) if artifact.flow_run_id in ours]
    kinds = {(artifact.key, artifact.type) for artifact in found if artifact.key}
    # Records of results have no key. All else is what the page for people lists.
    told = (PROJECT_ROOT / "docs" / "prefect-ui.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^\| `DATASET-([a-z-]+)` \| (\w+) \|", told, re.MULTILINE))
    assert kinds == {(f"fashion-mnist-{key}", kind) for key, kind in listed}
    link = next(artifact.data for artifact in found if artifact.key == "fashion-mnist-report")
    assert (artifacts / "models" / "fashion-mnist" / "versions" / "0001" / "report.html").as_uri() in str(link)
    summary = next(str(artifact.data) for artifact in found if artifact.key == "fashion-mnist-version")
    assert "promoted, current champion" in summary
    assert "| ingest train | computed |" in summary
    progress = [artifact.data for artifact in found if artifact.type == "progress"]
    assert progress == [100.0]
    for artifact in found:
        if artifact.type == "image":
            encoded = str(artifact.data).removeprefix("data:image/png;base64,")
            assert base64.b64decode(encoded).startswith(b"\x89PNG")


def test_a_wrong_parameter_is_refused_by_name_before_anything_runs(server: str, tmp_path: Path) -> None:
    with pytest.raises((ParameterTypeError, ValidationError), match="epoch"):
        train_fashion_mnist(artifacts_dir=tmp_path / "none", training={"epoch": 3})
    with pytest.raises((ParameterTypeError, ValidationError), match="dataset"):
        train_fashion_mnist(artifacts_dir=tmp_path / "none", dataset="mnist")
    assert not (tmp_path / "none").exists()


@pytest.mark.skipif(gpu_driver_present(), reason="says what a machine without a GPU does")
def test_a_demanded_gpu_that_is_not_there_fails_the_run_and_an_unknown_device_never_starts_one(artifacts: Path) -> None:
    before = len(ModelStore.of(artifacts, "fashion-mnist").summaries())
    config = TrainingConfig(epochs=2, batch_size=64, validation_size=100)  # which a CPU has trained here
    with pytest.raises(DeviceUnavailable, match="nvidia-smi"):
        train_fashion_mnist(data_dir=SAMPLE, artifacts_dir=artifacts, training=config, device="gpu")
    with pytest.raises(ParameterTypeError, match="device"):
        train_fashion_mnist(data_dir=SAMPLE, artifacts_dir=artifacts, device="tpu")  # type: ignore[arg-type]
    assert len(ModelStore.of(artifacts, "fashion-mnist").summaries()) == before
