"""Great Expectations judges a split: the contract's columns, types, nulls, ranges, classes and row count.

The suite looks at two profiles of the Parquet's own values, one row a column and one row a class, where 1,571
expectations on the table would say the same a few hundred times slower.
"""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from prefect import task

from schemas.contract import DatasetContract, Split, contract_of
from schemas.errors import CellProblem, DataContractError
from schemas.references import ParquetSplit, ValidatedSplit
from tasks.publish import publish_table
from tasks.stage import run_stage, sha256_file, write_json

if TYPE_CHECKING:
    from great_expectations.data_context import EphemeralDataContext
    from great_expectations.expectations import Expectation

RESULT_NAME = "great_expectations.json"
_ABSENT = "(no column)"
_TYPE = "uint8"
_BATCH_ROWS = 16_384


@task(name="validate", task_run_name="validate {data.split}")
def validate(data: ParquetSplit, dataset: str) -> ValidatedSplit:
    """Judge a split; the whole result lies beside the data.

    Raises `DataContractError` naming each broken expectation. A refused verdict is kept, too.
    """
    contract = contract_of(dataset)
    exact_rows = contract.published[data.split].rows if data.origin == "fetched" else None

    def produce(folder: Path) -> dict[str, Any]:
        result = judge(data.path, contract, data.split, exact_rows=exact_rows)
        write_json(folder / RESULT_NAME, result)
        return summarize(result)

    record, summary = run_stage(
        data.path.parent / "validation",
        __name__,
        # The digest of the file as it is now: an earlier verdict says nothing of one that was changed since.
        {"dataset": dataset, "split": data.split, "data": sha256_file(data.path), "exact_rows": exact_rows},
        produce,
    )
    publish_table(
        f"{dataset}-{data.split}-validation",
        summary["rows"],
        f"{data.split}: {data.rows} rows judged by Great Expectations, whole result in {record.path / RESULT_NAME}",
    )
    if summary["broken"]:
        raise DataContractError(
            f"{data.split} split ({data.source.name}) breaks its contract: {'; '.join(summary['broken'])}. "
            f"The whole verdict is in {record.path / RESULT_NAME}. Mend the data and run again.",
            problems=[CellProblem(**problem) for problem in summary["problems"]],
        )
    return ValidatedSplit(record=record, data=data, result=record.path / RESULT_NAME, expectations=len(summary["rows"]))


def judge(path: Path, contract: DatasetContract, split: Split, *, exact_rows: int | None = None) -> dict[str, Any]:
    """What Great Expectations finds in the Parquet at ``path``, as JSON: one result a profile, under its name.

    ``exact_rows`` is demanded where it is known, as for published data; else the contract's minimum.
    """
    columns, classes = profile_parquet(path, contract)
    least, most = (exact_rows, exact_rows) if exact_rows is not None else (contract.minimum_rows[split], None)
    context = _fresh_context()
    return {
        "columns": _validate_frame(context, columns, "columns", column_expectations(contract)),
        "classes": _validate_frame(context, classes, "classes", class_expectations(contract, least, most)),
    }


