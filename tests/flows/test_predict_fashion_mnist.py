"""The prediction flow on the committed sample, on a real Prefect server."""

import gzip
import json
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterKey,
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterId,
)
from prefect.client.schemas.sorting import ArtifactSort, FlowRunSort
from prefect.exceptions import ParameterTypeError
from pydantic import ValidationError

from flows.predict_fashion_mnist import predict_fashion_mnist
from schemas.errors import DataContractError
from schemas.references import Predictions
from tasks.registry.batch_prediction import predict_csv
from tests.field_faults import field_fault
from tests.flows.conftest import Command
from tests.sample import SAMPLE, shards_of

IMAGES = SAMPLE / "fashion-mnist_test.csv.gz"


@pytest.mark.usefixtures("server")
def test_flow_writes_what_the_core_function_writes(two_versions: Path, tmp_path: Path) -> None:
    result = predict_fashion_mnist(IMAGES, tmp_path / "flow.parquet", artifacts_dir=two_versions)
    assert isinstance(result, Predictions)
    assert (result.version, result.rows, result.output) == (1, 200, tmp_path / "flow.parquet")
    core = predict_csv(IMAGES, tmp_path / "core.parquet", "1", "fashion-mnist", two_versions)
    assert pq.read_table(result.output).equals(pq.read_table(core.output), check_metadata=True)
    assert result.accuracy == core.accuracy


@field_fault("predictions unchecked", "A flow predicts inverted images", "An artifact in Prefect's UI has the checks")
@pytest.mark.usefixtures("server")
def test_warnings_are_an_artifact(two_versions: Path, tmp_path: Path) -> None:
    images = pd.read_csv(IMAGES).drop(columns="label")
    (255 - images).to_csv(tmp_path / "images.csv", index=False)
    result = predict_fashion_mnist(tmp_path / "images.csv", tmp_path / "out.parquet", artifacts_dir=two_versions)
    with get_client(sync_client=True) as client:
        key = ArtifactFilter(key=ArtifactFilterKey(any_=["fashion-mnist-prediction-checks"]))
        artifact = client.read_artifacts(artifact_filter=key, sort=ArtifactSort.CREATED_DESC)[0]
    assert "images.csv: polarity: the images look inverted" in (artifact.description or "")
    shown = [(row["check"], row["figure"], row["result"]) for row in json.loads(artifact.data or "")]
    assert shown == [(check.check, check.figure, check.result) for check in result.checks]
    with pytest.raises(DataContractError, match="the images look inverted"):
        predict_fashion_mnist(
            tmp_path / "images.csv", tmp_path / "strict.parquet", artifacts_dir=two_versions, strict=True
        )
    assert not (tmp_path / "strict.parquet").exists()


@pytest.mark.usefixtures("server")
def test_accepts_parameters_as_a_deployment_sends_them(
    two_versions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASHION_ANN_ARTIFACTS_DIR", str(two_versions))
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "images.csv.gz").symlink_to(IMAGES)
    assert predict_fashion_mnist(images="~/images.csv.gz", output="~/out.csv", version="2").version == 2
    assert (tmp_path / "out.csv").exists()


@pytest.mark.usefixtures("server")
def test_broken_csv_fails_the_run_and_leaves_no_output(two_versions: Path, tmp_path: Path) -> None:
    images = tmp_path / "images.csv"
    images.write_bytes(gzip.decompress(IMAGES.read_bytes()).replace(b",0,", b",256,", 1))
    with pytest.raises(DataContractError, match=r"images\.csv line 2, column pixel\d+: .*received 256"):
        predict_fashion_mnist(images, tmp_path / "out.parquet", artifacts_dir=two_versions)
    assert list(tmp_path.iterdir()) == [images]
    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs(flow_filter=FlowFilter(name=FlowFilterName(any_=["predict-fashion-mnist"])))
    failed = [run for run in runs if run.parameters["images"] == str(images)]
    assert [run.state.is_failed() for run in failed if run.state is not None] == [True]


@pytest.mark.usefixtures("server")
def test_rejects_an_unknown_dataset_by_name(two_versions: Path, tmp_path: Path) -> None:
    with pytest.raises((ParameterTypeError, ValidationError), match="dataset"):
        predict_fashion_mnist(IMAGES, tmp_path / "out.parquet", artifacts_dir=two_versions, dataset="mnist")
    assert list(tmp_path.iterdir()) == []


def test_several_csvs_have_a_task_each_and_one_output(command: Command, two_versions: Path, tmp_path: Path) -> None:
    shards_of(tmp_path / "images", "test", 3)
    flags = ("predict", str(tmp_path / "images"), "--artifacts-dir", str(two_versions), "--output")
    done = command.run(*flags, str(tmp_path / "out"), "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    alone = predict_csv(IMAGES, tmp_path / "alone.parquet", "1", "fashion-mnist", two_versions)
    assert (result["version"], result["rows"], result["output"]) == (1, 200, str(tmp_path / "out"))
    assert result["accuracy"] == pytest.approx(alone.accuracy)
    assert result.keys() - {"files"} == json.loads(alone.model_dump_json()).keys()
    assert [(Path(file["images"]).name, file["rows"]) for file in result["files"]] == [
        (f"fashion-mnist_test-00{place}.csv", rows) for place, rows in enumerate((67, 67, 66))
    ]
    with get_client(sync_client=True) as client:
        (run,) = client.read_flow_runs(limit=1, sort=FlowRunSort.START_TIME_DESC)
        tasks = client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run.id])))
    assert run.name == "fashion-mnist predict images by champion"
    assert {task.name for task in tasks} == {f"predict fashion-mnist_test-00{place}.csv" for place in range(3)}
    (tmp_path / "images" / "fashion-mnist_test-001.csv").write_bytes(b"PK\x03\x04")
    before = sorted(tmp_path.rglob("*.parquet"))
    failed = command.run(*flags, str(tmp_path / "out"))
    assert (failed.returncode, failed.stdout) == (3, "")
    assert "fashion-mnist_test-001.csv" in failed.stderr
    assert sorted(tmp_path.rglob("*.parquet")) == before
