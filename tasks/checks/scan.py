"""Scan a Parquet file once: column and class profiles, a sample of images, sketches."""

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from schemas.contract import SAMPLE_ROWS, DatasetContract
from tasks.checks.near_duplicates import Sketches, sketch
from tasks.data.parquet import batches, column_bytes, open_parquet, row_count, select_rows

if TYPE_CHECKING:
    import pandas as pd

_TYPE = "uint8"


@dataclass(frozen=True)
class Sample:
    """Of a split of the contract's form: the images that figures are taken from, and what is known of all rows.

    images uint8 (n, pixels) and labels uint8 (n,), n at most `SAMPLE_ROWS`, in file order; rows int64 (n,) says which.
    """

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.uint8]
    rows: npt.NDArray[np.int64]
    sketches: Sketches


@dataclass(frozen=True)
class Scan:
    """What one pass over a Parquet found. ``sample`` is None where columns, types or labels are not the contract's.

    columns: position, and what was found and is owed: column and expected_column, type and expected_type, nulls (NaN
    counts) and expected_nulls, minimum and lower_bound, maximum and upper_bound; one row a column, of the file or of
    the contract. classes: label, rows, share.
    """

    rows: int
    columns: "pd.DataFrame"
    classes: "pd.DataFrame"
    sample: Sample | None


def scan_parquet(path: Path, contract: DatasetContract) -> Scan:
    """Look once at the values themselves, not at the footer's statistics, which a writer may have got wrong."""
    import pandas as pd

    file = open_parquet(path)
    schema = file.schema_arrow
    found = schema.names
    rows = row_count(file)
    profiles = [_ColumnProfile(str(kind)) for kind in schema.types]
    label_rows: dict[Any, int] = {}
    drawn = np.sort(np.random.default_rng(0).choice(rows, min(rows, SAMPLE_ROWS), replace=False))
    gathered = _Gathered(contract, drawn, rows) if tuple(found) == contract.columns and rows else None
    for batch, block in _read_ahead(file):
        if block is None:
            gathered = None
            for profile, values in zip(profiles, batch.columns, strict=True):
                profile.add(values)
        else:
            for profile, low, high in zip(profiles, block.min(axis=1), block.max(axis=1), strict=True):
                profile.add_extremes(int(low), int(high))
            if gathered is not None:
                gathered.add(block)
        if contract.label_column in found:
            for entry in pc.value_counts(_countable(batch.column(found.index(contract.label_column)))).to_pylist():
                label_rows[entry["values"]] = label_rows.get(entry["values"], 0) + entry["counts"]
    absent = "(no column)"
    while absent in found:  # it would stand for itself
        absent = f"({absent})"
    columns = []
    for position in range(max(len(found), len(contract.columns))):
        name = found[position] if position < len(found) else absent
        expected = contract.columns[position] if position < len(contract.columns) else absent
        profile = profiles[position] if position < len(found) else _ColumnProfile(None)
        low, high = contract.bounds(name)
        columns.append(
            {
                "position": position,
                "column": name,
                "expected_column": expected,
                "type": profile.type,
                "expected_type": _TYPE,
                "nulls": profile.nulls,
                "expected_nulls": 0,
                "minimum": profile.minimum,
                "lower_bound": low,
                "maximum": profile.maximum,
                "upper_bound": high,
            }
        )
    total = sum(label_rows.values()) or 1
    classes = pd.DataFrame(
        {
            "label": [str(label) for label in label_rows],
            "rows": list(label_rows.values()),
            "share": [count / total for count in label_rows.values()],
        }
    )
    in_range = gathered is not None and all(
        low <= int(profile.minimum or 0) and int(profile.maximum or 0) <= high
        for profile, (low, high) in zip(profiles, map(contract.bounds, found), strict=True)
    )
    sample = gathered.sample() if gathered is not None and in_range else None
    as_they_are = pd.DataFrame(columns, dtype=object)
    # Great Expectations takes hashes of the frame, those of objects in several times the time of numbers. Beside a
    # floating number or none at all, though, pandas would make whole numbers floating ones, too.
    typed = as_they_are.infer_objects()
    return Scan(rows, as_they_are if typed.select_dtypes("float64").size else typed, classes, sample)


def _countable(labels: pa.Array) -> pa.Array:
    """Lists and the like, which pyarrow does not count, as text."""
    return pa.array([str(label) for label in labels.to_pylist()]) if pa.types.is_nested(labels.type) else labels


def _read_ahead(file: pq.ParquetFile) -> Iterator[tuple[pa.RecordBatch, npt.NDArray[np.uint8] | None]]:
    """Each batch and its `column_bytes`, the next one read meanwhile by a thread."""
    batch_by_batch = ((batch, column_bytes(batch)) for batch in batches(file))
    with ThreadPoolExecutor(1) as reader:
        reading = reader.submit(next, batch_by_batch, None)
        while (read := reading.result()) is not None:
            reading = reader.submit(next, batch_by_batch, None)
            yield read


class _Gathered:
    """What a `Sample` is made of, block by block; ``drawn`` are the rows of the images that are kept, ascending."""

    def __init__(self, contract: DatasetContract, drawn: npt.NDArray[np.int64], rows: int) -> None:
        self._contract = contract
        self._drawn = drawn
        self._rows = 0
        self._kept: list[npt.NDArray[np.uint8]] = []
        self._sketches = Sketches.allocate(rows, contract)

    def add(self, block: npt.NDArray[np.uint8]) -> None:
        """block: uint8 (columns, rows), the label first."""
        self._kept.append(select_rows(block, self._rows, self._drawn).T)
        self._sketches.fill(self._rows, sketch(block[1:], self._contract))
        self._rows += block.shape[1]

    def sample(self) -> Sample:
        kept = np.concatenate(self._kept)
        return Sample(np.ascontiguousarray(kept[:, 1:]), kept[:, 0], self._drawn, self._sketches)


class _ColumnProfile:
    """Nulls, smallest and largest value of one column, over its chunks. Text has neither."""

    def __init__(self, type_name: str | None) -> None:
        self.type = type_name
        self.nulls = 0
        self.minimum: float | None = None
        self.maximum: float | None = None

    def add(self, values: pa.Array) -> None:
        self.nulls += values.null_count
        if pa.types.is_float16(values.type):
            values = values.cast(pa.float32())  # of 16 bits pyarrow knows neither NaN nor extremes
        if pa.types.is_floating(values.type):
            self.nulls += pc.sum(pc.is_nan(values)).as_py() or 0
        if pa.types.is_integer(values.type) or pa.types.is_floating(values.type):
            extremes = pc.min_max(values).as_py()
            if extremes["min"] is not None and not math.isnan(extremes["min"]):
                self.add_extremes(extremes["min"], extremes["max"])

    def add_extremes(self, low: float, high: float) -> None:
        self.minimum = low if self.minimum is None else min(low, self.minimum)
        self.maximum = high if self.maximum is None else max(high, self.maximum)
