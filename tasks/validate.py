"""Great Expectations judges a split: its columns, types, nulls, ranges, classes, rows, and what its images look like.

The suite looks at two small profiles of the Parquet's own values: one row a column; and one row a class, with figures
about all images beside it, each of which has expectations of its own, the bounds of a `schemas.contract.Check`. 1,571
expectations on the table would say less, a hundred times slower.
"""

import hashlib
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from prefect import task

from schemas.contract import SAMPLE_ROWS, Check, DatasetContract, Split, contract_of
from schemas.errors import CellProblem, DataContractError, FashionAnnError
from schemas.references import CheckedFigure, ParquetSplit, ValidatedSplit
from tasks.blocks import batches, bytes_of, open_parquet, row_count, taken_of
from tasks.data_docs import write_data_docs
from tasks.duplicates import (
    SKETCHES_NAME,
    TEST_IN_TRAIN_NAME,
    Sketches,
    find_in_train,
    repeated,
    report,
    sketch,
)
from tasks.expectations import first_of, fresh_context, own_expectations
from tasks.profile import (
    PROFILE_NAME,
    Figure,
    ImageProfile,
    ReferenceImages,
    border_brightness,
    compare,
    drift,
    odd_parts,
    pixel_range,
    profile_images,
    read_profile,
    reference_profile,
    write_profile,
)
from tasks.publish import publish_markdown, publish_table
from tasks.stage import Stage, run_stage, sha256_file, write_json
from tasks.store import champions, read_alias_log, read_file, read_manifest, store_folder, version_numbers

if TYPE_CHECKING:
    import pandas as pd
    from great_expectations.data_context import EphemeralDataContext
    from great_expectations.expectations import Expectation

logger = logging.getLogger(__name__)

STAGE = Stage("validate", core=("tasks.validate",))

RESULT_NAME = "great_expectations.json"
_TYPE = "uint8"
# Share of images with a bright border from which on, and up to which, what all images look like together is that of
# neither kind.
_MIXED = 0.05


@task(name="validate", task_run_name="validate {data.split}")
def validate(
    data: ParquetSplit, dataset: str, artifacts_dir: Path, train: ValidatedSplit | None = None
) -> ValidatedSplit:
    """Judge a split; the whole result lies beside the data.

    train: what the test split is compared with. What breaks the bound of a warning alone is logged, and stands in
    ``warnings``. Raises `DataContractError` naming each other broken expectation. A refused verdict is kept, too.
    """
    contract = contract_of(dataset)
    exact_rows = contract.published[data.split].rows if data.origin == "fetched" else None
    champion = champion_profile(artifacts_dir, dataset, data if train is None else train.data)

    def build(folder: Path) -> dict[str, Any]:
        beside = None if train is None else (Sketches.load(train.record.path / SKETCHES_NAME), train.data.path)
        judged = judge(
            data.path,
            contract,
            data.split,
            exact_rows=exact_rows,
            champion=None if champion is None else read_profile(champion),
            train=beside,
        )
        write_json(folder / RESULT_NAME, judged.result)
        duplicates = None
        if judged.profile is not None and judged.sketches is not None:
            write_profile(folder / PROFILE_NAME, judged.profile)
            judged.sketches.save(folder / SKETCHES_NAME)
            if beside is not None and judged.in_train is not None:
                np.save(folder / TEST_IN_TRAIN_NAME, judged.in_train)
                duplicates = report(beside[0], judged.sketches, judged.in_train).model_dump()
        return {**summarize(judged.result), "duplicates": duplicates}

    record, facts = run_stage(
        data.path.parent / "validation",
        STAGE,
        {
            "dataset": dataset,
            "split": data.split,
            # The digest of the file as it is now: an earlier verdict says nothing of one that was changed since.
            "data": sha256_file(data.path),
            "exact_rows": exact_rows,
            "reference": None if contract.reference is None else sha256_file(contract.reference),
            "champion": None if champion is None else hashlib.sha256(champion).hexdigest(),
            "train": None if train is None else train.data.sha256,
        },
        build,
    )
    docs = write_data_docs(artifacts_dir, dataset, data.split, record.path / RESULT_NAME, record.path.name)
    publish_markdown(
        f"{dataset}-{data.split}-data-docs",
        f"[Data Docs]({docs.as_uri()}): `{docs}`\n\nThe whole verdict: `{record.path / RESULT_NAME}`\n",
        f"{data.split}: what Great Expectations says, as pages",
    )
    publish_table(
        f"{dataset}-{data.split}-validation",
        facts["rows"],
        f"{data.split}: {data.rows} rows judged by Great Expectations, Data Docs in {docs}",
    )
    for line in facts["warnings"]:
        logger.warning("%s split: %s", data.split, line)
    if facts["broken"]:
        raise DataContractError(
            f"{data.split} split ({data.source.name}) breaks its contract: {'; '.join(facts['broken'])}. "
            f"The whole verdict is in {record.path / RESULT_NAME}. Mend the data and run again.",
            problems=[CellProblem(**problem) for problem in facts["problems"]],
        )
    return ValidatedSplit(
        record=record,
        data=data,
        result=record.path / RESULT_NAME,
        expectations=len(facts["rows"]),
        checks=tuple(CheckedFigure(**check) for check in facts["checks"]),
        warnings=tuple(facts["warnings"]),
        duplicates=facts["duplicates"],
    )


