"""The commands for data: `contract`, `dataset init`, `list`, `show` and `profile`, `quarantine list` and `export`."""

import argparse
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from cli.arguments import Argument, Commands, data_dir, dataset_argument, path_argument, print_result
from cli.contract_page import contract_json, contract_text
from schemas.config import artifacts_folder, as_address, data_folder, expanded
from schemas.contract import SPLITS, contract_of, dataset_paths
from schemas.errors import FashionAnnError, StoredArtifactError, WrongUsage

if TYPE_CHECKING:
    from tasks.data.quarantine import Export, QuarantineFile

commands = Commands()

GROUP_HELP = {
    "dataset": "make a dataset of your own from CSVs, list and show datasets",
    "quarantine": "list rejected rows, or export them to correct",
}
_NAME = Argument("name", metavar="NAME", type=dataset_argument, help="name of a dataset")


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
    "dataset init",
    Argument("name", metavar="NAME", help="name of the new dataset: a-z, 0-9 and dashes"),
    Argument(
        "--from",
        dest="folder",
        type=path_argument,
        metavar="DIR",
        required=True,
        help="folder with the CSVs; their names contain train and test",
    ),
    Argument(
        "--like",
        type=dataset_argument,
        metavar="DATASET",
        help="copy bounds and minimum rows of this dataset",
    ),
    Argument("--transpose", action="store_true", help="the CSVs have the pixels column by column, as those of EMNIST"),
    Argument(
        "--holdout",
        type=float,
        metavar="X",
        help="take about this share of the train rows as the test split, such as 0.1 (default: off)",
    ),
    help="write a dataset file and its baseline profile, inferred from CSVs",
    description="Write NAME.toml and the baseline profile NAME.json to $FASHION_ANN_DATASETS_DIR, else to datasets/ of "
    "the checkout. Columns, labels, shape, pixel range, background and bounds are inferred from the CSVs. Checks that "
    "the train split itself would fail are turned off. Print what to check in the file.",
    dataset=False,
    writes=False,
    when_stopped="No dataset was written.",
)
def _init(options: argparse.Namespace) -> None:
    from tasks.checks.new_dataset import init_dataset

    new = init_dataset(
        options.name,
        Path(options.folder),
        like=options.like,
        transpose=options.transpose,
        holdout=options.holdout,
    )
    path, folder = new.contract.path, shlex.quote(options.folder)
    result = {"dataset": options.name, "path": path, "profile": new.contract.reference, "notes": new.notes}
    written = f"wrote {path} and {path.with_suffix('.json').name}. Look at:"
    next_step = f"then run `fashion-ann train --dataset {options.name} --data-dir {folder}`"
    print_result(options, result, [written, *(f"- {note}" for note in new.notes), *new.picture, next_step])


@commands.add(
    "dataset list",
    help="list all datasets",
    description="Print name, shape, number of classes and file of each dataset. Report files that cannot be used at "
    "the end, as an error.",
    dataset=False,
    writes=False,
)
def _list_datasets(options: argparse.Namespace) -> None:
    contracts, faults = [], []
    for name in sorted(dataset_paths()):
        try:
            contracts.append(contract_of(name))
        except WrongUsage as error:
            faults.append(str(error))
    result = [
        {"name": contract.name, "height": contract.height, "width": contract.width, "classes": contract.classes}
        | {"path": contract.path, "reference": contract.reference}
        for contract in contracts
    ]
    lines = [
        f"{contract.name}: {contract.height} x {contract.width}, {contract.classes} classes, {contract.path}"
        for contract in contracts
    ]
    print_result(options, result, lines)
    if faults:
        raise WrongUsage(" ".join(faults))


@commands.add(
    "dataset show",
    _NAME,
    help="print the contract of a dataset, and its file",
    description="Print the contract with every default, as `contract` does, and path and digest of the dataset file.",
    dataset=False,
    writes=False,
)
def _show(options: argparse.Namespace) -> None:
    contract = contract_of(options.name)
    lines = [*contract_text(contract).rstrip().splitlines(), "", f"file {contract.path}, digest {contract.digest}"]
    print_result(options, contract_json(contract), lines)


@commands.add(
    "dataset profile",
    _NAME,
    data_dir("folder of the CSVs"),
    help="write the baseline profile of a dataset again, from the train split in the data folder",
    description="Write NAME.json beside the dataset file: the profile that images and labels are compared with. For "
    "published data it is made from the published train split only.",
    dataset=False,
    writes=False,
    when_stopped="The profile was not changed.",
)
def _profile(options: argparse.Namespace) -> None:
    from tasks.checks.new_dataset import make_profile

    contract = contract_of(options.name)
    target = contract.path.with_suffix(".json")
    make_profile(contract, data_folder(options.data_dir), target)
    print_result(options, {"dataset": options.name, "profile": target}, [f"wrote {target}"])


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
    if as_address(folder) is not None:
        raise WrongUsage(
            f"--data-dir {as_address(folder)}: expected a folder, because the shards are written there. Copy the CSVs "
            "into one, and name it."
        )
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
