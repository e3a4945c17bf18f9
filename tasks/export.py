"""Export a stored version for another runtime."""

from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE

from schemas.export import ExportedModel, ExportFormat, Quantization
from tasks.registry.export import export_version
from tasks.registry.store import ModelStore
from tasks.runtime.prefect_artifacts import publish_table


@task(name="export", task_run_name="export {version} as {export_format}", cache_policy=NO_CACHE)
def export(
    dataset: str,
    version: str,
    export_format: ExportFormat,
    output: Path,
    artifacts_dir: Path,
    quantize: Quantization | None = None,
) -> ExportedModel:
    """Run `tasks.registry.export.export_version`, and return a reference to its output."""
    stored = ModelStore.of(artifacts_dir, dataset).refresh().version(version)
    exported = export_version(stored, export_format, output, artifacts_dir, quantize)
    record = exported.record
    facts = {**record.model_dump(include={"rows", "largest_difference", "changed_classes"}), **record.runtime}
    publish_table(
        f"{dataset}-export",
        [{"what": name, "value": str(value)} for name, value in facts.items()],
        f"Version {record.version} as {export_format}, at {exported.path}",
    )
    return exported
