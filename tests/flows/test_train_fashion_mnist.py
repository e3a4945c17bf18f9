"""The main flow on the committed sample of the real data, against a real Prefect server."""

import base64
import json
import re
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowFilter, FlowFilterName, FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.sorting import ArtifactSort, FlowRunSort
from prefect.exceptions import ParameterTypeError
from pydantic import ValidationError

from flows.train_fashion_mnist import train_fashion_mnist
from schemas.config import PROJECT_ROOT, PromotionConfig, TrainingConfig
from schemas.contract import SPLITS
from schemas.errors import DataContractError, DeviceUnavailable
from schemas.references import ModelVersion
from tasks.model.backend import gpu_driver_present
from tasks.registry.store import ModelStore
from tasks.runtime.stages import PREPARE, RUN_NAMES, TRAIN, Stage, runs
from tests.field_faults import field_fault
from tests.sample import SAMPLE

NAME = "fashion-mnist"
PER_SHARD = ("ingest", "scan", "prepare")
# Those whose records are in the lineage of a version.
STORED = [(stage.name, split) for stage, split in runs() if stage.folder is not None]


def train(artifacts: Path, **training: Any) -> ModelVersion:
    config = TrainingConfig(**{"epochs": 2, "batch_size": 64, "validation_size": 100, **training})
    # Two epochs on a thousand images give an accuracy below the default floor.
    promotion = PromotionConfig(minimum_accuracy=0, minimum_recall=0)
    version = train_fashion_mnist(data_dir=SAMPLE, artifacts_dir=artifacts, training=config, promotion=promotion)
    assert isinstance(version, ModelVersion)
    return version


