"""Scan each Parquet file of a split once, and merge: column and class profiles, a sample of images, sketches."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import TypeAdapter

from schemas.contract import SAMPLE_ROWS, DatasetContract
from schemas.layout import CANDIDATES_NAME, SKETCHES_NAME
from tasks.checks.chunks import Faults, ScannedFile, faults_of_file
from tasks.checks.near_duplicates import Sketches, sketch
from tasks.data.parquet import batches, column_bytes, open_parquet, read_ahead, row_count

if TYPE_CHECKING:
    import pandas as pd

COLUMN_TYPE = "uint8"
# Images of a file that its own faults are measured on: two chunks, 10 ms.
_FILE_IMAGES = 256
_FAULTS: TypeAdapter[Faults] = TypeAdapter(dict[str, str] | None)


@dataclass(frozen=True)
class Drawn:
    """A random sample of images.

    images uint8 (n, pixels) and labels uint8 (n,), n at most `SAMPLE_ROWS`, in file order; rows int64 (n,): the row of
    each image in the split.
    """

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.uint8]
    rows: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Sample(Drawn):
    """A random sample of a split's images, and the sketches of all its images."""

    sketches: Sketches


@dataclass(frozen=True)
class Candidates(Drawn):
    """The images of one file that may be in the sample of its split: those with the smallest keys; rows are its own.

    keys: uint64 (n,). Neither key nor choice depends on other files, and the smallest keys of all files are those of
    the split ("bottom-k sketch", Cohen and Kaplan, PODC 2007). Copies of an image have one key.
    """

    keys: npt.NDArray[np.uint64]

    @classmethod
    def none(cls, contract: DatasetContract) -> "Candidates":
        """Return no images."""
        images = np.zeros((0, contract.pixels), np.uint8)
        return cls(images, np.zeros(0, np.uint8), np.zeros(0, np.int64), np.zeros(0, np.uint64))

    def smallest(self, later: "Candidates") -> "Candidates":
        """Return the candidates of both. Among equal keys, the earlier row comes first."""
        keys = np.concatenate([self.keys, later.keys])
        kept = np.sort(np.argsort(keys, kind="stable")[:SAMPLE_ROWS])
        own, other = kept[kept < len(self.keys)], kept[kept >= len(self.keys)] - len(self.keys)
        pairs = zip(vars(self).values(), vars(later).values(), strict=True)
        return Candidates(*(np.concatenate([one[own], two[other]]) for one, two in pairs))

    def first(self, count: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
        """Return images and labels of the ``count`` smallest keys, in file order: a random sample of the file."""
        kept = np.sort(np.argsort(self.keys, kind="stable")[:count])
        return self.images[kept], self.labels[kept]

    def sample(self, sketches: Sketches) -> Sample:
        """Return the sample of a split, if these are the candidates of all its files."""
        return Sample(self.images, self.labels, self.rows, sketches)


@dataclass(frozen=True)
class FileScan:
    """The scan of one Parquet file.

    names, profiles: of the columns, in their order.
    label_rows: number of rows per label as text.
    candidates, sketches: None if columns, types or labels are not the contract's.
    faults: see `tasks.checks.chunks.faults_of_file`.
    """

    rows: int
    names: tuple[str, ...]
    profiles: "tuple[ColumnProfile, ...]"
    label_rows: Mapping[str, int]
    candidates: Candidates | None
    sketches: Sketches | None
    faults: Faults = None

    @property
    def as_contracted(self) -> bool:
        """Return whether columns, types and labels are the contract's."""
        return self.candidates is not None

    def write(self, folder: Path) -> dict[str, Any]:
        """Write the arrays to ``folder``, and return the rest as JSON."""
        if self.candidates is not None and self.sketches is not None:
            np.savez(folder / CANDIDATES_NAME, **vars(self.candidates))
            self.sketches.save(folder / SKETCHES_NAME)
        profiles = [{**vars(profile), **_as_text(profile)} for profile in self.profiles]
        return {
            "rows": self.rows,
            "names": list(self.names),
            "profiles": profiles,
            "label_rows": list(self.label_rows.items()),  # JSON objects are stored sorted
            "as_contracted": self.as_contracted,
            "faults": None if self.faults is None else dict(self.faults),
        }

    @classmethod
    def read(cls, folder: Path, stored: Mapping[str, Any], contract: DatasetContract) -> "FileScan":
        """Read what `write` wrote and returned. Raises ValueError for other content."""
        candidates = sketches = None
        if stored["as_contracted"]:
            with np.load(folder / CANDIDATES_NAME) as arrays:
                candidates = Candidates(**arrays)
            count = len(candidates.rows)
            expected = {"images": (count, contract.pixels), "labels": (count,), "rows": (count,), "keys": (count,)}
            if {name: array.shape for name, array in vars(candidates).items()} != expected:
                raise ValueError(f"expected images, labels, rows and keys of one length in {CANDIDATES_NAME}")
            sketches = Sketches.load(folder / SKETCHES_NAME, stored["rows"], contract)
        profiles = (ColumnProfile(**{**entry, **_as_number(entry)}) for entry in stored["profiles"])
        return cls(
            stored["rows"],
            tuple(stored["names"]),
            tuple(profiles),
            dict(stored["label_rows"]),
            candidates,
            sketches,
            _FAULTS.validate_python(stored["faults"]),
        )


@dataclass(frozen=True)
class Scan:
    """The profiles of a split.

    columns: one row per column of the files or of the contract: position, column and expected_column, type, nulls
    (including NaN), minimum and lower_bound, maximum and upper_bound.
    classes: one row per label: label as text, rows, share.
    files: in the order of the rows.
    sample: None if columns, types or labels are not the contract's.
    """

    rows: int
    files: tuple[ScannedFile, ...]
    columns: "pd.DataFrame"
    classes: "pd.DataFrame"
    sample: Sample | None


def scan_file(path: Path, contract: DatasetContract) -> FileScan:
    """Read every value once. The footer's statistics are not used: a writer may have got them wrong."""
    file = open_parquet(path)
    names = tuple(file.schema_arrow.names)
    rows = row_count(file)
    profiles = tuple(ColumnProfile(str(kind)) for kind in file.schema_arrow.types)
    label_rows: Counter[Any] = Counter()
    as_contracted = names == contract.columns and all(profile.type == COLUMN_TYPE for profile in profiles)
    builder = _CandidatesBuilder(contract, rows) if as_contracted else None
    for batch, block in read_ahead((batch, column_bytes(batch)) for batch in batches(file)):
        if block is None:
            builder = None
            for profile, values in zip(profiles, batch.columns, strict=True):
                profile.add(values)
        else:
            for profile, low, high in zip(profiles, block.min(axis=1), block.max(axis=1), strict=True):
                profile.add_extremes(int(low), int(high))
            if builder is not None:
                builder.add(block)
        if contract.label_column in names:
            labels = batch.column(names.index(contract.label_column))
            if pa.types.is_nested(labels.type):  # such as lists, which pyarrow does not count
                labels = pa.array(map(str, labels.to_pylist()))
            label_rows.update({entry["values"]: entry["counts"] for entry in labels.value_counts().to_pylist()})
    in_range = all(
        low <= (profile.minimum or 0) and (profile.maximum or 0) <= high
        for profile, (low, high) in zip(profiles, map(contract.bounds, names), strict=True)
    )
    candidates, sketches = builder.result() if builder is not None and in_range else (None, None)
    faults = None if candidates is None else faults_of_file(*candidates.first(_FILE_IMAGES), contract)
    return FileScan(rows, names, profiles, _by_text(label_rows, contract), candidates, sketches, faults)


def merge_scans(scans: Iterable[FileScan], contract: DatasetContract) -> Scan:
    """Merge the scans of the files of a split. One of them is in memory at a time.

    Except for ``files``, the result depends on the rows and their order only, not on how they are divided into files.
    If columns differ, the profiles are those of the first file whose columns are not the contract's.
    """
    rows, label_rows = 0, Counter[str]()
    files: list[ScannedFile] = []
    candidates: Candidates | None = Candidates.none(contract)
    sketches: list[Sketches] = []
    columns: tuple[tuple[str, str | None], ...] | None = None
    profiles: tuple[ColumnProfile, ...] = ()
    for scan in scans:
        label_rows.update(scan.label_rows)
        names = tuple((name, profile.type) for name, profile in zip(scan.names, scan.profiles, strict=True))
        if columns == names:
            profiles = tuple(one.merged(other) for one, other in zip(profiles, scan.profiles, strict=True))
        elif columns is None or candidates is not None:  # all files so far have the contract's columns
            columns, profiles = names, scan.profiles
        if scan.candidates is None or scan.sketches is None:
            candidates = None
        elif candidates is not None:
            candidates = candidates.smallest(replace(scan.candidates, rows=scan.candidates.rows + rows))
            sketches.append(scan.sketches)
        files.append(ScannedFile(scan.rows, scan.label_rows, scan.faults))
        rows += scan.rows
    return Scan(
        rows,
        tuple(files),
        _column_frame([name for name, _ in columns or ()], profiles, contract),
        _class_frame(label_rows),
        None if candidates is None or not rows else candidates.sample(Sketches.joined(sketches)),
    )


def scan_split(files: Iterable[Path], contract: DatasetContract) -> Scan:
    """Scan the Parquet files of a split one after the other, and merge the scans."""
    return merge_scans((scan_file(path, contract) for path in files), contract)


def _column_frame(
    names: Sequence[str], profiles: "Sequence[ColumnProfile]", contract: DatasetContract
) -> "pd.DataFrame":
    import pandas as pd

    absent = "(no column)"
    while absent in names:  # a column of this name must not match itself
        absent = f"({absent})"
    columns: list[dict[str, Any]] = []
    for name, profile, expected in zip_longest(names, profiles, contract.columns):
        low, high = contract.bounds(name or absent)
        columns.append(
            {
                "position": len(columns),
                "column": absent if name is None else name,
                "expected_column": absent if expected is None else expected,
                **vars(profile or ColumnProfile(None)),
                "lower_bound": low,
                "upper_bound": high,
            }
        )
    objects = pd.DataFrame(columns, dtype=object)
    # Great Expectations hashes the frame; hashing objects takes several times as long as numbers. Beside a float or a
    # missing value, though, pandas would turn whole numbers into floats.
    typed = objects.infer_objects()
    return objects if typed.select_dtypes("float64").size else typed


def _by_text(label_rows: Counter[Any], contract: DatasetContract) -> dict[str, int]:
    """Return the number of rows by label as text: the label in the CSV for a class, else the stored value."""
    labels: dict[Any, int] = dict(enumerate(contract.class_labels))
    by_text: Counter[str] = Counter()
    for value, rows in label_rows.items():
        by_text[str(labels[value] if type(value) is int and value in labels else value)] += rows
    return dict(by_text)


def _class_frame(label_rows: Counter[str]) -> "pd.DataFrame":
    import pandas as pd

    total = label_rows.total() or 1
    return pd.DataFrame(
        {
            "label": list(label_rows),
            "rows": np.array(list(label_rows.values()), np.int64),
            "share": [count / total for count in label_rows.values()],
        }
    )


class _CandidatesBuilder:
    """Collect the `Candidates` and the sketches of a file block by block."""

    def __init__(self, contract: DatasetContract, rows: int) -> None:
        self._contract = contract
        self._rows = 0
        self._kept = Candidates.none(contract)
        self._sketches = Sketches.allocate(rows, contract)

    def add(self, block: npt.NDArray[np.uint8]) -> None:
        """Add the next rows. block: uint8 (columns, rows), the label first."""
        sketches = sketch(block[1:], self._contract)
        self._sketches.fill(self._rows, sketches)
        keys = _scrambled(sketches.numbers)
        new = np.argsort(keys, kind="stable")[:SAMPLE_ROWS]  # only these images are copied
        new.sort()
        self._kept = self._kept.smallest(Candidates(block[1:, new].T, block[0, new], self._rows + new, keys[new]))
        self._rows += block.shape[1]

    def result(self) -> tuple[Candidates, Sketches]:
        """Return what the rows so far give."""
        return self._kept, self._sketches


def _scrambled(numbers: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Return a pseudorandom number for each of ``numbers``, uint64 (N,). Equal numbers give equal ones.

    The finalizer of SplitMix64: Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
    """
    mixed = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


class PredictedImages:
    """Collect the data for checks of images without labels, batch by batch, in the memory of two batches.

    The sample has the images with the smallest random keys. It depends on the number of rows only.
    """

    def __init__(self, contract: DatasetContract) -> None:
        self.rows = self.blank = 0
        self.class_rows = np.zeros(contract.classes, np.int64)  # predicted
        self.extremes = np.full(contract.pixels, 255, np.uint8), np.zeros(contract.pixels, np.uint8)
        self._generator = np.random.default_rng(0)
        self._keys = np.zeros(0)
        self.drawn = Drawn(np.zeros((0, contract.pixels), np.uint8), np.zeros(0, np.uint8), np.zeros(0, np.int64))

    def add(self, images: npt.NDArray[np.uint8], predicted: npt.NDArray[np.integer[Any]]) -> None:
        """Add the next images, uint8 (N, pixels), with the class that was predicted for each."""
        self.blank += int((images.min(axis=1) == images.max(axis=1)).sum())
        self.class_rows += np.bincount(predicted, minlength=len(self.class_rows))
        low, high = self.extremes
        self.extremes = np.minimum(low, images.min(axis=0)), np.maximum(high, images.max(axis=0))
        keys = np.concatenate([self._keys, self._generator.random(len(images))])
        kept = np.sort(np.argsort(keys)[:SAMPLE_ROWS])
        old, new = kept[kept < len(self._keys)], kept[kept >= len(self._keys)] - len(self._keys)
        earlier = self.drawn
        self.drawn = Drawn(
            np.concatenate([earlier.images[old], images[new]]),
            np.concatenate([earlier.labels[old], predicted[new].astype(np.uint8)]),
            np.concatenate([earlier.rows[old], self.rows + new]),
        )
        self._keys = keys[kept]
        self.rows += len(images)


def _as_text(profile: "ColumnProfile") -> dict[str, str]:
    """Return infinite extremes as text, because JSON has no number for them."""
    extremes = {"minimum": profile.minimum, "maximum": profile.maximum}
    return {name: repr(value) for name, value in extremes.items() if value is not None and math.isinf(value)}


def _as_number(stored: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(stored[name]) for name in ("minimum", "maximum") if isinstance(stored[name], str)}


@dataclass
class ColumnProfile:
    """Nulls, smallest and largest value of one column. Columns of text have no extremes."""

    type: str | None
    nulls: int = 0
    minimum: float | None = None
    maximum: float | None = None

    def add(self, values: pa.Array) -> None:
        import pyarrow.compute as pc  # here, because its import reads the documentation of each function

        self.nulls += values.null_count
        if pa.types.is_float16(values.type):
            values = values.cast(pa.float32())  # pyarrow has no `is_nan` and `min_max` for 16 bits
        if pa.types.is_floating(values.type):
            self.nulls += pc.sum(pc.is_nan(values)).as_py() or 0
        if pa.types.is_integer(values.type) or pa.types.is_floating(values.type):
            extremes = pc.min_max(values).as_py()
            if extremes["min"] is not None and not math.isnan(extremes["min"]):
                self.add_extremes(extremes["min"], extremes["max"])

    def merged(self, other: "ColumnProfile") -> "ColumnProfile":
        """Return the profile of a column in this file and in another one. The types are equal."""
        merged = replace(self, nulls=self.nulls + other.nulls)
        if other.minimum is not None and other.maximum is not None:
            merged.add_extremes(other.minimum, other.maximum)
        return merged

    def add_extremes(self, low: float, high: float) -> None:
        self.minimum = low if self.minimum is None else min(low, self.minimum)
        self.maximum = high if self.maximum is None else max(high, self.maximum)
