"""Scan a Parquet file once: column and class profiles, a sample of images, sketches."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from schemas.contract import SAMPLE_ROWS, DatasetContract
from tasks.checks.near_duplicates import Sketches, sketch
from tasks.data.parquet import batches, column_bytes, open_parquet, read_ahead, row_count, select_rows

if TYPE_CHECKING:
    import pandas as pd

COLUMN_TYPE = "uint8"


@dataclass(frozen=True)
class Drawn:
    """A random sample of images.

    images uint8 (n, pixels) and labels uint8 (n,), n at most `SAMPLE_ROWS`, in file order; rows int64 (n,): the row of
    each image in the file.
    """

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.uint8]
    rows: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Sample(Drawn):
    """A random sample of a split's images, and the sketches of all its images."""

    sketches: Sketches


@dataclass(frozen=True)
class Scan:
    """The profiles of a Parquet file.

    columns: one row per column of the file or of the contract: position, column and expected_column, type, nulls
    (including NaN), minimum and lower_bound, maximum and upper_bound.
    classes: one row per label: label as text, rows, share.
    sample: None if columns, types or labels are not the contract's.
    """

    rows: int
    columns: "pd.DataFrame"
    classes: "pd.DataFrame"
    sample: Sample | None


def scan_parquet(path: Path, contract: DatasetContract) -> Scan:
    """Read every value once. The footer's statistics are not used: a writer may have got them wrong."""
    file = open_parquet(path)
    names = file.schema_arrow.names
    rows = row_count(file)
    profiles = [_ColumnProfile(str(kind)) for kind in file.schema_arrow.types]
    label_rows: Counter[Any] = Counter()
    builder = _SampleBuilder(contract, rows) if tuple(names) == contract.columns and rows else None
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
    sample = builder.sample() if builder is not None and in_range else None
    return Scan(rows, _column_frame(names, profiles, contract), _class_frame(label_rows, contract), sample)


def _column_frame(
    names: Sequence[str], profiles: "Sequence[_ColumnProfile]", contract: DatasetContract
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
                **vars(profile or _ColumnProfile(None)),
                "lower_bound": low,
                "upper_bound": high,
            }
        )
    objects = pd.DataFrame(columns, dtype=object)
    # Great Expectations hashes the frame; hashing objects takes several times as long as numbers. Beside a float or a
    # missing value, though, pandas would turn whole numbers into floats.
    typed = objects.infer_objects()
    return objects if typed.select_dtypes("float64").size else typed


def _class_frame(label_rows: Counter[Any], contract: DatasetContract) -> "pd.DataFrame":
    import pandas as pd

    total = label_rows.total() or 1
    labels: dict[Any, int] = dict(enumerate(contract.class_labels))
    return pd.DataFrame(
        {
            "label": [str(labels[value] if type(value) is int and value in labels else value) for value in label_rows],
            "rows": np.array(list(label_rows.values()), np.int64),
            "share": [count / total for count in label_rows.values()],
        }
    )


class _SampleBuilder:
    """Build a `Sample` block by block."""

    def __init__(self, contract: DatasetContract, rows: int) -> None:
        self._contract = contract
        self._drawn = np.sort(np.random.default_rng(0).choice(rows, min(rows, SAMPLE_ROWS), replace=False))
        self._rows = 0
        self._kept: list[npt.NDArray[np.uint8]] = []
        self._sketches = Sketches.allocate(rows, contract)

    def add(self, block: npt.NDArray[np.uint8]) -> None:
        """Add the next rows. block: uint8 (columns, rows), the label first."""
        self._kept.append(select_rows(block, self._rows, self._drawn).T)
        self._sketches.fill(self._rows, sketch(block[1:], self._contract))
        self._rows += block.shape[1]

    def sample(self) -> Sample:
        kept = np.concatenate(self._kept)
        return Sample(np.ascontiguousarray(kept[:, 1:]), kept[:, 0], self._drawn, self._sketches)


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


@dataclass
class _ColumnProfile:
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

    def add_extremes(self, low: float, high: float) -> None:
        self.minimum = low if self.minimum is None else min(low, self.minimum)
        self.maximum = high if self.maximum is None else max(high, self.maximum)
