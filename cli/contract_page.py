"""The data contracts as text: the output of `fashion-ann contract`, and docs/contract.md.

`python -m cli.contract_page > docs/contract.md` writes that page.
"""

import sys
from dataclasses import asdict
from typing import Any

from schemas.config import PROJECT_ROOT
from schemas.contract import CONTRACTS, SAMPLE_ROWS, SPLITS, Check, DatasetContract

PAGE = PROJECT_ROOT / "docs" / "contract.md"

_HEAD = f"""# The data contracts

Generated from schemas/contract.py by `python -m cli.contract_page > docs/contract.md`. `fashion-ann contract`
prints the contract of one dataset, and with `--json` as JSON.

A CSV has a header, then one row per image: its label and its pixels, row by row from the top left. The ingest stage
checks format and value ranges of every cell. The validate stage runs the checks in the table with Great Expectations.

A value beyond the bound "warns" logs a warning, a value beyond the bound "fails" rejects the split. The image checks
(polarity to label_agreement) and drift use a random sample of {SAMPLE_ROWS} images from a larger split. All other
checks use every image.
"""


def page() -> str:
    """Return the text of docs/contract.md: every contract."""
    return "\n".join([_HEAD, *(contract_text(contract) for contract in CONTRACTS.values())])


def contract_text(contract: DatasetContract) -> str:
    """Return one contract as Markdown that is readable in a terminal."""
    lines = [
        f"## {contract.name}",
        "",
        f"- files: {' and '.join(contract.csv_name(split) for split in SPLITS)}, or .csv.gz",
        f"- images: {contract.height} x {contract.width} pixels, integers {contract.pixel_min}..{contract.pixel_max}; "
        f"{contract.pixel_min} is background",
        f"- columns: {contract.columns[0]}, {contract.columns[1]} .. {contract.columns[-1]}",
        f"- labels: integers 0..{contract.classes - 1}: "
        + ", ".join(f"{label} {name}" for label, name in enumerate(contract.class_names)),
        f"- rows: {_rows(contract)}; every class occurs, with at most {contract.maximum_class_share:.0%} of the rows",
        f"- near duplicates: root mean square difference of about 100 pixels is at most {contract.near_duplicate:.0%} "
        "of the pixel range",
        *(f"- published {split} split: {contract.published[split].rows} rows, sha256 of the rows regardless of order "
          f"{contract.published[split].rows_sha256}" for split in SPLITS),
        *_sources(contract),
        "",
        "| check | value | warns | fails | basis of the bounds |",
        "|---|---|---|---|---|",
        *(
            f"| {check.name} | {check.says} | {_bound(check, check.warn)} | {_bound(check, check.fail)} | "
            f"{check.found} |"
            for check in contract.checks
        ),
        "",
    ]  # fmt: skip
    return "\n".join(lines)


def contract_json(contract: DatasetContract) -> dict[str, Any]:
    """Return one contract as JSON."""
    return {
        **{
            name: getattr(contract, name)
            for name in ("name", "height", "width", "pixel_min", "pixel_max", "near_duplicate")
        },
        "files": {split: contract.csv_name(split) for split in SPLITS},
        "label_range": list(contract.bounds(contract.label_column)),
        "columns": list(contract.columns),
        "class_names": list(contract.class_names),
        "minimum_rows": dict(contract.minimum_rows),
        "maximum_class_share": contract.maximum_class_share,
        "published": {split: asdict(published) for split, published in contract.published.items()},
        "checks": [asdict(check) for check in contract.checks],
    }


def _rows(contract: DatasetContract) -> str:
    return ", ".join(f"at least {contract.minimum_rows[split]} in {split}" for split in SPLITS)


def _bound(check: Check, bound: float | None) -> str:
    return "" if bound is None else f"{'below' if check.low_is_bad else 'above'} {bound:g}"


def _sources(contract: DatasetContract) -> list[str]:
    lines = []
    for split in SPLITS:
        for file in (contract.published[split].images, contract.published[split].labels):
            if file is not None:
                lines.append(f"- {file.name}: sha256 of the unpacked content {file.content_sha256}")
    if contract.bundled is not None:
        bundled = contract.bundled
        lines.append(
            f"- source: scikit-learn's {bundled.loader}; the test split is a stratified sample of "
            f"{bundled.test_rows} images, drawn with seed {bundled.seed}"
        )
    return lines


if __name__ == "__main__":
    sys.stdout.write(page())
