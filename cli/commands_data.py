"""The commands for data: `contract`, and `quarantine list` and `export`."""

import argparse
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

from cli.arguments import Argument, Commands, data_dir, path_argument, print_result
from cli.contract_page import contract_json, contract_text
from schemas.config import artifacts_folder, data_folder, expanded
from schemas.contract import SPLITS, contract_of
from schemas.errors import FashionAnnError, StoredArtifactError

if TYPE_CHECKING:
    from tasks.data.quarantine import Export, QuarantineFile

commands = Commands()

GROUP_HELP = {"quarantine": "list rejected rows, or export them to correct"}


@commands.add(
    "contract",
    help="print the data contract: required format and checks",
    description="Print the data contract of a dataset, as in docs/contract.md.",
    writes=False,
)
def _contract(options: argparse.Namespace) -> None:
    contract = contract_of(options.dataset)
    print_result(options, contract_json(contract), contract_text(contract).rstrip().splitlines())


@commands.add(
    "quarantine list",
    help="list the quarantine files of the artifacts folder",
    description="Print split, number of rows, path, source files and first problem of each quarantine file.",
    dataset=False,
    writes=False,
)
def _list(options: argparse.Namespace) -> None:
    from tasks.data.quarantine import list_quarantine

    artifacts_dir = artifacts_folder(options.artifacts_dir)
    files, faults = list_quarantine(artifacts_dir)
    result = [
        {"split": file.split, "path": file.path, "rows": file.rows}
        | {"source_files": list(file.headers), "first_problem": file.first}
        for file in files
    ]
    none = [] if faults else [f"No quarantine files in {artifacts_dir}."]
    print_result(options, result, _list_lines(files) if files else none)
    if faults:
        raise StoredArtifactError("\n".join(faults))


def _list_lines(files: Iterable["QuarantineFile"]) -> Iterator[str]:
    for file in files:
        yield f"{file.split}: {_rows(file.rows)} in {file.path}"
        yield f"  source files: {', '.join(file.headers)}"
        cell = file.first
        place = f"{cell['source_file']} line {cell['line']}, column {cell['column']}"
        yield f"  first: {place}: {cell['reason']}, received {cell['value'][:40]!r}"


@commands.add(
    "quarantine export",
    (
        Argument(
            "file",
            type=path_argument,
            metavar="FILE",
            nargs="?",
            help="a quarantine file (default: those of the CSVs that are in the data folder now)",
        ),
        Argument("--split", choices=SPLITS, help="export one split (default: both)"),
    ),
    data_dir("folder of the CSVs"),
    help="write the rejected rows back to the data folder as CSV shards to correct",
    description="Write the rejected rows of each source file to SOURCE-corrected.csv in the data folder, with its "
    "header and without blank lines. A split's only CSV is renamed to the shard SPLIT-all.csv. Existing shards are "
    "left unchanged, so a second export adds no row twice.",
    when_stopped="Each written shard is complete. Run it again to write the rest.",
)
def _export(options: argparse.Namespace) -> None:
    from tasks.data.data_folder import present_csvs
    from tasks.data.quarantine import export_rejected, find_quarantine, read_quarantine, require_source

    contract = contract_of(options.dataset)
    artifacts_dir, folder = artifacts_folder(options.artifacts_dir), data_folder(options.data_dir)
    csvs = present_csvs(contract, folder)
    if options.file is not None:
        paths = [expanded(options.file)]
    else:
        splits = [split for split in csvs if options.split in (None, split)]
        paths = [path for split in splits if (path := find_quarantine(artifacts_dir, split, csvs[split]))]
    files = [read_quarantine(path) for path in paths]
    if options.file is not None:
        require_source(artifacts_dir, files[0], csvs.get(files[0].split, ()))
    exports = [export_rejected(file, contract, csvs.get(file.split, ())) for file in files]
    if not any(export.shards for export in exports):
        reason = "the rejected rows are blank lines" if exports else f"no rows of the CSVs in {folder} are quarantined"
        raise FashionAnnError(
            f"Nothing to export: {reason}. `fashion-ann train` quarantines rejected rows, `fashion-ann quarantine "
            "list` lists them."
        )
    print_result(
        options, [asdict(export) for export in exports], _export_lines(exports, max(file.rows for file in files))
    )


def _export_lines(exports: Iterable["Export"], bad_rows: int) -> Iterator[str]:
    for export in exports:
        yield f"{export.split}: rejected rows of {export.quarantine}"
        if export.renamed is not None:
            yield f"  renamed the CSV to {export.renamed.name}, because a split is either one file or shards"
        for shard in export.shards:
            rows = f"{_rows(shard.rows)} of {shard.source_file}"
            if shard.written:
                yield f"  wrote {rows} to {shard.path}"
            else:
                yield f"  {shard.path} exists and was left unchanged: correct {rows} there"
    yield (
        f"Correct the rows, then run `fashion-ann train` with --bad-rows {bad_rows} or more: the original CSVs still "
        "have them, and they are quarantined again."
    )


def _rows(count: int) -> str:
    return f"{count:,} {'row' if count == 1 else 'rows'}"