@pytest.fixture(scope="module")
def artifacts(server: str, in_this_process: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an artifacts folder that one run of the flow has filled. test_command.py runs it with worker processes."""
    folder = tmp_path_factory.mktemp("artifacts")
    train(folder)
    return folder


def reused_stages(artifacts: Path, version: int) -> list[bool]:
    lineage = ModelStore.of(artifacts, "fashion-mnist").version(version).manifest.lineage
    assert [(entry.stage, entry.split) for entry in lineage] == STORED
    return [entry.reused for entry in lineage]


def reused_before(stage: Stage) -> list[bool]:
    """Return the result of `reused_stages` if only the stages before ``stage`` are reused."""
    first = STORED.index((stage.name, None))
    return [place < first for place in range(len(STORED))]


def fit_runs() -> int:
    """Return the number of fit-model runs on the server."""
    with get_client(sync_client=True) as client:
        return len(client.read_flow_runs(flow_filter=FlowFilter(name=FlowFilterName(any_=["fit-model"]))))


def test_creates_a_version_that_has_learned(artifacts: Path) -> None:
    (row,) = ModelStore.of(artifacts, "fashion-mnist").summaries()
    assert (row.version, row.aliases) == (1, ["champion"])
    assert row.test_accuracy > 0.5  # chance is 0.1
    assert reused_stages(artifacts, 1) == [False] * len(STORED)


def test_an_unchanged_run_creates_no_version(artifacts: Path) -> None:
    before = len(ModelStore.of(artifacts, "fashion-mnist").summaries()), fit_runs()
    version = train(artifacts)
    assert (version.version, version.created) == (1, False)
    assert (len(ModelStore.of(artifacts, "fashion-mnist").summaries()), fit_runs()) == before
    with get_client(sync_client=True) as client:
        (run,) = client.read_flow_runs(limit=1, sort=FlowRunSort.START_TIME_DESC)
        newest = client.read_artifacts(limit=50, sort=ArtifactSort.CREATED_DESC)
    assert set(run.tags) == {"fashion-mnist", "v0001", "nothing-new"}
    table = next(artifact.data for artifact in newest if artifact.key == "fashion-mnist-test-validation")
    assert list(json.loads(str(table))[0])[:2] == ["result", "of"]  # the keys of a reread file are sorted
    summary = next(str(artifact.data) for artifact in newest if artifact.key == "fashion-mnist-version")
    assert "| train | cached |" in summary
    assert "computed" not in summary


def test_retrains_a_damaged_model_to_the_same_weights(artifacts: Path) -> None:
    (weights,) = (artifacts / "trained").glob("*/model.weights.h5")
    intact = weights.read_bytes()
    weights.write_bytes(intact[:-1])
    version = train(artifacts)
    assert (version.version, version.created) == (1, False)
    assert weights.read_bytes() == intact


def test_another_seed_rebuilds_from_prepare_on(artifacts: Path) -> None:
    before = fit_runs()
    version = train(artifacts, seed=3)
    assert version.created
    assert fit_runs() == before + 1
    assert reused_stages(artifacts, version.version) == reused_before(PREPARE)


def test_another_recipe_rebuilds_from_train_on(artifacts: Path) -> None:
    version = train(artifacts, learning_rate=1e-3)
    assert version.created
    assert reused_stages(artifacts, version.version) == reused_before(TRAIN)


def test_publishes_the_run_its_child_and_its_artifacts(artifacts: Path) -> None:
    run_id = ModelStore.of(artifacts, "fashion-mnist").version(1).manifest.flow_run_id
    with get_client(sync_client=True) as client:
        run = client.read_flow_run(run_id)
        assert run.state is not None
        assert run.state.is_completed()
        tasks = client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run.id])))
        # Training is a flow run of its own.
        assert {*RUN_NAMES} - {task.name for task in tasks} == {TRAIN.name}
        (child,) = {task.state.state_details.child_flow_run_id for task in tasks} - {None}
        per_shard = {f"{stage} {split} {NAME}_{split}.csv.gz" for stage in PER_SHARD for split in SPLITS}
        assert per_shard < {task.name for task in tasks}
        assert len(tasks) == len(RUN_NAMES) + len(per_shard)
        assert (run.name, set(run.tags)) == ("fashion-mnist v0001 seed 0", {"fashion-mnist", "v0001", "promoted"})
        assert client.read_flow_run(child).name == "fashion-mnist fit seed 0"
        artifacts_of_run = [
            artifact for artifact in client.read_artifacts(limit=200) if artifact.flow_run_id in {run.id, child}
        ]
    kinds = {(artifact.key, artifact.type) for artifact in artifacts_of_run if artifact.key}
    # Records of results have no key. The page lists every other artifact.
    page = (PROJECT_ROOT / "docs" / "prefect-ui.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^\| `DATASET-([a-z-]+)` \| (\w+) \|", page, re.MULTILINE))
    assert kinds == {(f"fashion-mnist-{key}", kind) for key, kind in listed}
    link = next(artifact.data for artifact in artifacts_of_run if artifact.key == "fashion-mnist-report")
    assert (artifacts / "models" / "fashion-mnist" / "versions" / "0001" / "report.html").as_uri() in str(link)
    summary = next(str(artifact.data) for artifact in artifacts_of_run if artifact.key == "fashion-mnist-version")
    assert "promoted, current champion" in summary
    assert "| ingest train | computed |" in summary
    for key, columns in (("train-validation", ["result", "of"]), ("verdict", ["result", "rule"])):
        table = next(artifact.data for artifact in artifacts_of_run if artifact.key == f"fashion-mnist-{key}")
        assert list(json.loads(str(table))[0])[:2] == columns
    progress = [artifact.data for artifact in artifacts_of_run if artifact.type == "progress"]
    assert progress == [100.0]
    for artifact in artifacts_of_run:
        if artifact.type == "image":
            encoded = str(artifact.data).removeprefix("data:image/svg+xml;base64,")
            assert base64.b64decode(encoded).startswith(b"<svg ")


@field_fault(
    "input replaced silently",
    "A named data folder is emptied after a training, and the flow runs again",
    "The run fails with what the folder contains, downloads nothing, and the champion stays",
)
@pytest.mark.parametrize("named_by", ["parameter", "variable"])
def test_an_emptied_folder_fails_the_run(
    artifacts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named_by: str
) -> None:
    store = ModelStore.of(artifacts, "fashion-mnist")
    before = store.numbers(), store.aliases.champion()
    monkeypatch.setenv("FASHION_ANN_DATA_DIR", str(tmp_path))
    with pytest.raises(DataContractError, match=f"{tmp_path} contains no CSV of fashion-mnist.* The folder is empty"):
        train_fashion_mnist(data_dir=tmp_path if named_by == "parameter" else None, artifacts_dir=artifacts)
    assert list(tmp_path.iterdir()) == []
    assert (store.numbers(), store.aliases.champion()) == before


def test_rejects_a_wrong_parameter_by_name(server: str, tmp_path: Path) -> None:
    with pytest.raises((ParameterTypeError, ValidationError), match="epoch"):
        train_fashion_mnist(artifacts_dir=tmp_path / "none", training={"epoch": 3})
    with pytest.raises((ParameterTypeError, ValidationError), match="dataset"):
        train_fashion_mnist(artifacts_dir=tmp_path / "none", dataset="mnist")
    assert not (tmp_path / "none").exists()


@pytest.mark.skipif(gpu_driver_present(), reason="needs a machine without a GPU")
def test_a_missing_gpu_fails_the_run(artifacts: Path) -> None:
    before = len(ModelStore.of(artifacts, "fashion-mnist").summaries())
    config = TrainingConfig(epochs=2, batch_size=64, validation_size=100)  # already trained on the CPU
    with pytest.raises(DeviceUnavailable, match="nvidia-smi"):
        train_fashion_mnist(data_dir=SAMPLE, artifacts_dir=artifacts, training=config, device="gpu")
    with pytest.raises(ParameterTypeError, match="device"):
        train_fashion_mnist(data_dir=SAMPLE, artifacts_dir=artifacts, device="tpu")  # type: ignore[arg-type]
    assert len(ModelStore.of(artifacts, "fashion-mnist").summaries()) == before
