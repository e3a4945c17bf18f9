"""Validate a split with Great Expectations: columns, types, nulls, ranges, classes, row count and image checks.

The expectations read two small profiles of the Parquet's values: one row per column, and one row per class. The
measurements of the image checks are further columns of the second. 1,571 expectations on the table itself would find
less and take sixty times as long.
"""

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from schemas.contract import DatasetContract, Split
from schemas.layout import PROFILE_NAME, RESULT_NAME, SKETCHES_NAME, TEST_IN_TRAIN_NAME
from schemas.references import DuplicateReport
from tasks.checks.chunks import ONE_FILE, Shards
from tasks.checks.expectations import fresh_context
from tasks.checks.image_checks import locate_leaks, measure_checks, measure_leaks
from tasks.checks.image_profile import ImageProfile, profile_images, write_profile
from tasks.checks.measurements import Measurement
from tasks.checks.near_duplicates import Sketches, duplicate_report, find_test_images_in_train
from tasks.checks.scan import COLUMN_TYPE, Scan
from tasks.checks.summary import summarize
from tasks.runtime.files import write_json

if TYPE_CHECKING:
    import pandas as pd
    from great_expectations.data_context import EphemeralDataContext
    from great_expectations.expectations import Expectation


@dataclass(frozen=True)
class ValidationResult:
    """The result of validating one split.

    result: Great Expectations' results as JSON, by profile: "columns" and "classes".
    profile, sketches: None if columns, types or labels are not the contract's.
    in_train, duplicates: what was compared with the train split; None without one.
    """

    result: dict[str, Any]
    profile: ImageProfile | None = None
    sketches: Sketches | None = None
    in_train: npt.NDArray[np.uint8] | None = None
    duplicates: DuplicateReport | None = None

    def write(self, folder: Path) -> dict[str, Any]:
        """Write the files of the validate stage to ``folder`` and return its facts: the summary and the duplicates."""
        write_json(folder / RESULT_NAME, self.result)
        if self.profile is not None and self.sketches is not None:
            write_profile(folder / PROFILE_NAME, self.profile)
            self.sketches.save(folder / SKETCHES_NAME)
        if self.in_train is not None:
            np.save(folder / TEST_IN_TRAIN_NAME, self.in_train)
        return {
            **summarize(self.result),
            "duplicates": None if self.duplicates is None else self.duplicates.model_dump(),
        }


def validate_split(
    scan: Scan,
    files: Sequence[Path],
    contract: DatasetContract,
    split: Split,
    *,
    exact_rows: int | None = None,
    champion: ImageProfile | None = None,
    train: tuple[Sketches, Sequence[Path]] | None = None,
    shards: Shards = ONE_FILE,
    train_shards: Shards = ONE_FILE,
) -> ValidationResult:
    """Validate a split from the ``scan`` of its Parquet ``files``.

    exact_rows: the number of rows that is expected; without it, at least the contract's minimum is expected.
    champion: the profile that drift is measured from; without it, the contract's baseline.
    train: sketches and Parquet files of the train split that a test split is compared with.
    shards, train_shards: the CSVs of both, which the result names where one is at fault.
    """
    sample = scan.sample
    profile, in_train, duplicates = None, None, None
    measurements: dict[str, Measurement] = {}
    with ThreadPoolExecutor(1) as executor:
        if sample is not None and train is not None:
            # The longest step: it runs beside the others.
            search = executor.submit(find_test_images_in_train, *train, sample.sketches, files, contract)
        context = fresh_context()
        columns = validate_frame(context, scan.columns, "columns", "column", column_expectations())
        if sample is not None:
            profile = profile_images(sample.images, sample.labels, contract)
            measurements = measure_checks(scan, sample, profile, contract, champion, shards)
        if sample is not None and train is not None:
            in_train = search.result()
            duplicates = duplicate_report(train[0], sample.sketches, in_train)
            leaks, sketches = measure_leaks(duplicates, scan.rows), (train[0], sample.sketches)
            measurements |= locate_leaks(leaks, in_train, sketches, (train_shards, shards), contract)
    # In the frame of the classes, because another frame costs as much as all expectations on it.
    classes = scan.classes.assign(**{name: measurement.value for name, measurement in measurements.items()})
    expectations = class_expectations(contract, contract.minimum_rows[split], exact_rows)
    expectations += check_expectations(contract, measurements)
    result = {"columns": columns, "classes": validate_frame(context, classes, "classes", "label", expectations)}
    return ValidationResult(result, profile, None if sample is None else sample.sketches, in_train, duplicates)


def column_expectations() -> "list[Expectation]":
    """Return the expectations on every column: position, type, no nulls, range.

    Values that a profile lacks, such as the extremes of a column of text, are ignored.
    """
    import great_expectations.expectations as gxe

    order = "column order: every column must be at its position in the contract"
    types = f"column types: every column must be {COLUMN_TYPE}"
    smallest = "smallest values: none may be below the lower bound of its column"
    largest = "largest values: none may be above the upper bound of its column"
    pair: Any = gxe.ExpectColumnPairValuesAToBeGreaterThanB
    present = {"or_equal": True, "ignore_row_if": "either_value_is_missing"}
    return [
        gxe.ExpectColumnPairValuesToBeEqual(
            column_A="column",
            column_B="expected_column",
            ignore_row_if="neither",
            **_text(order, "column", "==", "expected_column"),
        ),
        gxe.ExpectColumnValuesToBeInSet(
            column="type", value_set=[COLUMN_TYPE], **_text(types, "type", "==", COLUMN_TYPE)
        ),
        gxe.ExpectColumnValuesToBeInSet(
            column="nulls", value_set=[0], **_text("nulls: no value may be missing", "nulls", "==", "0")
        ),
        pair(column_A="minimum", column_B="lower_bound", **present, **_text(smallest, "minimum", ">=", "lower_bound")),
        pair(column_A="upper_bound", column_B="maximum", **present, **_text(largest, "maximum", "<=", "upper_bound")),
    ]


