"""Format data contracts as Markdown or JSON, for `fashion-ann contract` and docs/contract.md.

`python -m cli.contract_page > docs/contract.md` writes that page.
"""

import sys
from dataclasses import asdict
from typing import Any

from schemas.config import PROJECT_ROOT
from schemas.contract import CONTRACTS, SAMPLE_ROWS, SPLITS, Check, DatasetContract

PAGE = PROJECT_ROOT / "docs" / "contract.md"

_HEAD = f"""# The data contracts

Generated from schemas/contract.py by `python -m cli.contract_page > docs/contract.md`. `fashion-ann contract` prints
the contract of one dataset (`--dataset`), with `--json` for programs.

A CSV has a header, then one row per image: its label and its pixels from the top left, row by row. The ingest stage
checks the format and the range of every cell. The validate stage checks everything below with Great Expectations.
Checks of images and labels (polarity to faulty_chunks) and drift use at most {SAMPLE_ROWS} images of a split, drawn at
random; the other checks use all images.
"""


def page() -> str:
    """Return docs/contract.md: every contract."""
    return "\n".join([_HEAD, *(contract_text(contract) for contract in CONTRACTS.values())])


def contract_text(contract: DatasetContract) -> str:
    """Return one contract as Markdown that is readable in a terminal."""
    labels = ", ".join(f"{label} {name}" for label, name in enumerate(contract.class_names))
    lines = [
        f"## {contract.name}",
        "",
        f"- files: {' and '.join(contract.csv_name(split) for split in SPLITS)}, or .csv.gz",
        f"- images: {contract.height} x {contract.width} pixels, integers {contract.pixel_min}..{contract.pixel_max}; "
        f"{contract.pixel_min} is background",
        f"- columns: {contract.columns[0]}, {contract.columns[1]} .. {contract.columns[-1]}",
        f"- labels: integers 0..{contract.classes - 1}: {labels}",
        f"- rows: {_rows(contract)}; every class occurs, none in more than {contract.maximum_class_share:.0%} of them",
        f"- near duplicates: images that differ by at most {contract.near_duplicate:.0%} of the pixel range (root mean "
        "square over about 100 pixels)",
        *(f"- published {split} split: {contract.published[split].rows} rows, sha256 of the rows in any order "
          f"{contract.published[split].rows_sha256}" for split in SPLITS),
        *_sources(contract),
        "",
        "| check | measures | warns | fails | evidence for the bounds |",
        "|---|---|---|---|---|",
        *(
            f"| {check.name} | {check.description} | {_bound(check, check.warn)} | {_bound(check, check.fail)} | "
            f"{check.evidence} |"
            for check in contract.checks
        ),
        "",
    ]  # fmt: skip
    return "\n".join(lines)


def contract_json(contract: DatasetContract) -> dict[str, Any]:
    """Return one contract as JSON."""
    names = ("name", "height", "width", "pixel_min", "pixel_max", "near_duplicate")
    return {
        **{name: getattr(contract, name) for name in names},
        "files": {split: contract.csv_name(split) for split in SPLITS},
        "label_range": list(contract.bounds(contract.label_column)),
        "columns": list(contract.columns),
        "class_names": list(contract.class_names),
        "minimum_rows": dict(contract.minimum_rows),
        "maximum_class_share": contract.maximum_class_share,
        "published": {split: asdict(published) for split, published in contract.published.items()},
        "checks": [_check_json(check) for check in contract.checks],
    }


def _check_json(check: Check) -> dict[str, Any]:
    bounds = {name: getattr(check, name) for name in ("warn", "fail", "low_is_bad")}
    return {"name": check.name, "says": check.description, "found": check.evidence, **bounds}


def _rows(contract: DatasetContract) -> str:
    return ", ".join(f"{split} at least {contract.minimum_rows[split]}" for split in SPLITS)


def _bound(check: Check, bound: float | None) -> str:
    return "" if bound is None else f"{'below' if check.low_is_bad else 'above'} {bound:g}"


def _sources(contract: DatasetContract) -> list[str]:
    files = [file for split in SPLITS for file in (contract.published[split].images, contract.published[split].labels)]
    lines = [f"- {file.name}: sha256 of its content {file.content_sha256}" for file in files if file is not None]
    if contract.bundled is not None:
        bundled = contract.bundled
        lines.append(
            f"- source: scikit-learn's {bundled.loader}; the test split is {bundled.test_rows} images drawn with seed "
            f"{bundled.seed}, with the same share of every class"
        )
    return lines


if __name__ == "__main__":
    sys.stdout.write(page())
