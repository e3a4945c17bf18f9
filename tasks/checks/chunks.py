"""Find the parts of a split that are faulty on their own: chunks of its sample in file order, and its files.

A bad shard is a small part of all images, but most of a chunk, and all of its file.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from schemas.contract import DatasetContract
from tasks.checks.image_profile import Images, Labels, baseline_profile, variance_explained
from tasks.checks.measurements import (
    BaselineImages,
    Measurement,
    compare_with_baseline,
    join_first,
    measure_pixel_range,
)

# Enough images for bounds that were derived from 100, and of each class; few enough that one of ten shards is most of a
# chunk.
_CHUNK_IMAGES = 128
_CHUNK_IMAGES_PER_CLASS = 12
_LEAST_OF_A_CLASS = 3
# Checks run on each chunk, in order of precedence: orientation is meaningless for images of another dataset.
_CHUNK_CHECKS = (
    *("similarity", "polarity", "orientation", "position"),
    *("background", "brightest_pixel", "label_permutation", "label_agreement", "drift"),
)
# On each file also whether its labels are shuffled: few images show that, also if the whole split fails for it.
_FILE_CHECKS = (*_CHUNK_CHECKS[:-2], "label_relation", *_CHUNK_CHECKS[-2:])
# Their details contain counts that differ from chunk to chunk.
_COUNTED = ("background", "brightest_pixel", "label_agreement")
_SHOWN = 3

# Compares images and their labels or predicted classes with a baseline; None if a class has too few images.
Compare = Callable[[Images, Labels], dict[str, Measurement] | None]
# The details of the checks that a part fails, by their names; None if it was not measured.
Faults = Mapping[str, str] | None


class ScannedFile(NamedTuple):
    """One file of a split: its number of rows, its rows per label as text, and its `faults_of_file`."""

    rows: int
    label_rows: Mapping[str, int]
    faults: Faults


@dataclass(frozen=True)
class Shards:
    """The CSVs of a split, in the order of their rows: their names, and the number of rows of each."""

    names: Sequence[str] = ()
    rows: Sequence[int] = ()

    def place(self, first: int, last: int) -> str:
        """Return the place of the rows from ``first`` to ``last``, counted from 0, such as "rows 1 to 9 of a.csv".

        A split of one file has no name: the message has it already.
        """
        if len(self.names) < 2:
            return f"rows {first + 1:,} to {last + 1:,}"
        (file, row), (last_file, last_row) = self._file_of(first), self._file_of(last)
        if file == last_file:
            return f"rows {row + 1:,} to {last_row + 1:,} of {self.names[file]}"
        return f"row {row + 1:,} of {self.names[file]} to row {last_row + 1:,} of {self.names[last_file]}"

    def named(self, rows: npt.NDArray[np.integer[Any]]) -> str:
        """Return the files with the most of these ``rows``, each with their number. Empty for a split of one file."""
        if len(self.names) < 2:
            return ""
        return self.counted(np.bincount(self._numbers(rows), minlength=len(self.names)).tolist())

    def counted(self, counts: Sequence[int]) -> str:
        """Return the files with the largest ``counts``, one per file. Empty for a split of one file."""
        if len(self.names) < 2:
            return ""
        order = sorted((file for file, count in enumerate(counts) if count), key=lambda file: -counts[file])
        return join_first([f"{counts[file]:,} in {self.names[file]}" for file in order], _SHOWN)

    def _file_of(self, row: int) -> tuple[int, int]:
        file = int(self._numbers(np.array([row]))[0])
        return file, row - sum(self.rows[:file])

    def _numbers(self, rows: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.intp]:
        return np.searchsorted(np.cumsum(self.rows), rows, side="right")


ONE_FILE = Shards()


class _Part(NamedTuple):
    """A chunk or a file, and its first fault. kind: equal for equal faults, "" for none, None if not measured."""

    first_row: int
    last_row: int
    kind: str | None
    detail: str

    def overlaps(self, other: "_Part") -> bool:
        return self.first_row <= other.last_row and other.first_row <= self.last_row

    def contains(self, other: "_Part") -> bool:
        return self.first_row <= other.first_row and other.last_row <= self.last_row


def chunk_images(contract: DatasetContract) -> int:
    """Return the number of images of the smallest chunk that is measured."""
    return max(_CHUNK_IMAGES, _CHUNK_IMAGES_PER_CLASS * contract.classes)


def failed_checks(measured: Mapping[str, Measurement], contract: DatasetContract) -> set[str]:
    """Return the checks whose value is beyond their last bound, which is a warning for a few."""
    return {
        name
        for name, measurement in measured.items()
        if (check := contract.check(name)).fails(measurement.value)
        or (check.fail is None and check.warns(measurement.value))
    }


def comparison(baseline: BaselineImages, contract: DatasetContract) -> Compare:
    """Return a function that compares labelled images with the baseline."""

    def compare(images: Images, labels: Labels) -> dict[str, Measurement] | None:
        if np.bincount(labels, minlength=contract.classes).min() < _LEAST_OF_A_CLASS:
            return None
        return compare_with_baseline(images, labels, contract, baseline, variance_explained(images, labels))

    return compare


def faults_of_file(images: Images, labels: Labels, contract: DatasetContract) -> Faults:
    """Return the faults of a random sample of a file, None if it is too small or the dataset has no baseline."""
    if len(images) < chunk_images(contract) or (baseline := baseline_profile(contract)) is None:
        return None
    faults = _faults(images, labels, contract, comparison(BaselineImages(baseline, contract), contract), _FILE_CHECKS)
    if faults and not faults.get("label_relation", "shuffled"):  # less certain on few images than on all
        del faults["label_relation"]
    return faults


def measure_parts(
    drawn_rows: npt.NDArray[np.int64],
    images: Images,
    labels: Labels,
    contract: DatasetContract,
    compare: Compare,
    failed: Mapping[str, str],
    files: Sequence[ScannedFile] = (),
    shards: Shards = ONE_FILE,
) -> Measurement | None:
    """Measure the share of chunks and files that would fail on their own; None if fewer than two can be measured.

    drawn_rows: the row of each image in the split. failed: the checks that the whole split fails, and their details.
    A check that is less certain on few images than on all is not repeated on parts then. files: those of a split of
    several files.
    """
    skipped = {"position", "label_permutation", "drift"} & set(failed)
    if {"label_permutation", "label_relation", "label_agreement"} & set(failed):
        skipped.add("label_agreement")
    if failed.get("label_relation"):  # the labels of the whole split look shuffled
        skipped.add("label_relation")
    names = [name for name in _FILE_CHECKS if name not in skipped]
    chunks = []
    for part in np.array_split(np.arange(len(labels)), max(1, len(labels) // chunk_images(contract))):
        faults = _faults(images[part], labels[part], contract, compare)
        chunks.append(_part(int(drawn_rows[part[0]]), int(drawn_rows[part[-1]]), faults, names))
    ends = accumulate(file.rows for file in files)
    whole = [_part(end - file.rows, end - 1, file.faults, names) for file, end in zip(files, ends, strict=True)]
    measured = [part.kind for part in (*chunks, *whole) if part.kind is not None]
    if len(measured) < 2:
        return None
    return Measurement(sum(map(bool, measured)) / len(measured), _describe(chunks, whole, shards))


def _faults(
    images: Images,
    labels: Labels,
    contract: DatasetContract,
    compare: Compare,
    checks: Sequence[str] = _CHUNK_CHECKS,
) -> dict[str, str] | None:
    blank = images.min(axis=1) == images.max(axis=1)  # reported by blank_images
    if blank.mean() > 0.5 or (compared := compare(images, labels)) is None:
        return None
    measured = {**compared, **measure_pixel_range(images, contract)}
    failed = failed_checks(measured, contract)
    return {name: measured[name].detail for name in checks if name in failed}


def _part(first_row: int, last_row: int, faults: Faults, names: Collection[str]) -> _Part:
    if faults is None:
        return _Part(first_row, last_row, None, "")
    for name in names:
        if name in faults:
            return _Part(first_row, last_row, name if name in _COUNTED else faults[name], faults[name])
    return _Part(first_row, last_row, "", "")


def _describe(chunks: Sequence[_Part], files: Sequence[_Part], shards: Shards) -> str:
    """Return one line per faulty file, and per run of other chunks with the same fault, the first three.

    A file that is faulty in some of its chunks only is described by them.
    """
    faulty = []
    for file in (file for file in files if file.kind):
        inside = [bool(chunk.kind) for chunk in chunks if file.contains(chunk)]
        if not any(inside) or all(inside):
            faulty.append(file)
    lines = [(file.first_row, f"{shards.place(file.first_row, file.last_row)}: {file.detail}") for file in faulty]
    runs = [(kind, list(members)) for kind, members in groupby(chunks, key=lambda chunk: chunk.kind)]
    for place, (kind, members) in enumerate(runs):
        beside = [runs[at][0] for at in (place - 1, place + 1) if 0 <= at < len(runs)]
        # A chunk on the boundary of a faulty run is only partly faulty, and its labels agree with few images.
        boundary = kind == "label_agreement" and len(members) == 1 and any(beside)
        rest = [chunk for chunk in members if not any(map(chunk.overlaps, faulty))]
        if kind and rest and not boundary:
            first, last = rest[0].first_row, rest[-1].last_row
            lines.append((first, f"about {shards.place(first, last)}: {rest[0].detail}"))
    return "; ".join(line for _, line in sorted(lines)[:_SHOWN]) + (
        f"; and {len(lines) - _SHOWN} more" if len(lines) > _SHOWN else ""
    )