def champion_profile(artifacts_dir: Path, dataset: str, train: ParquetSplit) -> bytes | None:
    """What the train split looked like, as `tasks.profile` writes it, of the last champion made from another one.

    So a run on ``train`` is judged alike before and after its version is champion. None where there is no such
    champion, and where its profile cannot be read.
    """
    root = store_folder(artifacts_dir, dataset)
    try:
        present = version_numbers(root)
        for champion in reversed(champions(read_alias_log(root))):
            if champion not in present:
                continue  # gc took it
            manifest = read_manifest(root, champion)
            if manifest["data"]["train"]["csv_sha256"] != train.source.sha256:
                return read_file(root, manifest, PROFILE_NAME) if PROFILE_NAME in manifest["files"] else None
    except FashionAnnError as error:
        logger.warning("Drift from the champion's data cannot be told. %s", error)
    return None


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


@dataclass(frozen=True)
class Judged:
    """``result``: what Great Expectations says, as JSON, one result a profile, under its name.

    The rest is None where the data is not of the contract's form; ``in_train`` also where there was no train split.
    """

    result: dict[str, Any]
    profile: ImageProfile | None = None
    sketches: Sketches | None = None
    in_train: npt.NDArray[np.uint8] | None = None


def judge(
    path: Path,
    contract: DatasetContract,
    split: Split,
    *,
    exact_rows: int | None = None,
    champion: ImageProfile | None = None,
    train: tuple[Sketches, Path] | None = None,
) -> Judged:
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
            finding = beside.submit(find_in_train, *train, sample.sketches, path, contract)
        context = fresh_context()
        columns = _validate_frame(context, scan.columns, "columns", column_expectations())
        if sample is not None:
            profile = profile_images(sample.images, sample.labels, contract)
            figures = measure(scan, sample, profile, contract, champion)
        if finding is not None:
            in_train = finding.result()
            figures |= leak_figures(in_train)
    # The figures stand beside each class: a frame of their own would cost as much as all their expectations.
    classes = scan.classes.assign(**{name: figure.value for name, figure in figures.items()})
    owed = [*class_expectations(contract, least, most), *image_expectations(contract, figures)]
    result = {"columns": columns, "classes": _validate_frame(context, classes, "classes", owed)}
    return Judged(result, profile, None if sample is None else sample.sketches, in_train)


