"""A contract as text for people: what `fashion-ann contract` prints, and docs/contract.md.

`python -m cli.contract_page > docs/contract.md` makes that page.
"""

import sys
from dataclasses import asdict
from typing import Any

from schemas.config import PROJECT_ROOT
from schemas.contract import CONTRACTS, SAMPLE_ROWS, SPLITS, Check, DatasetContract

PAGE = PROJECT_ROOT / "docs" / "contract.md"

_HEAD = f"""# The data contracts

Made from schemas/contract.py by `python -m cli.contract_page > docs/contract.md`. `fashion-ann contract` prints one
of them, of the dataset that `--dataset` names, and with `--json` for programs. A CSV keeps a header, then a row an
image: its label, and its pixels from the top left, row by row. ingest checks form and ranges, cell by cell; validate
has Great Expectations judge all of it. Figures about how images look (from polarity to label_agreement) and drift are
taken of {SAMPLE_ROWS} images drawn at random from a split that has more; the others of all of them.
"""


def page() -> str:
    """docs/contract.md: every contract."""
    return "\n".join([_HEAD, *(contract_text(contract) for contract in CONTRACTS.values())])


def contract_text(contract: DatasetContract) -> str:
    """One contract, as Markdown that reads well in a terminal."""
    lines = [
        f"## {contract.name}",
        "",
        f"- files: {' and '.join(contract.csv_name(split) for split in SPLITS)}, or .csv.gz",
        f"- images: {contract.height} x {contract.width} pixels, integers {contract.pixel_min}..{contract.pixel_max}; "
        f"{contract.pixel_min} is background",
        f"- columns: {contract.columns[0]}, {contract.columns[1]} .. {contract.columns[-1]}",
        f"- labels: integers 0..{contract.classes - 1}: "
        + ", ".join(f"{label} {name}" for label, name in enumerate(contract.class_names)),
        f"- rows: {_rows(contract)}; every class is there, none with more than {contract.maximum_class_share:.0%} of "
        "them",
        f"- near duplicates: root mean square difference of about 100 pixels of {contract.near_duplicate:.0%} of their "
        "range",
        *(f"- published {split} split: {contract.published[split].rows} rows, sha256 of the rows in any order "
          f"{contract.published[split].rows_sha256}" for split in SPLITS),
        *_sources(contract),
        "",
        "| check of validate | figure | told | refused | how the bounds were found |",
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
    """One contract, as JSON."""
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
    return ", ".join(f"{split} {contract.minimum_rows[split]} at least" for split in SPLITS)


def _bound(check: Check, bound: float | None) -> str:
    return "" if bound is None else f"{'below' if check.low_is_bad else 'above'} {bound:g}"


def _sources(contract: DatasetContract) -> list[str]:
    found = []
    for split in SPLITS:
        for file in (contract.published[split].images, contract.published[split].labels):
            if file is not None:
                found.append(f"- {file.name}: sha256 of its content {file.content_sha256}")
    if contract.bundled is not None:
        bundled = contract.bundled
        found.append(
            f"- source: scikit-learn's {bundled.loader}; the test split is {bundled.test_rows} images drawn with seed "
            f"{bundled.seed}, every class in proportion"
        )
    return found


if __name__ == "__main__":
    sys.stdout.write(page())