def class_expectations(contract: DatasetContract, minimum_rows: int, exact_rows: int | None) -> "list[Expectation]":
    """Return the expectations on the labels: every class and no other, none too frequent, and the row count."""
    import great_expectations.expectations as gxe

    labels = [str(label) for label in contract.class_labels]
    listed = ", ".join(labels)
    share = contract.maximum_class_share
    shares = f"class shares: no class may have more than {share:.0%} of the rows"
    if exact_rows is None:
        rows = _text("row count: at least the contract's minimum", "rows", ">=", str(minimum_rows))
    else:
        rows = _text("row count: as published", "rows", "==", str(exact_rows))
    return [
        # Two expectations: Great Expectations 1.24 cannot render a failure of ExpectColumnDistinctValuesToEqualSet.
        gxe.ExpectColumnDistinctValuesToContainSet(
            column="label", value_set=labels, **_text("classes: every class must occur", "label", "contains", listed)
        ),
        gxe.ExpectColumnValuesToBeInSet(
            column="label", value_set=labels, **_text("labels: every label must be a class", "label", "in", listed)
        ),
        gxe.ExpectColumnValuesToBeBetween(
            column="share", max_value=share, **_text(shares, "share", "<=", f"{share:g}")
        ),
        gxe.ExpectColumnSumToBeBetween(
            column="rows", min_value=minimum_rows if exact_rows is None else exact_rows, max_value=exact_rows, **rows
        ),
    ]


def check_expectations(contract: DatasetContract, measurements: Mapping[str, Measurement]) -> "list[Expectation]":
    """Return one expectation per bound of each check that was measured."""
    import great_expectations.expectations as gxe

    expectations: list[Expectation] = []
    for check in contract.checks:
        if check.name not in measurements:
            continue
        # Every row has the same value, so the largest or the smallest is compared.
        between: Any = gxe.ExpectColumnMinToBeBetween if check.low_is_bad else gxe.ExpectColumnMaxToBeBetween
        end, relation, side = ("min_value", ">=", "below") if check.low_is_bad else ("max_value", "<=", "above")
        detail = measurements[check.name].detail
        for bound, severity, verb in ((check.warn, "warning", "Warns"), (check.fail, "critical", "Fails")):
            if bound is not None:
                description = f"{check.name}: {check.description}. {verb} {side} {bound:g}."
                text = _text(
                    f"{description} Details: {detail}." if detail else description,
                    *(check.name, relation, f"{bound:g}"),
                    check=True,
                )
                expectations.append(
                    between(column=check.name, **{end: bound}, severity=severity, notes=detail or None, **text)
                )
    return expectations


def _text(description: str, subject: str, relation: str, expected: str, check: bool = False) -> dict[str, Any]:
    """Return the fields for people, and those for `summarize`: ``expected`` is a value, or a column of the profile."""
    meta = {"subject": subject, "relation": relation, "expected": expected, "check": check}
    return {"description": description, "meta": meta}


def validate_frame(
    context: "EphemeralDataContext", frame: "pd.DataFrame", name: str, index: str, expectations: "list[Expectation]"
) -> dict[str, Any]:
    """Return the results of ``expectations`` on ``frame`` as JSON; its column ``index`` names the rows that fail."""
    import great_expectations as gx
    from great_expectations.datasource.fluent import PandasDatasource
    from great_expectations.datasource.fluent.pandas_datasource import DataFrameAsset

    # Not with `context.data_sources` and a batch definition: each addition there writes the whole context as YAML.
    source = PandasDatasource(name=name, assets=[DataFrameAsset(name=name)])
    asset = context._add_fluent_datasource(source, save_changes=False).get_asset(name)
    batch = asset.get_batch(asset.build_batch_request({"dataframe": frame}))
    # The list in the constructor: `add_expectation` compares all pairs each time.
    suite = gx.ExpectationSuite(name=name, expectations=expectations)
    verdict = batch.validate(suite, result_format="BASIC")
    if not verdict.success:
        # Only now name the rows that fail: that takes a third longer.
        verdict = batch.validate(
            suite, result_format={"result_format": "COMPLETE", "unexpected_index_column_names": [index]}
        )
    # Converted separately: `to_json_dict` of the verdict converts each result twice.
    results, verdict.results = verdict.results, []
    # Great Expectations groups results by column.
    order = [expectation.description for expectation in expectations]
    results.sort(key=lambda result: order.index(result.expectation_config.description))
    converted = {**verdict.to_json_dict(), "results": [result.to_json_dict() for result in results]}
    # JSON has no infinite numbers: they become text.
    parsed: dict[str, Any] = json.loads(json.dumps(converted), parse_constant=str)
    for entry in parsed["results"]:
        # Great Expectations 1.24 lists at most 20 missing labels, in no fixed order.
        entry["result"].get("partial_missing_list", []).sort(key=int)
    return parsed
