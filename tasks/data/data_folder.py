"""Find the CSVs and shards in the data folder, with their digests."""

import json
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from schemas.contract import SPLITS, DatasetContract, Split
from schemas.errors import DataContractError, UnreadableData
from schemas.references import CsvFile, CsvSplit
from tasks.runtime.files import sha256_file

logger = logging.getLogger(__name__)


def present_csvs(contract: DatasetContract, data_dir: Path) -> dict[Split, tuple[Path, ...]]:
    """The CSV of each split that is there, or its shards in the order of their names, each of them packed or not.

    Names decide; nothing is opened.
    """
    present: dict[Split, tuple[Path, ...]] = {}
    names = {path.name for path in data_dir.iterdir()} if data_dir.is_dir() else set()
    for split in SPLITS:
        whole = contract.csv_name(split)
        shard = re.compile(rf"{re.escape(whole.removesuffix('.csv'))}-.*\.csv", re.DOTALL)
        # By the name of the CSV: sorted, and packed beside plain.
        found: dict[str, list[Path]] = {}
        for name in sorted(names):
            plain = name.removesuffix(".gz")
            if plain == whole or shard.fullmatch(plain):
                _require_printable_name(data_dir, name)
                found.setdefault(plain, []).append(data_dir / name)
        for paths in found.values():
            _require_one_file(data_dir, paths)
        if whole in found and len(found) > 1:
            first = next(paths[0] for plain, paths in found.items() if plain != whole)
            raise DataContractError(
                f"{data_dir} holds {found[whole][0].name} and shards of it, {first.name} the first of "
                f"{len(found) - 1}. Expected one or the other, because rows may stand in both: remove what is not "
                f"meant, or give {found[whole][0].name} the name of a shard, too."
            )
        if found:
            present[split] = tuple(path for _, (path,) in sorted(found.items()))
    return present


def _require_printable_name(data_dir: Path, name: str) -> None:
    """The name of a shard stands in manifests, quarantine and messages."""
    if not name.isprintable():
        raise DataContractError(
            f"{data_dir} holds a shard of the name {name!a}: expected a name of characters that can be printed, in "
            "UTF-8. Rename the file, and run again."
        )


def _require_one_file(data_dir: Path, paths: Sequence[Path]) -> None:
    """``paths``: a CSV, its packed form, or both of them."""
    for path in paths:
        if not path.is_file():
            received = "a folder" if path.is_dir() else "a link to nothing, a pipe or a device"
            raise DataContractError(
                f"{path} is not a file. Expected a CSV, received {received}. Take it away, or put a CSV there."
            )
    if len(paths) > 1:
        raise DataContractError(
            f"{data_dir} holds both {paths[0].name} and {paths[1].name}. Expected one of them, because they may "
            "differ: remove the one that is not meant."
        )


def csv_references(
    contract: DatasetContract, data_dir: Path, present: Mapping[Split, Sequence[Path]]
) -> dict[Split, CsvSplit]:
    found = {split: csv_split(split, paths, "supplied") for split, paths in present.items()}
    # The record after the files: it is written before they get their names.
    ours = read_record(contract, data_dir)
    for split, csv in found.items():
        if ours.get(split) == csv.sha256:
            found[split] = csv.model_copy(update={"origin": "fetched"})
        for file in csv.files:
            logger.info("%s: found, %s", file.path, found[split].origin)
    if len({csv.origin for csv in found.values()}) > 1:
        logger.warning("%s mixes a fetched split with a supplied one: are they of one dataset?", data_dir)
    return found


def csv_split(split: Split, paths: Sequence[Path], origin: Literal["supplied", "fetched"]) -> CsvSplit:
    return CsvSplit(split=split, files=tuple(_hashed(path) for path in paths), origin=origin)


def _hashed(path: Path) -> CsvFile:
    try:
        return CsvFile(path=path, sha256=sha256_file(path))
    except OSError as error:
        raise UnreadableData(path, error) from error


def record_path(contract: DatasetContract, data_dir: Path) -> Path:
    return data_dir / f"{contract.name}.source.json"


def read_record(contract: DatasetContract, data_dir: Path) -> dict[str, str]:
    """Digest of each CSV that was fetched here, by split. A record that cannot be read says nothing."""
    path = record_path(contract, data_dir)
    try:
        files = json.loads(path.read_bytes())["files"]
        return {split: str(entry["sha256"]) for split, entry in files.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        logger.warning("%s cannot be read (%s) and is ignored: the CSVs beside it count as supplied", path, error)
        return {}
