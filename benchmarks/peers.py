"""The peers of ingest and validate: pandas, polars, DuckDB, and a plain Great Expectations suite."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from schemas.contract import DatasetContract


def plain_ingests(source: Path, target: Path, columns: Sequence[str]) -> dict[str, Callable[[], object]]:
    """Return variants of CSV to Parquet, by name. All columns contain bytes; "bytes" variants declare it."""
    import duckdb
    import polars as pl

    polars_types = dict.fromkeys(columns, pl.UInt8)
    duckdb_types = f", types={dict.fromkeys(columns, 'UTINYINT')}"

    def pandas_variant(**options: Any) -> Callable[[], object]:
        return lambda: pd.read_csv(source, **options).to_parquet(target)

    def duckdb_variant(types: str) -> Callable[[], object]:
        reader = f"read_csv('{source}', store_rejects=true{types})"
        return lambda: duckdb.connect().sql(f"COPY (FROM {reader}) TO '{target}' (FORMAT parquet)")

    return {
        "pandas": pandas_variant(),
        "pandas, bytes": pandas_variant(dtype="uint8"),
        "pandas, engine pyarrow": pandas_variant(engine="pyarrow"),
        "pandas, engine pyarrow, bytes": pandas_variant(engine="pyarrow", dtype="uint8"),
        "polars": lambda: pl.read_csv(source).write_parquet(target),
        "polars, bytes": lambda: pl.read_csv(source, schema_overrides=polars_types).write_parquet(target),
        "polars, bytes, streamed": lambda: pl.scan_csv(source, schema_overrides=polars_types).sink_parquet(target),
        "DuckDB": duckdb_variant(""),
        "DuckDB, bytes": duckdb_variant(duckdb_types),
    }


def plain_suite_accepts(frame: pd.DataFrame, contract: DatasetContract, rows: int) -> bool:
    """Validate with expectations on every column, as Great Expectations' tutorials do. Return True on success."""
    import great_expectations as gx
    import great_expectations.expectations as gxe
    from great_expectations.data_context.types.base import ProgressBarsConfig

    pixel_columns = [column for column in contract.columns if column != contract.label_column]
    expectations = [
        gxe.ExpectTableColumnsToMatchOrderedList(column_list=list(contract.columns)),
        gxe.ExpectTableRowCountToEqual(value=rows),
        *(gxe.ExpectColumnValuesToNotBeNull(column=column) for column in contract.columns),
        gxe.ExpectColumnValuesToBeInSet(column=contract.label_column, value_set=list(range(contract.classes))),
        *(
            gxe.ExpectColumnValuesToBeBetween(column=column, min_value=contract.pixel_min, max_value=contract.pixel_max)
            for column in pixel_columns
        ),
    ]
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False, metric_calculations=False)
    batch = (
        context.data_sources.add_pandas("pandas")
        .add_dataframe_asset("split")
        .add_batch_definition_whole_dataframe("whole")
        .get_batch({"dataframe": frame})
    )
    return bool(batch.validate(gx.ExpectationSuite(name="plain", expectations=expectations)).success)
