"""Break each clause of the contract once; Great Expectations validates, no stand-in does."""

from collections.abc import Callable
from copy import deepcopy
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from schemas.contract import FASHION_MNIST, DatasetContract
from tasks.checks.expectations import fresh_context
from tasks.checks.measurements import Measurement
from tasks.checks.scan import scan_split
from tasks.checks.suite import check_expectations, column_expectations, validate_frame, validate_split
from tasks.checks.summary import summarize


def _table(rows: int = 12) -> pd.DataFrame:
    """Return a frame that keeps the tiny contract: 3 classes, 4 pixels, both ends of the range in each image."""
    generator = np.random.default_rng(0)
    frame = pd.DataFrame({"label": np.arange(rows) % 3})
    for number in range(1, 5):
        frame[f"pixel{number}"] = generator.integers(0, 256, rows)
    frame[["pixel1", "pixel4"]] = 0, 255
    return frame.astype("uint8")


def _broken(frame: pd.DataFrame, contract: DatasetContract, folder: Path, exact_rows: int | None = None) -> list[str]:
    """Return the clauses that a split breaks, the same ones whether it is one file or three."""
    verdicts = []
    for cuts in ([0, len(frame)], [0, 1, 7, len(frame)]):
        files = [folder / f"{place}.parquet" for place in range(len(cuts) - 1)]
        for path, (first, after) in zip(files, pairwise(cuts), strict=True):
            table = pa.Table.from_pandas(frame, preserve_index=False)
            pq.write_table(table.slice(first, max(0, after - first)), path, row_group_size=5)
        validated = validate_split(scan_split(files, contract), files, contract, "train", exact_rows=exact_rows)
        verdicts.append(summarize(validated.result)["broken"])
    assert verdicts[0] == verdicts[1]
    broken: list[str] = verdicts[0]
    return broken


def _with(column: str, value: object, dtype: str) -> Callable[[pd.DataFrame], pd.DataFrame]:
    def change(frame: pd.DataFrame) -> pd.DataFrame:
        frame[column] = frame[column].astype(dtype)
        frame.loc[7, column] = value
        return frame

    return change


_ORDER = "column order: every column must be at its position in the contract; violated by"
_TYPES = "column types: every column must be uint8; violated by"
_NULLS = "nulls: no value may be missing; violated by"
_SMALLEST = "smallest values: none may be below the lower bound of its column; violated by"
_LARGEST = "largest values: none may be above the upper bound of its column; violated by"
_CLASSES = "classes: every class must occur; missing"
_LABELS = "labels: every label must be a class; violated by"
_SHARES = "class shares: no class may have more than 50% of the rows; violated by"
_ROWS = "row count: at least the contract's minimum; expected >= 6, received"


def _types(kind: str, *columns: str) -> str:
    return f"{_TYPES} {', '.join(f'{column} (type {kind}, expected uint8)' for column in columns)}"


def _additional(first: int, last: int) -> str:
    return ", ".join(f"pixel{number} (expected (no column))" for number in range(first, last + 1))


