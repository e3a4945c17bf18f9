"""The commands for data: `contract`, and `quarantine list` and `export`."""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from cli.arguments import AddParser, add_command, add_data_dir, print_json
from schemas.contract import SPLITS, contract_of
from schemas.errors import CellProblem, FashionAnnError

if TYPE_CHECKING:
    from tasks.data.quarantine import Export, QuarantineFile


def add_data_commands(add_parser: AddParser) -> None:
    """Add `contract` and `quarantine`."""
    add_command(
        add_parser,
        "contract",
        _contract,
        help="print the data contract: required format and checks",
        description="Print the data contract of a dataset, as in docs/contract.md.",
    )
    quarantine = add_parser("quarantine", help="list rejected rows, or export them to correct", allow_abbrev=False)
    actions = quarantine.add_subparsers(dest="action", required=True, metavar="ACTION")
    add_command(
        actions.add_parser,
        "list",
        _list,
        help="list the quarantine files of the artifacts folder",
        description="Print split, number of rows, path, source files and first problem of each quarantine file.",
        dataset=False,
    )
    _add_export(actions.add_parser)


def _contract(options: argparse.Namespace) -> None:
    from cli.contract_page import contract_json, contract_text

    contract = contract_of(options.dataset)
    if options.json:
        print_json(contract_json(contract))
    else:
        print(contract_text(contract).rstrip())


def _list(options: argparse.Namespace) -> None:
    from schemas.config import artifacts_folder
    from tasks.data.quarantine import list_quarantine

    artifacts_dir = artifacts_folder(options.artifacts_dir)
    files = list_quarantine(artifacts_dir)
    if options.json:
        print_json([_as_json(file) for file in files])
        return
    for file in files:
        print(f"{file.split}: {_rows(file.rows)} in {file.path}")
        print(f"  source files: {', '.join(file.headers)}")
        first = file.first
        received = repr(first["value"][:40])
        print(
            f"  first: {CellProblem(first['line'], first['column'], received, first['reason'], first['source_file'])}"
        )
    if not files:
        print(f"No quarantine files in {artifacts_dir}.")


def _as_json(file: "QuarantineFile") -> dict[str, object]:
    problem = {key: file.first[key] for key in ("source_file", "line", "column", "value", "reason")}
    place = {"split": file.split, "path": str(file.path), "rows": file.rows}
    return {**place, "source_files": list(file.headers), "first_problem": problem}


def _add_export(add_parser: AddParser) -> None:
    parser = add_command(
        add_parser,
        "export",
        _export,
        help="write the rejected rows back to the data folder as CSV shards to correct",
        description="Write the rejected rows of each source file to SOURCE-corrected.csv in the data folder, with its "
        "header and without blank lines. A split's only CSV is renamed to the shard SPLIT-all.csv. Existing shards are "
        "left unchanged, so a second export adds no row twice.",
        when_stopped="Each written shard is complete. Run it again to write the rest.",
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "file",
        metavar="FILE",
        nargs="?",
        help="a quarantine file (default: those of the CSVs that are in the data folder now)",
    )
    which.add_argument("--split", choices=SPLITS, help="export one split (default: both)")
    add_data_dir(parser, "folder of the CSVs")


def _export(options: argparse.Namespace) -> None:
    from schemas.config import artifacts_folder, data_folder
    from tasks.data.data_folder import present_csvs
    from tasks.data.quarantine import export_rejected, find_quarantine, read_quarantine

    contract = contract_of(options.dataset)
    artifacts_dir, data_dir = artifacts_folder(options.artifacts_dir), data_folder(options.data_dir)
    csvs = present_csvs(contract, data_dir)
    if options.file is not None:
        paths = [Path(options.file)]
    else:
        splits = [split for split in csvs if options.split in (None, split)]
        candidates = [find_quarantine(artifacts_dir, split, csvs[split]) for split in splits]
        paths = [path for path in candidates if path is not None]
    files = [read_quarantine(path) for path in paths]
    exports = [export_rejected(file, contract, csvs.get(file.split, ())) for file in files]
    if not any(export.shards for export in exports):
        reason = (
            "the rejected rows are blank lines" if exports else f"no rows of the CSVs in {data_dir} are quarantined"
        )
        raise FashionAnnError(
            f"Nothing to export: {reason}. `fashion-ann train` quarantines rejected rows, `fashion-ann quarantine "
            "list` lists them."
        )
    if options.json:
        print_json([_export_json(export) for export in exports])
        return
    for export in exports:
        _print_export(export)
    print("Correct the rows, then run `fashion-ann train` with the same --bad-rows.")


def _export_json(export: "Export") -> dict[str, object]:
    return {
        "split": export.quarantine.split,
        "quarantine": str(export.quarantine.path),
        "renamed": None if export.renamed is None else str(export.renamed),
        "shards": [{**asdict(shard), "path": str(shard.path)} for shard in export.shards],
    }


def _print_export(export: "Export") -> None:
    print(f"{export.quarantine.split}: rejected rows of {export.quarantine.path}")
    if export.renamed is not None:
        print(f"  renamed the CSV to {export.renamed.name}, because a split is either one file or shards")
    for shard in export.shards:
        rows = f"{_rows(shard.rows)} of {shard.source_file}"
        if shard.written:
            print(f"  wrote {rows} to {shard.path}")
        else:
            print(f"  {shard.path} exists and was left unchanged: correct {rows} there")


def _rows(count: int) -> str:
    return f"{count:,} {'row' if count == 1 else 'rows'}"
