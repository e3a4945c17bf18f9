"""Format data contracts as Markdown or JSON, for `fashion-ann contract` and docs/contract.md.

`python -m cli.contract_page > docs/contract.md` writes that page.
"""

import sys
from dataclasses import asdict
from typing import Any

from schemas.config import PROJECT_ROOT
from schemas.contract import SAMPLE_ROWS, SPLITS, DatasetContract, shipped_contracts

PAGE = PROJECT_ROOT / "docs" / "contract.md"

_HEAD = f"""# The data contracts

Generated from the files in schemas/datasets/ by `python -m cli.contract_page > docs/contract.md`. `fashion-ann
contract` prints the contract of one dataset (`--dataset`), with `--json` for programs.

A CSV has a header, then one row per image: its label and its pixels from the top left, row by row. The ingest stage
checks the format and the range of every cell. The validate stage checks everything below with Great Expectations.
Checks of images and labels (polarity to faulty_chunks) and drift use at most {SAMPLE_ROWS} images of a split, drawn at
random; the other checks use all images. `predict` measures those that need no labels
([data.md](data.md#checks-of-the-images)).
"""


def page() -> str:
    """Return docs/contract.md: the contracts of the project's own datasets."""
    return "\n".join([_HEAD, *map(contract_text, shipped_contracts())])


def contract_text(contract: DatasetContract) -> str:
    """Return one contract as Markdown that is readable in a terminal."""
    labels = ", ".join(f"{label} {contract.labels[label]}" for label in contract.class_labels)
    background = "no background" if contract.background is None else f"{contract.background} is background"
    header = "" if contract.has_header else "without a header: "
    rows = ", ".join(f"{split} at least {contract.minimum_rows[split]}" for split in SPLITS)
    files = [file for split in contract.published.values() for file in (split.images, split.labels) if file is not None]
    lines = [
        f"## {contract.name}",
        "",
        f"- files: {' and '.join(map(contract.csv_name, contract.csv_splits))}, or .csv.gz",
        f"- images: {contract.height} x {contract.width} pixels, integers {contract.pixel_min}..{contract.pixel_max}; "
        f"{background}",
        f"- columns: {header}{contract.columns[0]}, {contract.file_columns[1]} .. {contract.file_columns[-1]}",
        f"- labels: integers {contract.label_ranges}: {labels}",
        f"- rows: {rows}; every class occurs, none in more than {contract.maximum_class_share:.0%} of them",
        f"- promotion: test accuracy at least {contract.promotion.minimum_accuracy:g}, recall of each class at least "
        f"{contract.promotion.minimum_recall:g}",
        f"- near duplicates: images that differ by at most {contract.near_duplicate:.0%} of the pixel range (root mean "
        "square over about 100 pixels)",
        *(f"- published {name} split: {split.rows} rows, sha256 of the rows in any order {split.rows_sha256}"
          for name, split in contract.published.items()),
        *(f"- {file.name}: sha256 of its content {file.content_sha256}" for file in files),
    ]  # fmt: skip
    if contract.transpose:
        lines.append("- pixels: column by column in the CSVs; ingest transposes the images")
    if contract.holdout is not None:
        lines.append(f"- test split: about {contract.holdout:.0%} of the rows, chosen by a digest of the image")
    if contract.reference is None:
        lines.append("- baseline profile: none; the checks that need it are skipped")
    if (bundled := contract.sources.bundled) is not None:
        lines.append(
            f"- source: scikit-learn's {bundled.loader}; the test split is {bundled.test_rows} images drawn with seed "
            f"{bundled.seed}, with the same share of every class"
        )
    lines += ["", "| check | measures | warns | fails | evidence for the bounds |", "|---|---|---|---|---|"]
    for check in contract.checks:
        side = "below" if check.low_is_bad else "above"
        off = "off" if check.off else ""
        bounds = (off if bound is None else f"{side} {bound:g}" for bound in (check.warn, check.fail))
        lines.append(f"| {' | '.join((check.name, check.description, *bounds, check.evidence))} |")
    return "\n".join([*lines, ""])


def contract_json(contract: DatasetContract) -> dict[str, Any]:
    """Return one contract as JSON."""
    names = (
        *("name", "height", "width", "pixel_min", "pixel_max", "near_duplicate", "columns", "class_names"),
        *("background", "labels", "label_ranges", "naming", "transpose", "holdout", "kind", "path", "digest"),
        *("reference", "maximum_class_share"),
    )
    return {
        **{name: getattr(contract, name) for name in names},
        "files": {split: contract.csv_name(split) for split in SPLITS},
        "label_range": (contract.class_labels[0], contract.class_labels[-1]),
        "minimum_rows": dict(contract.minimum_rows),
        "promotion": asdict(contract.promotion),
        "published": {split: asdict(published) for split, published in contract.published.items()},
        "checks": [
            {"says": check.description, "found": check.evidence}
            | {name: getattr(check, name) for name in ("name", "warn", "fail", "low_is_bad")}
            for check in contract.checks
        ],
    }


if __name__ == "__main__":
    sys.stdout.write(page())
