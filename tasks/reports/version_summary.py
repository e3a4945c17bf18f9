"""The Markdown summary of a version that a run publishes."""

from collections.abc import Mapping, Sequence
from typing import Any

from schemas.layout import REPORT_NAME
from schemas.store import shown_outcome
from tasks.registry.store import StoredVersion
from tasks.reports.version_report import commands
from tasks.runtime.stages import run_name


def summarize_version(
    version: StoredVersion, stages: Sequence[Mapping[str, Any]] | None = None, *, champion: bool
) -> str:
    """Return half a page of Markdown. champion: it is the champion now.

    stages: the lineage of this run if an earlier run created the version, else None.
    """
    manifest = version.manifest
    title, reason = f"Version {version.number}: {shown_outcome(manifest.verdict.outcome)}", manifest.verdict.reason
    if stages is not None:
        title = f"Nothing new: version {version.number}"
        reason = f"An earlier run created it from the same inputs, {manifest.created}. Its verdict: {reason}"
    rows = ", ".join(f"{manifest.data.split_rows[split]:,}" for split in ("train", "validation", "test"))
    lines = [
        f"# {title}{', current champion' if champion else ''}",
        "",
        reason,
        "",
        "| metric | value |",
        "|---|---|",
        f"| test accuracy | {manifest.test_accuracy:.4f} |",
        f"| test loss | {manifest.test_loss:.4f} |",
        f"| train, validation, test rows | {rows} |",
        f"| seed | {manifest.seed} |",
        f"| epochs | {manifest.epochs_run}, {manifest.training_seconds:.1f} s on {manifest.device.name} |",
        "",
        "| stage of this run | result | seconds to compute |",
        "|---|---|---|",
        *(
            f"| {run_name(entry['stage'], entry['split'])} "
            f"| {'cached' if entry['reused'] else 'computed'} | {entry['seconds']:.2f} |"
            for entry in ([entry.as_json() for entry in manifest.lineage] if stages is None else stages)
        ),
        "",
        f"Report: `{version.folder / REPORT_NAME}` (`{commands(manifest.as_json())['report']}`)",
    ]
    return "\n".join(lines) + "\n"
