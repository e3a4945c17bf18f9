"""export-model: write a stored version for another runtime, with proof that it predicts the same."""

from pathlib import Path

from prefect import flow

from flows.states import ON_KILLED, ON_RUNNING
from schemas.config import absolute, expanded, separate_folders
from schemas.contract import DatasetName
from schemas.export import ExportedModel, ExportFormat, Quantization
from tasks.export import export
from tasks.registry.alias_log import CHAMPION


@flow(
    name="export-model",
    flow_run_name="{dataset} export {version} as {format}",
    on_running=ON_RUNNING,
    on_crashed=ON_KILLED,
    on_cancellation=ON_KILLED,
)
def export_model(
    output: Path,
    format: ExportFormat = "savedmodel",
    version: int | str = CHAMPION,
    quantize: Quantization | None = None,
    dataset: DatasetName = "fashion-mnist",
    artifacts_dir: Path | None = None,
) -> ExportedModel:
    """Export a version, as `fashion-ann export` does.

    output: folder on the worker's machine. format: all but savedmodel and keras need the extra export.
    version: a number or an alias. quantize: onnx and litert only.
    artifacts_dir: defaults to that of train-fashion-mnist.
    """
    artifacts, _ = separate_folders(artifacts_dir)
    return export(dataset, str(version), format, absolute(expanded(output)), artifacts, quantize)
