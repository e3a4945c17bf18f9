"""Find the CSVs and shards in the data folder, and compute their digests."""

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from schemas.contract import SPLITS, DatasetContract, Split
from schemas.errors import DataContractError, UnreadableData
from schemas.references import CsvFile, CsvSplit, sha256sum_digest
from tasks.data.csv_file import file_stamp, is_unchanged
from tasks.runtime.files import sha256_file

logger = logging.getLogger(__name__)


def present_csvs(
    contract: DatasetContract, data_dir: Path, splits: Sequence[Split] = SPLITS
) -> dict[Split, tuple[Path, ...]]:
    """Return the files of each of ``splits`` that is present: one CSV, or its shards in the order of their names.

    Each file may be gzip-compressed. Only names are compared; no file is opened.

    Raises `DataContractError` for unprintable names, for folders, links to nothing and pipes, and if two files could be
    meant.
    """
    present: dict[Split, tuple[Path, ...]] = {}
    paths = sorted(data_dir.iterdir()) if data_dir.is_dir() else []
    for split in splits:
        whole = contract.csv_name(split)
        files: dict[str, Path] = {}  # by name without .gz
        for path in paths:
            if not is_csv_name(contract, split, path.name):
                continue
            plain = path.name.removesuffix(".gz")
            _require_usable(path)
            if plain in files:
                raise DataContractError(
                    f"{data_dir} contains both {plain} and {path.name}. Expected one of them, because they may differ. "
                    "Remove the wrong one."
                )
            files[plain] = path
        if whole in files and len(files) > 1:
            name, (first, *more) = files[whole].name, sorted(files.keys() - {whole})
            shards = f"{len(more) + 1} shards of it ({first}, ...)" if more else f"its shard {first}"
            raise DataContractError(
                f"{data_dir} contains {name} and {shards}. Expected one or the other, because both may contain the "
                f"same rows. Remove one of them, or rename {name} to a shard."
            )
        if files:
            present[split] = tuple(files[plain] for plain in sorted(files))
    return present


def is_csv_name(contract: DatasetContract, split: Split, name: str) -> bool:
    """Return whether ``name`` is that of the split's CSV or of a shard of it, plain or gzip-compressed."""
    plain, whole = name.removesuffix(".gz"), contract.csv_name(split)
    return plain == whole or (plain.startswith(f"{whole.removesuffix('.csv')}-") and plain.endswith(".csv"))


def _require_usable(path: Path) -> None:
    """Require a regular file with a name that manifests, quarantine files and messages can contain."""
    if not path.name.isprintable():
        raise DataContractError(
            f"{path.parent} contains a shard named {path.name!a}. Expected printable UTF-8 characters. Rename the file "
            "and run again."
        )
    if not path.is_file():
        received = "a folder" if path.is_dir() else "a link to nothing, a pipe or a device"
        raise DataContractError(
            f"{path} is not a file. Expected a CSV, received {received}. Remove it, or replace it by a CSV."
        )


def csv_references(
    contract: DatasetContract, data_dir: Path, present: Mapping[Split, Sequence[Path]]
) -> dict[Split, CsvSplit]:
    """Return references to the ``present`` files, with digests and origin, and log where each file comes from."""
    csvs = {split: csv_split(split, paths) for split, paths in present.items()}
    # The record is read after the files, because a fetch writes it before it renames them.
    fetched_digests = read_record(contract, data_dir)
    for split, csv in csvs.items():
        if fetched := fetched_digests.get(split) == csv.sha256:
            csvs[split] = csv.model_copy(update={"origin": "fetched"})
        supplied = "your file" if len(csv.files) == 1 else "your files"
        logger.info("%s: found (%s)", data_dir / csv.name, "downloaded earlier" if fetched else supplied)
    if len({csv.origin for csv in csvs.values()}) > 1:
        logger.warning("%s mixes a downloaded split with a supplied one: check that they belong together", data_dir)
    return csvs


def digest_of_csvs(csvs: Mapping[Split, CsvSplit]) -> str:
    """Return one digest of the CSVs of both splits, as ``sha256sum TEST.. TRAIN.. | sha256sum`` in their folder."""
    return sha256sum_digest(file for csv in csvs.values() for file in csv.files)


def folder_digest(contract: DatasetContract, data_dir: Path) -> str | None:
    """Return the digest of the CSVs in ``data_dir``, None if a split is missing or a file is being written."""
    present = present_csvs(contract, data_dir)
    if len(present) < len(SPLITS):
        return None
    paths = [path for files in present.values() for path in files]
    before = [file_stamp(path) for path in paths]
    with suppress(FileNotFoundError):  # removed meanwhile
        files = [CsvFile(path=path, sha256=sha256_file(path)) for path in paths]
        unchanged = all(is_unchanged(file.path, stamp, file.sha256) for file, stamp in zip(files, before, strict=True))
        if unchanged and present_csvs(contract, data_dir) == present:
            return sha256sum_digest(files)
    logger.info("%s: files are still being written; the next run checks again", data_dir)
    return None


def csv_split(split: Split, paths: Iterable[Path]) -> CsvSplit:
    """Return the reference to the files of a split, as supplied ones. Raises `UnreadableData`."""
    files = []
    for path in paths:
        try:
            files.append(CsvFile(path=path, sha256=sha256_file(path)))
        except OSError as error:
            raise UnreadableData.of(path, error) from error
    return CsvSplit(split=split, files=tuple(files), origin="supplied")


def record_path(contract: DatasetContract, data_dir: Path) -> Path:
    """Return the path of the record of what was downloaded into ``data_dir``."""
    return data_dir / f"{contract.name}.source.json"


def read_record(contract: DatasetContract, data_dir: Path) -> dict[str, str]:
    """Return the digest of each split that was downloaded into ``data_dir``; empty if the record is unreadable."""
    path = record_path(contract, data_dir)
    if not contract.published:
        return {}
    try:
        files = json.loads(path.read_bytes())["files"]
        return {split: str(entry["sha256"]) for split, entry in files.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        logger.warning("%s cannot be read (%s) and is ignored; the CSVs count as supplied", path, error)
        return {}
