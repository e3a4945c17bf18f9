"""Great Expectations judges a split: its columns, types, nulls, ranges, classes, rows, and what its images look like.

The suite looks at two small profiles of the Parquet's own values: one row a column; and one row a class, with figures
about all images beside it, each of which has expectations of its own, the bounds of a `schemas.contract.Check`. 1,571
expectations on the table would say less, a hundred times slower.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from schemas.contract import Check, DatasetContract, Split
from tasks.checks.expectations import fresh_context, join_first, own_expectations
from tasks.checks.image_checks import Measurement, measure_checks, measure_leaks
from tasks.checks.image_profile import ImageProfile, profile_images
from tasks.checks.near_duplicates import Sketches, find_test_images_in_train
from tasks.checks.scan import _TYPE, scan_parquet

if TYPE_CHECKING:
    import pandas as pd
    from great_expectations.data_context import EphemeralDataContext
    from great_expectations.expectations import Expectation


@dataclass(frozen=True)
class ValidationResult:
    """``result``: what Great Expectations says, as JSON, one result a profile, under its name.

    The rest is None where the data is not of the contract's form; ``in_train`` also where there was no train split.
    """

    result: dict[str, Any]
    profile: ImageProfile | None = None
    sketches: Sketches | None = None
    in_train: npt.NDArray[np.uint8] | None = None


def validate_parquet(
    path: Path,
    contract: DatasetContract,
    split: Split,
    *,
    exact_rows: int | None = None,
    champion: ImageProfile | None = None,
    train: tuple[Sketches, Path] | None = None,
) -> ValidationResult:
    """Judge the Parquet at ``path``.

    ``exact_rows`` is demanded where it is known, as for published data; else the contract's minimum. ``champion`` is
    what drift is told from. ``train`` is the split that a test split is compared with.
    """
    scan = scan_parquet(path, contract)
    sample = scan.sample
    least, most = (exact_rows, exact_rows) if exact_rows is not None else (contract.minimum_rows[split], None)
    profile, in_train, figures = None, None, {}
    with ThreadPoolExecutor(1) as beside:
        # It takes longer than all that does not wait for it.
        finding = None
        if sample is not None and train is not None:
            finding = beside.submit(find_test_images_in_train, *train, sample.sketches, path, contract)
        context = fresh_context()
        columns = _validate_frame(context, scan.columns, "columns", column_expectations())
        if sample is not None:
            profile = profile_images(sample.images, sample.labels, contract)
            figures = measure_checks(scan, sample, profile, contract, champion)
        if finding is not None:
            in_train = finding.result()
            figures |= measure_leaks(in_train)
    # The figures stand beside each class: a frame of their own would cost as much as all their expectations.
    classes = scan.classes.assign(**{name: figure.value for name, figure in figures.items()})
    owed = [*class_expectations(contract, least, most), *image_expectations(contract, figures)]
    result = {"columns": columns, "classes": _validate_frame(context, classes, "classes", owed)}
    return ValidationResult(result, profile, None if sample is None else sample.sketches, in_train)


def column_expectations() -> "Sequence[Expectation]":
    """What every column owes: place, type, no nulls, range."""
    owed = (
        ("column", "==", "expected_column", "order: the columns should be the contract's, each in its place"),
        ("type", "==", "expected_type", f"types: every column should be {_TYPE}"),
        ("nulls", "==", "expected_nulls", "nulls: no value should be missing"),
        # They say nothing of a column without values, as one that is missing, is text, or has nulls alone.
        ("minimum", ">=", "lower_bound", "smallest values: none should be below the bound of its column"),
        ("maximum", "<=", "upper_bound", "largest values: none should be above the bound of its column"),
    )
    expectation = own_expectations().columns
    return [
        expectation(found=found, relation=relation, owed=bound, description=says)
        for found, relation, bound, says in owed
    ]


def class_expectations(contract: DatasetContract, least: int, most: int | None) -> "Sequence[Expectation]":
    """What the labels owe together: every class there and no other, none with more than its share, enough rows."""
    own = own_expectations()
    return [
        own.values(
            column="label",
            value_set=[str(label) for label in range(contract.classes)],
            description="classes: each should be there, and no other label",
        ),
        own.summary(
            column="share",
            summary="largest",
            max_value=contract.maximum_class_share,
            description=f"shares: no class should have more than {contract.maximum_class_share:.0%} of the rows",
        ),
        own.summary(
            column="rows",
            summary="sum",
            min_value=least,
            max_value=most,
            description="rows: there should be enough, of all classes",
        ),
    ]


def image_expectations(contract: DatasetContract, figures: Mapping[str, Measurement]) -> "Sequence[Expectation]":
    """What the images owe: each figure within the bounds of its check, one expectation a bound."""
    return [
        _bounded(check, bound, severity, figures[check.name])
        for check in contract.checks
        if check.name in figures
        for bound, severity in ((check.warn, "warning"), (check.fail, "critical"))
        if bound is not None
    ]


def _bounded(check: Check, bound: float, severity: str, figure: Measurement) -> "Expectation":
    end, word = ("min_value", "least") if check.low_is_bad else ("max_value", "most")
    otherwise = "a warning" if severity == "warning" else "the split is refused"
    found = f" Found: {figure.says}." if figure.says else ""
    return own_expectations().figure(
        figure=check.name,
        **{end: bound},
        severity=severity,
        description=f"{check.name}: {check.says}. At {word} {bound:g}, else {otherwise}.{found}",
        notes=figure.says or None,
    )


def _validate_frame(
    context: "EphemeralDataContext", frame: "pd.DataFrame", name: str, expectations: "Sequence[Expectation]"
) -> dict[str, Any]:
    import great_expectations as gx
    from great_expectations.datasource.fluent import PandasDatasource
    from great_expectations.datasource.fluent.pandas_datasource import DataFrameAsset

    # Not by `context.data_sources`, nor with a batch definition: with each thing that is added there the whole context,
    # which is gone after the verdict, is written out as YAML.
    source = PandasDatasource(name=name, assets=[DataFrameAsset(name=name)])
    asset = context._add_fluent_datasource(source, save_changes=False).get_asset(name)
    batch = asset.get_batch(asset.build_batch_request({"dataframe": frame}))
    # The whole list in the constructor: adding one by one compares all pairs each time.
    suite = gx.ExpectationSuite(name=name, expectations=list(expectations))
    verdict = batch.validate(suite, result_format={"result_format": "BASIC"})
    # Apart from the rest, with which each of them would be written twice.
    results, verdict.results = verdict.results, []
    return {**verdict.to_json_dict(), "results": [result.to_json_dict() for result in results]}


def summarize(result: dict[str, Any]) -> dict[str, Any]:
    """Rows for a table, the fields of a `CheckResult` for each bound of a check, a sentence for each broken
    expectation, those that only warn apart, and the columns that broke one (ten at most)."""
    rows: list[dict[str, Any]] = []
    checks: list[dict[str, Any]] = []
    broken: list[str] = []
    warnings: list[str] = []
    problems: list[dict[str, Any]] = []
    for profile, verdict in result.items():
        for entry in verdict["results"]:
            config = entry["expectation_config"]
            kwargs = {key: value for key, value in config["kwargs"].items() if key != "batch_id"}
            subject = kwargs.get("figure") or kwargs.get("found") or kwargs["column"]
            only_warns = config["severity"] == "warning"
            rows.append(
                {
                    "profile": profile,
                    "expectation": config["type"],
                    "of": subject,
                    "figure": entry["result"].get("observed_value"),
                    "bound": _bound(kwargs),
                    "severity": config["severity"],
                    "result": "met" if entry["success"] else "warned" if only_warns else "broken",
                }
            )
            if "figure" in kwargs:
                validated = {key: rows[-1][key] for key in ("figure", "bound", "severity", "result")}
                checks.append({"check": subject, **validated, "says": config.get("notes") or ""})
            if entry["success"]:
                continue
            (warnings if only_warns else broken).append(_sentence(profile, config, subject, kwargs, entry))
            for row in entry["result"].get("unexpected_index_list") or []:
                if len(problems) < 10:
                    of, value, bound = _place(kwargs, row)
                    # Line 0: a profile knows the column; the line is ingest's to name.
                    problems.append(
                        {"line": 0, "column": row["column"], "value": value, "reason": f"expected {of}{bound}"}
                    )
    failed = {sentence.partition(":")[0] for sentence in broken}
    return {
        "rows": rows,
        "checks": checks,
        "broken": broken,
        # What failed need not be warned of as well.
        "warnings": [sentence for sentence in warnings if sentence.partition(":")[0] not in failed],
        "problems": problems,
    }


def _bound(kwargs: Mapping[str, Any]) -> str:
    """What is held to what, such as ``<= 0.1``; empty where an expectation has no such bound."""
    if "owed" in kwargs:
        return f"{kwargs['relation']} {kwargs['owed']}"
    ends = ((">=", kwargs.get("min_value")), ("<=", kwargs.get("max_value")))
    return " and ".join(f"{sign} {bound:g}" for sign, bound in ends if bound is not None)


def _place(kwargs: Mapping[str, Any], row: Mapping[str, Any]) -> tuple[str, str, str]:
    """In a column that broke an expectation: of what it was, empty for the column's name, what was found, and what
    was expected."""
    of = "" if kwargs["found"] == "column" else f"{kwargs['found']} "
    relation = "" if kwargs["relation"] == "==" else f"{kwargs['relation']} "
    return of, str(row[kwargs["found"]]), f"{relation}{row[kwargs['owed']]}"


def _sentence(profile: str, config: dict[str, Any], subject: str, kwargs: dict[str, Any], entry: dict[str, Any]) -> str:
    result = entry["result"]
    # Its own, or one under the name of each metric that could not be had.
    for info in (entry["exception_info"], *entry["exception_info"].values()):
        if isinstance(info, dict) and info.get("raised_exception"):
            return f"{config['type']} of {profile}.{subject} could not be judged: {info['exception_message']}"
    says = config["description"]
    if "owed" in kwargs:
        places = []
        for row in result["unexpected_index_list"]:
            of, value, bound = _place(kwargs, row)
            places.append(f"{row['column']} ({f'{of}{value}, ' if of else ''}expected {bound})")
        return f"{says}; broken by {join_first(places, 5)}"
    if "figure" in kwargs:
        (end, bound) = next((end, kwargs[end]) for end in ("min_value", "max_value") if kwargs.get(end) is not None)
        found = f"{config['notes']}; " if config.get("notes") else ""
        most = "least" if end == "min_value" else "most"
        return f"{subject}: {found}expected at {most} {bound:g}, received {result['observed_value']:.3g}"
    if "value_set" in kwargs:
        lacking, strange = result["missing"], result["unexpected"]
        received = " and ".join([*([f"no {lacking}"] if lacking else []), *([f"{strange} besides"] if strange else [])])
        return f"{says}; expected {', '.join(kwargs['value_set'])}, received {received}"
    return f"{says}; expected {_bound(kwargs)}, received {result.get('observed_value')}"
