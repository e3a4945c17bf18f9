"""Describe a data folder without the CSVs of both splits: what it contains, and which names were likely intended."""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from schemas.config import is_default_data_folder
from schemas.contract import SPLITS, DatasetContract, Split, dataset_paths
from tasks.data.data_folder import is_csv_name, present_csvs

# Parts of file names that indicate a split; t10k is the test split of the IDX files.
_WORDS: Mapping[Split, str] = {"train": "train", "test": "test|t10k"}
_DATA_SUFFIX = re.compile(r"\.(csv|tsv|parquet|arrow|zip|tar|tgz|gz|bz2|xz|zst|7z|rar|xlsx?)\b")
# A fetch leaves these in the folder; macOS writes files that begin with "._".
_NO_DATA = re.compile(r"\._.*|.*\.(lock|fetching|source\.json)")
_SHOWN = 8


def may_fetch(contract: DatasetContract, data_dir: Path) -> bool:
    """Return whether published data may be downloaded into ``data_dir`` without ``--fetch``.

    That is data/ of the checkout, unless a name in it resembles a CSV of ``contract``, or nothing was published.
    """
    return contract.can_be_fetched and is_default_data_folder(data_dir) and not likely_names(contract, data_dir)


def describe_missing(contract: DatasetContract, data_dir: Path) -> str | None:
    """Return which CSVs ``data_dir`` lacks and what it contains instead; None if it has both splits."""
    present = present_csvs(contract, data_dir)
    missing = [split for split in SPLITS if split not in present]
    if not missing:
        return None
    expected = " and ".join(dict.fromkeys(map(contract.csv_name, missing)))
    if not data_dir.is_dir():
        link = f"is a link to {data_dir.readlink()}, which " if data_dir.is_symlink() else ""
        problem = f"{data_dir} {link}does not exist. Expected a folder with {expected}."
        with suppress(OSError):
            parent = next(folder for folder in data_dir.parents if folder.is_dir())
            names = [name for name in _names(parent) if parent / name != data_dir]
            close = difflib.get_close_matches(data_dir.name, names, n=1)
            problem += f" {parent} {_listed(names, {name: str(parent / name) for name in close})}."
        return problem
    if present:
        name = next(iter(present.values()))[0].name
        problem = f"{data_dir} contains {name} but not {expected}. Expected both splits."
    else:
        problem = f"{data_dir} contains no CSV of {contract.name}. Expected {expected}."
    return f"{problem} The folder {_listed(_names(data_dir), likely_names(contract, data_dir, missing))}."


def likely_names(contract: DatasetContract, data_dir: Path, splits: Sequence[Split] | None = None) -> dict[str, str]:
    """Return each name in ``data_dir`` that resembles a CSV of ``splits`` without being one, with the intended name.

    A file in another format counts too, and a folder of such files. Names of other datasets do not count. ``splits``
    are by default those that have CSVs.
    """
    splits = splits or contract.csv_splits
    names = _names(data_dir) if data_dir.is_dir() else []
    likely = {name: _intended(contract, data_dir / name, splits) for name in names}
    return {name: intended for name, intended in likely.items() if intended is not None}


def _intended(contract: DatasetContract, path: Path, splits: Sequence[Split]) -> str | None:
    """Return what ``path`` was likely meant to be, None if its name does not resemble a CSV of ``splits``."""
    children = []
    with suppress(OSError):  # a file, or a folder that cannot be read
        children = _names(path)
        if any(
            is_csv_name(contract, split, name) or _csv(contract, name, [split]) for split in splits for name in children
        ):
            return f"the folder {path}"
    if any(is_csv_name(contract, split, path.name) for split in SPLITS) or (path.is_dir() and not children):
        return None
    return _csv(contract, path.name, splits)


def _csv(contract: DatasetContract, name: str, splits: Sequence[Split]) -> str | None:
    """Return the names of the CSVs that ``name`` resembles, None if there are none."""
    name = name.lower()
    letters = _letters(name)
    others = (other for other in map(_letters, dataset_paths()) if not _letters(contract.name).startswith(other))
    if _NO_DATA.fullmatch(name) or any(letters.startswith(other) for other in others):
        return None
    csvs = {_letters(contract.csv_name(split)): split for split in SPLITS}
    found = [split for split in SPLITS if re.search(_WORDS[split], name)]
    if found and contract.holdout is not None:
        return None  # such as a test.csv without labels
    found = found or [csvs[close] for close in difflib.get_close_matches(letters, csvs, n=1, cutoff=0.9)]  # a typo
    if not found and _letters(contract.name) not in letters and not _DATA_SUFFIX.search(name):
        return None
    packed = ".gz" if name.endswith(".csv.gz") else ""
    return " or ".join(_shard(contract, split, name) + packed for split in found or SPLITS if split in splits) or None


def _shard(contract: DatasetContract, split: Split, name: str) -> str:
    """Return the name of the split's CSV, or that of a shard if a number follows the split in ``name``."""
    number = re.search(rf"(?:{_WORDS[split]})[\W_]*(\d[\w-]*)", name.lstrip(".").partition(".")[0])
    whole = contract.csv_name(split)
    return f"{whole.removesuffix('.csv')}-{number[1]}.csv" if number else whole


def _letters(name: str) -> str:
    return re.sub("[^a-z0-9]", "", name)


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def _listed(names: Iterable[str], likely: Mapping[str, str]) -> str:
    """Return "contains" and the first names of a folder; those with a likely correction come first."""
    ordered = sorted(names, key=lambda name: name not in likely)
    shown = [f"{name!r} (did you mean {likely[name]}?)" if name in likely else repr(name) for name in ordered[:_SHOWN]]
    more = f" and {len(ordered) - _SHOWN} more" if len(ordered) > _SHOWN else ""
    return f"contains {', '.join(shown)}{more}" if shown else "is empty"