@pytest.mark.parametrize(
    ("change", "broken"),
    [
        pytest.param(lambda frame: frame, [], id="nothing"),
        pytest.param(
            _with("pixel3", 300, "int16"),
            [_types("int16", "pixel3"), f"{_LARGEST} pixel3 (maximum 300, expected <= 255)"], id="pixel of 300",
        ),
        pytest.param(
            _with("pixel3", -1, "int16"),
            [_types("int16", "pixel3"), f"{_SMALLEST} pixel3 (minimum -1, expected >= 0)"], id="pixel of -1",
        ),
        pytest.param(_with("pixel2", 12.5, "float32"), [_types("float", "pixel2")], id="pixel of 12.5"),
        pytest.param(
            _with("pixel2", float("nan"), "float32"),
            [_types("float", "pixel2"), f"{_NULLS} pixel2 (nulls 1, expected 0)"], id="NaN",
        ),
        pytest.param(_with("pixel2", None, "UInt8"), [f"{_NULLS} pixel2 (nulls 1, expected 0)"], id="null"),
        pytest.param(
            lambda frame: frame.assign(pixel2=pd.array([None] * len(frame), "UInt8")),
            [f"{_NULLS} pixel2 (nulls 12, expected 0)"], id="only nulls",
        ),
        pytest.param(_with("pixel1", 1, "int64"), [_types("int64", "pixel1")], id="wider type"),
        pytest.param(
            lambda frame: frame.assign(pixel2="1", pixel3=np.int32(1234567)),
            [f"{_types('large_string', 'pixel2')}, pixel3 (type int32, expected uint8)",
             f"{_LARGEST} pixel3 (maximum 1234567, expected <= 255)"], id="text beside a large number",
        ),
        pytest.param(
            lambda frame: frame.drop(columns="pixel4").astype(str),
            [f"{_ORDER} (no column) (expected pixel4)",
             _types("large_string", "label", "pixel1", "pixel2", "pixel3")], id="only text, and a missing column",
        ),
        pytest.param(
            lambda frame: frame.assign(pixel2=255.0001),
            [_types("double", "pixel2"), f"{_LARGEST} pixel2 (maximum 255.0001, expected <= 255)"],
            id="slightly too large",
        ),
        pytest.param(
            lambda frame: frame.assign(pixel2=[float("inf")] * 10 + [float("nan")] * 2),
            [_types("double", "pixel2"), f"{_NULLS} pixel2 (nulls 2, expected 0)",
             f"{_LARGEST} pixel2 (maximum Infinity, expected <= 255)"], id="infinite, then only NaN",
        ),
        pytest.param(
            lambda frame: frame.assign(pixel2=np.float16(300)),
            [_types("halffloat", "pixel2"), f"{_LARGEST} pixel2 (maximum 300.0, expected <= 255)"], id="16 bits",
        ),
        pytest.param(
            lambda frame: frame.drop(columns="pixel4"), [f"{_ORDER} (no column) (expected pixel4)"], id="missing column"
        ),
        pytest.param(
            lambda frame: frame.assign(**{"(no column)": np.uint8(0)}),
            [f"{_ORDER} (no column) (expected ((no column)))"], id="additional column, named like a missing one",
        ),
        pytest.param(
            lambda frame: frame.assign(pixel5=np.uint8(0), **{f"pixel{number}": 0 for number in range(6, 11)}),
            [f"{_ORDER} {_additional(5, 9)} and 1 more",
             _types("int64", "pixel6", "pixel7", "pixel8", "pixel9", "pixel10")], id="additional columns",
        ),
        pytest.param(
            lambda frame: frame[["label", "pixel2", "pixel1", "pixel3", "pixel4"]],
            [f"{_ORDER} pixel2 (expected pixel1), pixel1 (expected pixel2)"], id="column order",
        ),
        pytest.param(
            _with("label", 3, "uint8"),
            [f"{_LARGEST} label (maximum 3, expected <= 2)", f"{_LABELS} 3 (expected in 0, 1, 2)"],
            id="label beyond the last class",
        ),
        pytest.param(
            lambda frame: frame.assign(label=[[0]] * 12),
            [_types("list<element: int64>", "label"), f"{_CLASSES} 0, 1, 2", f"{_LABELS} [0] (expected in 0, 1, 2)",
             f"{_SHARES} [0] (share 1.0, expected <= 0.5)"], id="labels that are lists",
        ),
        pytest.param(lambda frame: frame[frame.label != 2], [f"{_CLASSES} 2"], id="missing class"),
        pytest.param(lambda frame: frame[(frame.label == 0) | (frame.index < 6)], [], id="class of half the rows"),
        pytest.param(
            lambda frame: pd.concat([frame[frame.label == 0], frame[frame.index < 5]]),
            [f"{_SHARES} 0 (share 0.6666666666666666, expected <= 0.5)", "repeated_images: "], id="class over half",
        ),
        pytest.param(lambda frame: frame[:5], [f"{_ROWS} 5"], id="too few rows"),
        pytest.param(lambda frame: frame[:0], [f"{_CLASSES} 0, 1, 2", f"{_ROWS} 0"], id="no rows"),
    ],
)  # fmt: skip
def test_names_every_broken_clause_and_no_other(
    tiny_contract: DatasetContract, tmp_path: Path, change: Callable[[pd.DataFrame], pd.DataFrame], broken: list[str]
) -> None:
    sentences = _broken(change(_table()), tiny_contract, tmp_path)
    assert len(sentences) == len(broken)
    for sentence, expected in zip(sentences, broken, strict=True):
        assert sentence.startswith(expected)


