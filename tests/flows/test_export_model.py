"""The export flow on the committed sample, on a real Prefect server."""

from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey

from flows.export_model import export_model
from schemas.export import ExportedModel


@pytest.mark.usefixtures("server", "in_this_process")
def test_flow_exports_and_publishes_what_was_measured(
    sample_version: Path, sample_artifacts: Path, tmp_path: Path
) -> None:
    artifacts = tmp_path / "artifacts"
    artifacts.mkdir()
    (artifacts / "models").symlink_to(sample_version.parents[2])
    (artifacts / "prepared").symlink_to(sample_artifacts / "prepared")
    result = export_model(tmp_path / "exports", "onnx", 1, artifacts_dir=artifacts)
    assert isinstance(result, ExportedModel)
    assert (result.created, result.path) == (True, tmp_path / "exports" / "fashion-mnist-onnx" / "1" / "model.onnx")
    with get_client(sync_client=True) as client:
        key = ArtifactFilter(key=ArtifactFilterKey(any_=["fashion-mnist-export"]))
        (artifact,) = client.read_artifacts(artifact_filter=key)
    assert str(result.record.largest_difference) in str(artifact.data)
