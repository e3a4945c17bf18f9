"""The peers of ingest and validate: plain pandas and a plain Great Expectations suite, in the same process."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from schemas.contract import DatasetContract


def pandas_ingests(source: Path, target: Path) -> dict[str, Callable[[], None]]:
    """Return the variants of CSV to Parquet with pandas. The fastest one is the peer."""

    def variant(**options: Any) -> Callable[[], None]:
        return lambda: pd.read_csv(source, **options).to_parquet(target)

    return {
        "pandas c": variant(engine="c"),
        "pandas c uint8": variant(engine="c", dtype="uint8"),
        "pandas pyarrow": variant(engine="pyarrow"),
        "pandas pyarrow uint8": variant(engine="pyarrow", dtype="uint8"),
    }


def plain_suite_accepts(path: Path, contract: DatasetContract, rows: int) -> bool:
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
        .get_batch({"dataframe": pd.read_parquet(path)})
    )
    return bool(batch.validate(gx.ExpectationSuite(name="plain", expectations=expectations)).success)
