"""The tasks per shard on a local Dask cluster, with a real Prefect server."""

from collections import Counter
from pathlib import Path
from typing import get_args
from uuid import UUID

import psutil
import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId, LogFilter, LogFilterFlowRunId
from prefect.client.schemas.sorting import FlowRunSort

from flows.predict_fashion_mnist import predict_fashion_mnist
from flows.train_fashion_mnist import train_fashion_mnist
from schemas.config import PromotionConfig, Runner, TrainingConfig
from schemas.contract import SPLITS
from schemas.errors import DataContractError
from schemas.references import ModelVersion, Predictions
from tasks.registry.store import ModelStore
from tests.sample import shards_of


def train(data: Path, artifacts: Path, runner: Runner) -> ModelVersion:
    version = train_fashion_mnist(
        data_dir=data,
        artifacts_dir=artifacts,
        training=TrainingConfig(epochs=1, batch_size=64, validation_size=100),
        promotion=PromotionConfig(minimum_accuracy=0, minimum_recall=0),
        runner=runner,
    )
    assert isinstance(version, ModelVersion)
    return version


def workers() -> list[psutil.Process]:
    """Return the processes of a local cluster."""
    children = psutil.Process().children(recursive=True)
    return [child for child in children if "multiprocessing.spawn" in " ".join(child.cmdline())]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for split in SPLITS:
        shards_of(tmp_path / "data", split, 3)
    return tmp_path / "data"


def test_dask_gives_the_version_of_threads(server: str, in_this_process: None, data: Path, tmp_path: Path) -> None:
    made = {runner: train(data, tmp_path / runner, runner) for runner in ("dask", "threads")}
    facts = {
        runner: ModelStore.of(tmp_path / runner, "fashion-mnist").version(version.version).manifest
        for runner, version in made.items()
    }
    assert facts["dask"].made_from == facts["threads"].made_from
    assert facts["dask"].files["model.weights.h5"] == facts["threads"].files["model.weights.h5"]
    assert workers() == []
    run = UUID(facts["dask"].flow_run_id)
    with get_client(sync_client=True) as client:
        tasks = client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run])))
        logs = client.read_logs(LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run])))
    assert Counter(task.state_name for task in tasks) == {"Completed": len(tasks)}
    assert "scan test fashion-mnist_test-002.csv" in {task.name for task in tasks}
    # Each worker's lines arrive, once.
    lines = [log.message for log in logs if log.message.endswith("rows to Parquet")]
    assert len(lines) == len(set(lines)) == 6


def test_a_corrected_shard_has_the_only_task_runs_of_shards(
    server: str, in_this_process: None, data: Path, tmp_path: Path
) -> None:
    train(data, tmp_path / "artifacts", "threads")
    second = data / "fashion-mnist_train-001.csv"
    content = second.read_bytes()
    second.write_bytes(content + content.splitlines(keepends=True)[-1])
    again = train(data, tmp_path / "artifacts", "threads")
    manifest = ModelStore.of(tmp_path / "artifacts", "fashion-mnist").version(again.version).manifest
    with get_client(sync_client=True) as client:
        run = FlowRunFilterId(any_=[UUID(manifest.flow_run_id)])
        tasks = client.read_task_runs(flow_run_filter=FlowRunFilter(id=run))
    per_shard = [task.name for task in tasks if task.name.endswith(".csv")]
    assert sorted(per_shard) == [f"{stage} train {second.name}" for stage in ("ingest", "prepare", "scan")]


def test_a_rejected_shard_is_named_and_leaves_no_run_and_no_process(
    server: str, in_this_process: None, data: Path, tmp_path: Path
) -> None:
    second = data / "fashion-mnist_train-001.csv"
    second.write_bytes(b"PK\x03\x04")
    with pytest.raises(DataContractError, match=r"fashion-mnist_train-001\.csv"):
        train(data, tmp_path / "artifacts", "dask")
    assert workers() == []
    with get_client(sync_client=True) as client:
        (run,) = client.read_flow_runs(limit=1, sort=FlowRunSort.START_TIME_DESC)
        tasks = client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run.id])))
        assert {task.state_name for task in tasks} == {"Completed", "Failed"}


def test_dask_gives_the_predictions_of_threads(server: str, two_versions: Path, tmp_path: Path) -> None:
    shards_of(tmp_path / "images", "test", 3)
    made: dict[Runner, Predictions] = {
        runner: predict_fashion_mnist(
            [tmp_path / "images"], tmp_path / runner, artifacts_dir=two_versions, runner=runner
        )
        for runner in get_args(Runner)
    }
    assert made["dask"].sha256 == made["threads"].sha256
    assert workers() == []
    with get_client(sync_client=True) as client:
        for run in client.read_flow_runs(limit=2, sort=FlowRunSort.START_TIME_DESC):
            tasks = client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run.id])))
            assert {task.state_name for task in tasks} == {"Completed"}
            assert {task.name for task in tasks} == {f"predict fashion-mnist_test-00{place}.csv" for place in range(3)}