def test_lists_the_first_unexpected_labels(tiny_contract: DatasetContract, tmp_path: Path) -> None:
    broken = _broken(_table(3000).assign(label=np.arange(3000)), tiny_contract, tmp_path)
    (sentence,) = (line for line in broken if line.startswith(_LABELS))
    assert sentence.startswith(f"{_LABELS} 3 (expected in 0, 1, 2), 4 (")
    assert sentence.endswith(" and 2992 more")


def test_reports_expectations_that_raise() -> None:
    frame = pd.DataFrame({"column": ["label"]})
    result = validate_frame(fresh_context(), frame, "columns", "column", column_expectations()[:1])
    (entry,) = result["results"]
    (info,) = entry["exception_info"].values()
    of_the_expectation = deepcopy(entry) | {"exception_info": info}
    for one in (entry, of_the_expectation):
        assert summarize({"columns": {"results": [one]}})["broken"] == [
            "expect_column_pair_values_to_be_equal of column could not be evaluated: "
            'Error: The column "expected_column" in BatchData does not exist.'
        ]


@pytest.mark.parametrize("beyond", [False, True])
@pytest.mark.parametrize("end", ["warn", "fail"])
def test_checks_and_expectations_agree_at_the_bounds(end: str, beyond: bool) -> None:
    bounds = {check: getattr(check, end) for check in FASHION_MNIST.checks if getattr(check, end) is not None}
    values = {
        check: float(np.nextafter(bound, -np.inf if check.low_is_bad else np.inf) if beyond else bound)
        for check, bound in bounds.items()
    }
    expectations = check_expectations(FASHION_MNIST, {check.name: Measurement(values[check]) for check in values})
    frame = pd.DataFrame([{check.name: values[check] for check in values}])
    facts = summarize({"classes": validate_frame(fresh_context(), frame, "classes", "label", expectations)})
    for check in values:
        results = {result["result"] for result in facts["checks"] if result["check"] == check.name}
        assert (results != {"met"}) is check.warns(values[check])
        assert ("broken" in results) is check.fails(values[check])
        assert (check.warns if end == "warn" else check.fails)(values[check]) is beyond


def test_published_data_has_its_exact_rows(tiny_contract: DatasetContract, tmp_path: Path) -> None:
    assert _broken(_table(12), tiny_contract, tmp_path, exact_rows=12) == []
    for rows in (11, 13):
        (broken,) = _broken(_table(12), tiny_contract, tmp_path, exact_rows=rows)
        assert broken == f"row count: as published; expected == {rows}, received 12"


def test_ignores_the_statistics_of_the_footer(tiny_contract: DatasetContract, tmp_path: Path) -> None:
    path = tmp_path / "data.parquet"
    frame = _with("pixel3", 300, "int16")(_table())
    pq.write_table(pa.Table.from_pandas(frame, preserve_index=False), path, write_statistics=False)
    assert "300" in "; ".join(
        summarize(validate_split(scan_split([path], tiny_contract), [path], tiny_contract, "train").result)["broken"]
    )


def test_ignores_the_row_count_of_the_footer(tiny_contract: DatasetContract, tmp_path: Path) -> None:
    path = tmp_path / "data.parquet"
    pq.write_table(pa.Table.from_pandas(_table(12), preserve_index=False), path)
    content = path.read_bytes()
    # The footer's own count comes before those of the groups: field 3 of Thrift's compact protocol, 12 as a zigzag.
    footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    path.write_bytes(content[:footer] + content[footer:].replace(b"\x16\x18", b"\x16\x1c", 1))
    assert pq.ParquetFile(path).metadata.num_rows == 14
    validated = validate_split(scan_split([path], tiny_contract), [path], tiny_contract, "train", exact_rows=12)
    assert summarize(validated.result)["broken"] == []
    assert validated.sketches is not None
    assert len(validated.sketches.numbers) == 12


def test_validates_each_split_on_its_own(tiny_contract: DatasetContract, tmp_path: Path) -> None:
    bad = _with("pixel3", 300, "int16")(_table())
    for frame, accepted in ((_table(), True), (bad, False), (_table(), True), (bad, False)):
        assert (_broken(frame, tiny_contract, tmp_path) == []) is accepted