def measure(
    scan: Scan, sample: Sample, profile: ImageProfile, contract: DatasetContract, champion: ImageProfile | None
) -> dict[str, Figure]:
    """The figures of the contract's checks that this split alone, the reference and the champion's profile give."""
    class_rows = scan.classes["rows"]
    figures = {
        "class_imbalance": Figure(
            float(class_rows.max() / class_rows.min()), "rows of the largest for one of the smallest class"
        ),
        "blank_images": Figure(
            (blank := int(sample.sketches.blank.sum())) / scan.rows, f"{blank} of {scan.rows} images are of one value"
        ),
        "repeated_images": Figure(
            (again := repeated(sample.sketches)) / scan.rows, f"{again} of {scan.rows} images repeat an earlier row"
        ),
    }
    if blank > scan.rows / 2:
        return figures  # of the rest nothing that is said of images would be true
    ends = pixel_range(sample.images, contract)
    reference = reference_profile(contract)
    if reference is not None:
        bright = border_brightness(sample.images, contract) > 0.5
        figures["inverted_images"] = Figure(
            float(bright.mean()), f"{int(bright.sum())} of {len(bright)} images looked at have a bright border"
        )
        known = ReferenceImages(reference, contract)
        compared = compare(sample.images, sample.labels, contract, known, profile.label_relation)
        refused = {name for name, figure in {**ends, **compared}.items() if contract.check(name).fails(figure.value)}
        odd = odd_parts(sample.images, sample.labels, sample.rows, contract, known, refused)
        of_two_kinds = _MIXED < bright.mean() < 1 - _MIXED and not {"polarity", "likeness"} & refused
        # Where all parts are odd, and the split is, it is so as a whole.
        if odd is not None and (odd.value < 1 or not (refused or of_two_kinds)):
            figures["odd_parts"] = odd
            of_two_kinds |= odd.value > 0
        if not of_two_kinds:  # of two, what is said of all together would be true of neither
            # Of other images, how they stand and what their labels mean is no question.
            figures |= {"likeness": compared["likeness"]} if "likeness" in refused else compared
        if not {"polarity", "orientation"} & refused:
            figures["constant_columns"] = _constant_columns(scan, contract, reference)
    # The ends of the range have changed places in inverted images.
    if "polarity" not in figures or not contract.check("polarity").fails(figures["polarity"].value):
        figures |= ends
    baseline, whose = (champion, "the champion's train split") if champion is not None else (reference, "the reference")
    if baseline is not None:
        figures["drift"] = Figure(
            drift(profile, baseline), f"distance of the distribution of pixel values from that of {whose}"
        )
    return figures


def _constant_columns(scan: Scan, contract: DatasetContract, reference: ImageProfile) -> Figure:
    """Of the pixels that the reference says should vary in as many rows, and of those that are not even background."""
    pixels = scan.columns.iloc[1:]
    by_chance = (1 - np.asarray(reference.varying)) ** scan.rows * contract.pixels
    # The smallest value that there is: that of another background is told by a check of its own.
    lit = (pixels["minimum"] > pixels["minimum"].min()).to_numpy()
    constant = pixels["column"][
        (pixels["minimum"] == pixels["maximum"]).to_numpy() & (lit | (by_chance < 1e-6))
    ].tolist()
    return Figure(len(constant) / contract.pixels, first_of(constant, 5))


def leak_figures(found: npt.NDArray[np.uint8]) -> dict[str, Figure]:
    """Of a test split, from what `find_in_train` found."""
    same, near = int((found == 2).sum()), int((found == 1).sum())
    return {
        "test_images_in_train": Figure(same / len(found), f"{same} of {len(found)} test images stand in train, too"),
        "near_duplicates_in_train": Figure(
            near / len(found), f"{near} of {len(found)} test images are near duplicates of train images"
        ),
    }


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
    """Each batch and its `bytes_of`, the next one read meanwhile by a thread."""
    batch_by_batch = ((batch, bytes_of(batch)) for batch in batches(file))
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
        self._sketches = Sketches.room_for(rows, contract)

    def add(self, block: npt.NDArray[np.uint8]) -> None:
        """block: uint8 (columns, rows), the label first."""
        self._kept.append(taken_of(block, self._rows, self._drawn).T)
        self._sketches.put(self._rows, sketch(block[1:], self._contract))
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


def image_expectations(contract: DatasetContract, figures: Mapping[str, Figure]) -> "Sequence[Expectation]":
    """What the images owe: each figure within the bounds of its check, one expectation a bound."""
    return [
        _bounded(check, bound, severity, figures[check.name])
        for check in contract.checks
        if check.name in figures
        for bound, severity in ((check.warn, "warning"), (check.fail, "critical"))
        if bound is not None
    ]


def _bounded(check: Check, bound: float, severity: str, figure: Figure) -> "Expectation":
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
    """Rows for a table, the fields of a `CheckedFigure` for each bound of a check, a sentence for each broken
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
                judged = {key: rows[-1][key] for key in ("figure", "bound", "severity", "result")}
                checks.append({"check": subject, **judged, "says": config.get("notes") or ""})
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
        return f"{says}; broken by {first_of(places, 5)}"
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
