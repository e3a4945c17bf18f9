"""The Markdown summary of a version that a run publishes."""

from schemas.layout import REPORT_NAME
from tasks.registry.store import StoredVersion
from tasks.reports.version_report import commands


def summarize_version(version: StoredVersion, *, champion: bool, created: bool) -> str:
    """Return half a page of Markdown. champion: it is the champion now. created: by this run."""
    manifest = version.manifest
    note = "" if created else " An earlier run created it from the same inputs."
    rows = ", ".join(f"{manifest.data.split_rows[split]:,}" for split in ("train", "validation", "test"))
    lines = [
        f"# Version {version.number}: {manifest.verdict.outcome}{', current champion' if champion else ''}",
        "",
        f"{manifest.verdict.reason}{note}",
        "",
        "| metric | value |",
        "|---|---|",
        f"| test accuracy | {manifest.test_accuracy:.4f} |",
        f"| test loss | {manifest.test_loss:.4f} |",
        f"| train, validation, test rows | {rows} |",
        f"| seed | {manifest.seed} |",
        f"| epochs | {manifest.epochs_run}, {manifest.training_seconds:.1f} s on {manifest.device.name} |",
        "",
        "| stage | result | seconds |",
        "|---|---|---|",
        *(
            f"| {entry.stage} {entry.split or ''} | {'cached' if entry.reused else 'computed'} | {entry.seconds:.2f} |"
            for entry in manifest.lineage
        ),
        "",
        f"Report: `{version.folder / REPORT_NAME}` (`{commands(manifest.as_json())['report']}`)",
    ]
    return "\n".join(lines) + "\n"