def profile_parquet(path: Path, contract: DatasetContract) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Profiles of the values themselves, not of the footer's statistics, which a writer may have got wrong.

    Returns two frames. Columns: position, column, expected_column, type, nulls (NaN counts), minimum, maximum and the
    bounds that the contract sets; one row a column, of the file or of the contract. Classes: label, rows, share.
    """
    file = pq.ParquetFile(path)
    schema = file.schema_arrow
    found = schema.names
    profiles = [_ColumnProfile(str(kind)) for kind in schema.types]
    label_rows: dict[Any, int] = {}
    # Some rows at a time: memory stays bounded whatever their number, and however the writer grouped them.
    for batch in file.iter_batches(_BATCH_ROWS):
        block = bytes_of(batch)
        if block is None:
            for profile, values in zip(profiles, batch.columns, strict=True):
                profile.add(values)
        else:
            for profile, low, high in zip(profiles, block.min(axis=1), block.max(axis=1), strict=True):
                profile.add_extremes(int(low), int(high))
        if contract.label_column in found:
            for entry in pc.value_counts(batch.column(found.index(contract.label_column))).to_pylist():
                label_rows[entry["values"]] = label_rows.get(entry["values"], 0) + entry["counts"]
    rows = []
    for position in range(max(len(found), len(contract.columns))):
        name = found[position] if position < len(found) else _ABSENT
        expected = contract.columns[position] if position < len(contract.columns) else _ABSENT
        profile = profiles[position] if position < len(found) else _ColumnProfile(_ABSENT)
        low, high = contract.bounds(name)
        rows.append(
            {
                "position": position,
                "column": name,
                "expected_column": expected,
                "type": profile.type,
                "nulls": profile.nulls,
                "minimum": profile.minimum,
                "maximum": profile.maximum,
                "lower_bound": low,
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
    return pd.DataFrame(rows), classes


def bytes_of(batch: pa.RecordBatch) -> npt.NDArray[np.uint8] | None:
    """The values of a batch, uint8 (columns, rows), or None where a column has another type, or nulls."""
    if not batch.num_rows or any(kind != pa.uint8() for kind in batch.schema.types):
        return None
    if any(column.null_count for column in batch.columns):
        return None
    block = np.empty((batch.num_columns, batch.num_rows), np.uint8)
    for values, column in zip(block, batch.columns, strict=True):
        values[:] = column.to_numpy()
    return block


class _ColumnProfile:
    """Nulls, smallest and largest value of one column, over its chunks. Text has neither."""

    def __init__(self, type_name: str) -> None:
        self.type = type_name
        self.nulls = 0
        self.minimum: float | None = None
        self.maximum: float | None = None

    def add(self, values: pa.Array) -> None:
        self.nulls += values.null_count
        if pa.types.is_floating(values.type):
            self.nulls += pc.sum(pc.is_nan(values)).as_py() or 0
        if pa.types.is_integer(values.type) or pa.types.is_floating(values.type):
            extremes = pc.min_max(values).as_py()
            if extremes["min"] is not None:
                self.add_extremes(extremes["min"], extremes["max"])

    def add_extremes(self, low: float, high: float) -> None:
        self.minimum = low if self.minimum is None else min(low, self.minimum)
        self.maximum = high if self.maximum is None else max(high, self.maximum)


def column_expectations(contract: DatasetContract) -> "Sequence[Expectation]":
    """What every column owes: place, type, no nulls, range."""
    import great_expectations.expectations as gxe

    return [
        gxe.ExpectColumnPairValuesToBeEqual(column_A="column", column_B="expected_column"),
        gxe.ExpectColumnValuesToBeInSet(column="type", value_set=[_TYPE]),
        gxe.ExpectColumnValuesToBeBetween(column="nulls", min_value=0, max_value=0),
        # A range says nothing of a column without values: that it has some is an expectation of its own.
        gxe.ExpectColumnValuesToNotBeNull(column="minimum"),
        gxe.ExpectColumnValuesToNotBeNull(column="maximum"),
        gxe.ExpectColumnPairValuesAToBeGreaterThanB(
            column_A="minimum", column_B="lower_bound", or_equal=True, ignore_row_if="either_value_is_missing"
        ),
        gxe.ExpectColumnPairValuesAToBeGreaterThanB(
            column_A="upper_bound", column_B="maximum", or_equal=True, ignore_row_if="either_value_is_missing"
        ),
    ]


def class_expectations(contract: DatasetContract, least: int, most: int | None) -> "Sequence[Expectation]":
    """What the labels owe together: every class there and no other, none with more than its share, enough rows."""
    import great_expectations.expectations as gxe

    return [
        gxe.ExpectColumnDistinctValuesToEqualSet(
            column="label", value_set=[str(label) for label in range(contract.classes)]
        ),
        gxe.ExpectColumnMaxToBeBetween(column="share", max_value=contract.maximum_class_share),
        gxe.ExpectColumnSumToBeBetween(column="rows", min_value=least, max_value=most),
    ]


def _fresh_context() -> "EphemeralDataContext":
    """For one split, each of whose frames gets a datasource of its own.

    Two validators on one pandas datasource can judge the wrong batch (great_expectations issue 12209).
    """
    import_great_expectations()
    import great_expectations as gx
    from great_expectations.data_context.types.base import ProgressBarsConfig

    # It tells of each temporary folder that it makes and removes.
    logging.getLogger("great_expectations.data_context.types.base").setLevel(logging.WARNING)
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False, metric_calculations=False)
    return context


def import_great_expectations() -> None:
    """Import it, for seconds the first time; a caller that waits for something else may do so ahead of the stage."""
    # Before the import: it is read then. Nothing about the data leaves the machine.
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
    import great_expectations.expectations  # noqa: F401


def _validate_frame(
    context: "EphemeralDataContext", frame: pd.DataFrame, name: str, expectations: "Sequence[Expectation]"
) -> dict[str, Any]:
    import great_expectations as gx

    batch = (
        context.data_sources.add_pandas(name)
        .add_dataframe_asset(name)
        .add_batch_definition_whole_dataframe(name)
        .get_batch({"dataframe": frame})
    )
    # The whole list in the constructor: adding one by one compares all pairs each time.
    suite = gx.ExpectationSuite(name=name, expectations=list(expectations))
    index = "column" if name == "columns" else "label"
    result: dict[str, Any] = batch.validate(
        suite, result_format={"result_format": "COMPLETE", "unexpected_index_column_names": [index]}
    ).to_json_dict()
    return result


def summarize(result: dict[str, Any]) -> dict[str, Any]:
    """Rows for a table, a sentence for each broken expectation, and the columns that broke one (ten at most)."""
    rows: list[dict[str, Any]] = []
    broken: list[str] = []
    problems: list[dict[str, Any]] = []
    for profile, verdict in result.items():
        for entry in verdict["results"]:
            config = entry["expectation_config"]
            kwargs = {key: value for key, value in config["kwargs"].items() if key != "batch_id"}
            subject = kwargs.get("column") or f"{kwargs['column_A']}, {kwargs['column_B']}"
            rows.append(
                {
                    "profile": profile,
                    "expectation": config["type"],
                    "of": subject,
                    "result": "met" if entry["success"] else "broken",
                }
            )
            if entry["success"]:
                continue
            broken.append(_sentence(profile, config["type"], subject, kwargs, entry))
            for found in entry["result"].get("unexpected_index_list") or []:
                if len(problems) < 10:
                    column, value = _place(found)
                    # Line 0: a profile knows the column; the line is ingest's to name.
                    problems.append({"line": 0, "column": column, "value": value, "reason": config["type"]})
    return {"rows": rows, "broken": broken, "problems": problems}


def _place(found: dict[str, Any]) -> tuple[str, str]:
    """Where a profile broke an expectation, and the values there."""
    name = "column" if "column" in found else "label"
    return str(found[name]), ", ".join(f"{key} {value}" for key, value in found.items() if key != name)


def _sentence(profile: str, kind: str, subject: str, kwargs: dict[str, Any], entry: dict[str, Any]) -> str:
    result = entry["result"]
    if entry["exception_info"].get("raised_exception"):
        return f"{kind} of {profile}.{subject} could not be judged: {entry['exception_info']['exception_message']}"
    if places := result.get("unexpected_index_list"):
        shown = ", ".join("{} ({})".format(*_place(place)) for place in places[:5])
        more = f" and {len(places) - 5} more" if len(places) > 5 else ""
        return f"{kind} of {subject} in {shown}{more}"
    bounds = {key: value for key, value in kwargs.items() if key in ("min_value", "max_value", "value_set")}
    received = result.get("observed_value")
    if received is None:
        received = {key: result[key] for key in ("partial_missing_list", "partial_unexpected_list") if key in result}
    return f"{kind} of {profile}.{subject}: expected {bounds}, received {received}"
