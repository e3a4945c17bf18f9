"""Read the data contract of a dataset from its TOML file: files, columns, value ranges, classes and checks.

docs/data.md describes the keys. The project's own files are in schemas/datasets/, and yours are in `datasets_folder`.
"""

import hashlib
import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cache, cached_property
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    FiniteFloat,
    GetJsonSchemaHandler,
    TypeAdapter,
    ValidationError,
)
from pydantic_core import CoreSchema

from schemas.config import MinimumRobustness, datasets_folder
from schemas.errors import WrongUsage

Split = Literal["train", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
DEFAULT_DATASET = "fashion-mnist"
# Names of store folders, and parts of the keys of Prefect's artifacts.
NAME_PATTERN = "^[a-z0-9]+(-[a-z0-9]+)*$"

_SHIPPED = Path(__file__).parent / "datasets"
_STRICT = ConfigDict(extra="forbid", strict=True)

Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Label = Annotated[int, Field(ge=-(2**31), lt=2**31)]
Text = Annotated[str, Field(min_length=1)]
Side = Annotated[int, Field(ge=2, le=1_000)]
Byte = Annotated[int, Field(ge=0, le=255)]
Rows = Annotated[int, Field(ge=0)]
SplitRows = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(gt=0, le=1)]
CsvFileName = Annotated[str, Field(pattern=r"^[^/\\\x00-\x1f]+\.csv$")]


@dataclass(frozen=True)
class IdxFile:
    """One of the four IDX files of the published dataset.

    gzip_sha256: digest of the file as its authors compressed it. content_sha256: digest of its content, which does not
    depend on the compression (Debian compresses it again).
    """

    __pydantic_config__ = _STRICT

    name: str
    gzip_bytes: Rows
    gzip_sha256: Digest
    content_sha256: Digest


@dataclass(frozen=True)
class PublishedSplit:
    """A split as its authors published it, with its IDX files if there are any.

    rows_sha256: `tasks.data.sources.rows_digest`, which does not depend on row order.
    """

    __pydantic_config__ = _STRICT

    rows: Rows
    rows_sha256: Digest
    images: IdxFile | None = None
    labels: IdxFile | None = None


@dataclass(frozen=True)
class BundledData:
    """Images that come with scikit-learn, without splits: ``loader`` of `sklearn.datasets`.

    `tasks.data.splits.stratified_split` draws the ``test_rows`` of the test split with ``seed``.
    """

    __pydantic_config__ = _STRICT

    loader: str
    test_rows: Rows
    seed: Rows


@dataclass(frozen=True)
class Sources:
    """Places from which the published data can be downloaded."""

    __pydantic_config__ = _STRICT

    kaggle_slug: str | None = None
    mirrors: tuple[str, ...] = ()
    debian_package: str | None = None
    debian_folder: str | None = None
    bundled: BundledData | None = None


@dataclass(frozen=True)
class Minima:
    """The accuracy, the recall of each class and the accuracy by disturbance below which a version is rejected."""

    __pydantic_config__ = _STRICT

    minimum_accuracy: Annotated[float, Field(ge=0, le=1)] = 0.80
    minimum_recall: Annotated[float, Field(ge=0, le=1)] = 0.30
    minimum_robustness: MinimumRobustness | None = None


@dataclass(frozen=True)
class Bounds:
    """The bounds of a check in a dataset file. Without one, the check has no such bound."""

    __pydantic_config__ = _STRICT

    warn: FiniteFloat | None = None
    fail: FiniteFloat | None = None


@dataclass(frozen=True)
class Check:
    """One rule about a measurement of a split, beyond types and ranges.

    A value beyond ``warn`` logs a warning, beyond ``fail`` rejects the split; None: no such bound. Beyond is above, or
    below if ``low_is_bad``. evidence: measurements that the bounds were derived from.
    """

    name: str
    description: str
    evidence: str
    warn: float | None = None
    fail: float | None = None
    low_is_bad: bool = False

    @property
    def bounds(self) -> Bounds:
        return Bounds(self.warn, self.fail)

    @property
    def off(self) -> bool:
        return self.warn is None and self.fail is None

    def fails(self, value: float) -> bool:
        """Return whether a split with this value is rejected."""
        return self._exceeds(self.fail, value)

    def warns(self, value: float) -> bool:
        """Return whether a split with this value is rejected or causes a warning."""
        return self._exceeds(self.warn, value) or self.fails(value)

    def _exceeds(self, bound: float | None, value: float) -> bool:
        return bound is not None and (value < bound if self.low_is_bad else value > bound)


class PixelScale(NamedTuple):
    """The pixel values that become 0 and 1 when images are normalized."""

    minimum: int
    maximum: int


# Images that are sampled for checks of images and labels. With all of them, measurements would change by about 1 %.
SAMPLE_ROWS = 2_048

# The bounds were derived from random subsets of the published test splits, which cause no warning: 300 of 100 rows, 300
# of 200 rows and 60 of 1,000 rows. They are compared with faulty copies of the same data.
# `python -m benchmarks.checks` prints the measurements.
SPLIT_CHECKS: tuple[Check, ...] = (
    Check(
        "polarity",
        "Gain in mean correlation with the baseline's mean images if the images are inverted",
        "correct data: -1.23 to -0.84; inverted: 0.29 to 0.70",
        fail=0,
    ),
    Check(
        "orientation",
        "Gain in mean correlation if the images are turned, mirrored or transposed; -1 if they are moved",
        "correct data: -0.20 to -0.12; turned, mirrored or transposed: 0.17 to 0.92",
        fail=0,
    ),
    Check(
        "position",
        "Gain in mean correlation if the images are moved by 1 to 12 pixels to any side; -1 if they are inverted or "
        "turned",
        "correct data: -0.19 to -0.01; columns moved by one: 0.05 (digits: 0.42)",
        warn=0,
        fail=0.03,
    ),
    Check(
        "similarity",
        "Mean correlation with the baseline's mean images, in the polarity, orientation and position that fit best",
        "correct data: 0.93 or more; pixels permuted, or noise: 0.23 or less; labels shuffled: 0.78",
        fail=0.6,
        low_is_bad=True,
    ),
    Check(
        "inverted_images",
        "Share of images whose border is brighter than the middle of the pixel range",
        "correct data: none",
        warn=0.001,
        fail=0.01,
    ),
    Check(
        "background",
        "Share of images without a background pixel, the smallest value of the range",
        "correct data: none",
        warn=0,
        fail=0.1,
    ),
    Check(
        "brightest_pixel",
        "Median over all images of the largest pixel, as a share of the pixel range",
        "correct data: 1; halved: 0.5; zeros and ones: 0.004",
        warn=0.95,
        fail=0.75,
        low_is_bad=True,
    ),
    Check(
        "label_permutation",
        "p-value of the gain in images that match the baseline's mean image of their class if labels are renamed in "
        "the best way (McNemar's exact test, one-sided)",
        "correct data: 0.02 or more; labels shifted: 1e-90 or less; two classes swapped: 1e-10 or less with 2,048 "
        "images, up to 0.1 with 100",
        warn=1e-2,
        fail=1e-4,
        low_is_bad=True,
    ),
    Check(
        "label_relation",
        "Share of the pixels' variance that labels explain (omega squared, equal weight per class), relative to the "
        "baseline",
        "correct data: 0.81 or more; 15 % of the labels shuffled: 0.7; 30 %: 0.5; all: 0.01 or less",
        warn=0.7,
        fail=0.6,
        low_is_bad=True,
    ),
    Check(
        "label_agreement",
        "Nearest-class-mean accuracy (upper end of Wilson's interval, z = 4), relative to the baseline",
        "correct data: 1.01 or more; 15 % of the labels shuffled: 0.9; 30 %: 0.8; all: 0.25 or less",
        warn=0.95,
        fail=0.8,
        low_is_bad=True,
    ),
    Check(
        "faulty_chunks",
        "Share of chunks, in file order, and of the files of a split in shards, that would fail on their own because "
        "of orientation, pixel range or labels. A chunk has at least 128 sampled images, and 12 per class; chunks with "
        "fewer than 3 images of a class, or with more than half of them blank, are skipped, and so are such files",
        "correct data: none; a tenth of 10,000 rows faulty, in one piece: 0.06 to 0.13; a tenth of 359: 0; one of 100 "
        "shards of 600 rows: 0.01",
        fail=0,
    ),
    Check(
        "class_imbalance",
        "Rows of the largest class per row of the smallest",
        "random subsets of 100 rows: up to 17; of 200: up to 5",
        warn=10,
    ),
    Check(
        "constant_columns",
        "Share of pixels with the same value in all rows. Constant background counts only if the baseline makes it "
        "unlikely: fewer than one split in a million would have such a pixel by chance",
        "correct data: none",
        warn=0,
        fail=0.05,
    ),
    Check(
        "blank_images",
        "Share of images with the same value in every pixel",
        "correct data: none",
        warn=0,
        fail=0.01,
    ),
    Check("repeated_images", "Share of images that repeat an earlier row", "correct data: none", warn=0, fail=0.1),
    Check(
        "test_images_in_train",
        "Share of test images that are copies of train images",
        "correct data: none; below the second bound, metrics are reported with and without them",
        warn=0,
        fail=0.1,
    ),
    Check(
        "near_duplicates_in_train",
        "Share of the other test images that are near duplicates of train images",
        "correct data: 6 of 10,000 in Fashion-MNIST, which are known; none in the digits",
        warn=0.005,
        fail=0.1,
    ),
    Check(
        "drift",
        "Jensen-Shannon distance (base 2) of the pixel histogram from that of the champion's train split, or from the "
        "baseline if no champion was trained on other data",
        "correct data: 0.07 or less; 10 % brighter: 0.13; 20 % brighter: 0.2",
        warn=0.1,
    ),
)

# Measured per day and version by watch-predictions. `python -m benchmarks.watched` prints what their bounds were chosen
# by.
PREDICTION_CHECKS = (
    Check(
        "prediction_drift",
        "Watched predictions: Jensen-Shannon distance (base 2) of a day's pixel histogram from that of the version's "
        "train split for the predicted classes, less what chance explains",
        "quiet days of 500 rows: 0.023 or less; 5 % brighter or darker: 0.03 to 0.09; 10 %: 0.1 or more; inverted: 0.7",
        warn=0.04,
    ),
    Check(
        "prediction_classes",
        "Watched predictions: p-value of the chi-square test that a day's predicted classes have the shares of the "
        "version's test split",
        "quiet days of 500 rows: 0.0005 or more; five times as many images of one class: 1e-9 or less",
        warn=1e-5,
        low_is_bad=True,
    ),
    Check(
        "estimated_accuracy",
        "Watched predictions: test accuracy of the version less the upper end of a day's estimated accuracy",
        "quiet days of 200 to 2,000 rows: below 0; five times as many of the most difficult class: 0.02 to 0.04",
        warn=0.02,
    ),
    Check(
        "measured_accuracy",
        "Watched predictions: p-value of the exact binomial test that the accuracy on a day's labels is that of the "
        "version's test split for the same classes",
        "a bound that one day in 10,000 exceeds by chance",
        warn=1e-4,
        low_is_bad=True,
    ),
)

CHECKS = (*SPLIT_CHECKS, *PREDICTION_CHECKS)

# Other bounds for photographs: they have no background, fill the range as the light allows, and resemble each other.
PHOTOGRAPHS: Mapping[str, Bounds] = {
    **dict.fromkeys(("inverted_images", "background", "brightest_pixel"), Bounds()),
    "label_relation": Bounds(warn=0.5, fail=0.3),
    "label_agreement": Bounds(warn=0.8, fail=0.5),
    "near_duplicates_in_train": Bounds(warn=0.005),
    "drift": Bounds(warn=0.2),
    "prediction_drift": Bounds(warn=0.08),
}
Kind = Literal["drawings", "photographs"]
_KINDS: Mapping[Kind, Mapping[str, Bounds]] = {"drawings": {}, "photographs": PHOTOGRAPHS}


_NO_BACKGROUND = BeforeValidator(lambda value: None if value == "none" else value)
_OFF = BeforeValidator(lambda value: Bounds() if value == "off" else value)


@dataclass(frozen=True, kw_only=True)
class DatasetFile:
    """The keys of a dataset file, in the order in which `docs/data.md` describes them.

    labels: the name of each class by its label in the CSVs. background: the pixel value of empty areas, None for
    images without any. naming: the names of the pixel columns, such as "pixel1..", or "none" for CSVs without a header.
    transpose: the CSVs have the pixels column by column. holdout: share of the train rows that is the test split.
    files: names of the CSVs, if they are others than NAME_train.csv and NAME_test.csv. near_duplicate: largest root
    mean square difference of near duplicates, as a share of the pixel range. known_limits, licence: text of the model
    card. check_bounds: bounds that differ from those of ``kind``. promotion: used where `PromotionConfig` has None.
    """

    __pydantic_config__ = _STRICT

    height: Side
    width: Side
    labels: Annotated[Mapping[Label, Text], Field(min_length=2, max_length=256)]
    pixel_min: Byte = 0
    pixel_max: Byte = 255
    background: Annotated[Byte | None, _NO_BACKGROUND] = 0
    label_column: Text = "label"
    naming: Annotated[str, Field(alias="columns")] = "pixel1.."
    transpose: bool = False
    holdout: Annotated[float, Field(gt=0, lt=1)] | None = None
    files: Mapping[Split, CsvFileName] = field(default_factory=dict)
    minimum_rows: Mapping[Split, SplitRows] = field(default_factory=lambda: {"train": 1_000, "test": 100})
    maximum_class_share: Share = 0.5
    near_duplicate: Share = 0.02
    kind: Kind = "drawings"
    check_bounds: Annotated[Mapping[str, Annotated[Bounds, _OFF]], Field(alias="checks")] = field(default_factory=dict)
    promotion: Minima = Minima()
    published: Mapping[Split, PublishedSplit] = field(default_factory=dict)
    sources: Sources = Sources()
    licence: str = ""
    known_limits: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raise ValueError if keys contradict each other."""
        if self.pixel_min >= self.pixel_max:
            raise ValueError(f"expected pixel_min below pixel_max, received {self.pixel_min} and {self.pixel_max}")
        if self.background not in (None, self.pixel_min, self.pixel_max):
            raise ValueError(
                f'background: expected {self.pixel_min}, {self.pixel_max} or "none", received {self.background}'
            )
        if len(set(self.labels.values())) < len(self.labels):
            raise ValueError("labels: expected a different name for each label")
        for key, table in (("minimum_rows", self.minimum_rows), ("published", self.published)):
            if table and set(table) != set(SPLITS):
                raise ValueError(f"{key}: expected train and test, received {', '.join(table)}")
        if self.label_column in self._file_pixels:
            raise ValueError(f"label_column: expected a name that is no pixel's, received {self.label_column!r}")
        names = {check.name for check in CHECKS}
        if unknown := set(self.check_bounds) - names:
            raise ValueError(f"checks: expected names of {', '.join(sorted(names))}, received {min(unknown)!r}")
        for check in self.checks:
            if check.warn is not None and check.fail is not None and check.fails(check.warn):
                raise ValueError(f"checks.{check.name}: expected a warning before the failure, received {check.warn:g}")

    @cached_property
    def checks(self) -> tuple[Check, ...]:
        """Return every check with its bounds for this dataset. A check that is off has none."""
        bounds = {**_KINDS[self.kind], **self.check_bounds}
        return tuple(replace(check, **vars(bounds.get(check.name, check.bounds))) for check in CHECKS)

    @property
    def pixels(self) -> int:
        """Return the number of pixels per image."""
        return self.height * self.width

    @cached_property
    def _file_pixels(self) -> tuple[str, ...]:
        """Return the names of the pixel columns in the order of the CSVs. Raises ValueError for another ``naming``."""
        first, dots, last = ("pixel1", "..", "") if self.naming == "none" else self.naming.partition("..")
        rows, across = (self.width, self.height) if self.transpose else (self.height, self.width)
        if grid := re.fullmatch(r"(.*?)(\d+)x(\d+)", first):
            top, left = int(grid[2]), int(grid[3])
            names = [f"{grid[1]}{top + row}x{left + column}" for row in range(rows) for column in range(across)]
        elif numbered := re.fullmatch(r"(.*?)(\d+)", first):
            start, digits = int(numbered[2]), len(numbered[2])
            names = [f"{numbered[1]}{start + at:0{digits}}" for at in range(self.pixels)]
        if not dots or not (grid or numbered) or last not in ("", names[-1]):
            raise ValueError(
                'columns: expected the first name, then two dots, such as "pixel0..", "1x1..28x28", or "none" for CSVs '
                f"without a header; received {self.naming!r} for {self.height} x {self.width} pixels"
            )
        return tuple(names)


@dataclass(frozen=True, kw_only=True)
class DatasetContract(DatasetFile):
    """The format and the checks of one image dataset stored as CSV: one row per image, usually below a header.

    A row is the label and the pixels, integers, row-major from the top left. Ingest replaces the label by its class, 0
    .. classes - 1 in the order of the labels.

    path: the dataset file. digest: that of its keys and values, which no comment changes. reference: the baseline
    profile, a JSON file beside the dataset file. Without it, the checks that need it are skipped.
    """

    name: str
    path: Path
    digest: str
    reference: Path | None = None

    @property
    def scale(self) -> PixelScale:
        """Return the pixel values that become 0 and 1. The background becomes 0."""
        if self.background == self.pixel_max:
            return PixelScale(self.pixel_max, self.pixel_min)
        return PixelScale(self.pixel_min, self.pixel_max)

    @property
    def classes(self) -> int:
        return len(self.labels)

    @cached_property
    def class_labels(self) -> tuple[int, ...]:
        """Return the label of each class, in ascending order."""
        return tuple(sorted(self.labels))

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        return tuple(self.labels[label] for label in self.class_labels)

    @property
    def has_header(self) -> bool:
        return self.naming != "none"

    @property
    def file_columns(self) -> tuple[str, ...]:
        """Return the column names in the order of the CSVs."""
        return (self.label_column, *self._file_pixels)

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """Return the column names: the label, then the pixels of the upright image row by row."""
        if not self.transpose:
            return self.file_columns
        places = (column * self.height + row for row in range(self.height) for column in range(self.width))
        return (self.label_column, *(self._file_pixels[place] for place in places))

    @property
    def can_be_fetched(self) -> bool:
        """Return whether the data is published, and a source of it is known."""
        return bool(self.published) and self.sources != Sources()

    @property
    def csv_splits(self) -> tuple[Split, ...]:
        """Return the splits that have CSVs of their own."""
        return SPLITS if self.holdout is None else ("train",)

    @property
    def label_ranges(self) -> str:
        """Return the labels as text, such as "0..8, 10..24"."""
        runs = [
            [label for _, label in run]
            for _, run in groupby(enumerate(self.class_labels), key=lambda entry: entry[1] - entry[0])
        ]
        return ", ".join(f"{run[0]}..{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)

    def bounds(self, column: str) -> tuple[int, int]:
        """Return the smallest and the largest value of ``column`` after ingest."""
        return (0, self.classes - 1) if column == self.label_column else (self.pixel_min, self.pixel_max)

    def check(self, name: str) -> Check:
        return next(check for check in self.checks if check.name == name)

    def csv_name(self, split: Split) -> str:
        """Return the name of a split's CSV. With a holdout both splits have the same."""
        source = split if split in self.csv_splits else "train"
        return self.files.get(source, f"{self.name}_{source}.csv")


# --- dataset files ---


def dataset_paths() -> dict[str, Path]:
    """Return the file of each dataset by the name that the file has. No file is read."""
    folders = (_SHIPPED, datasets_folder())
    return {path.stem: path for folder in folders for path in sorted(folder.glob("[!.]*.toml"))}


def shipped_contracts() -> list[DatasetContract]:
    """Return the contracts of the project's own datasets."""
    return [_read(path) for path in sorted(_SHIPPED.glob("*.toml"))]


def contract_of(dataset: str) -> DatasetContract:
    """Return the contract with that name. Raises `WrongUsage` if there is none, or its file is wrong."""
    paths = dataset_paths()
    if dataset not in paths:
        raise WrongUsage(
            f"There is no dataset {dataset!r}: expected one of {', '.join(sorted(paths))}. `fashion-ann dataset init "
            "NAME --from DIR` makes one from CSVs."
        )
    path = paths[dataset]
    if path.parent != _SHIPPED and (_SHIPPED / path.name).exists():
        raise WrongUsage(f"{path} has the name of a dataset of the project. Expected another name. Rename the file.")
    return _read(path)


def check_name(name: str) -> None:
    """Raise `WrongUsage` unless ``name`` can name a dataset: its store, and artifacts in Prefect's UI."""
    if not re.fullmatch(NAME_PATTERN, name) or len(name) > 64:
        likely = re.sub("[^a-z0-9]+", "-", name.lower()).strip("-")[:64]
        raise WrongUsage(
            f"Expected the name of a dataset: up to 64 characters of a-z, 0-9 and single dashes, received {name!r}. "
            f"Use {likely or 'another name'}."
        )


def _read(path: Path) -> DatasetContract:
    """Return the contract in ``path``. Raises `WrongUsage`, which names the file and the key."""
    try:
        check_name(path.stem)
        reference = path.with_suffix(".json")
        return parse_contract(path, path.read_bytes(), reference if reference.exists() else None)
    except (OSError, ValueError, RecursionError, WrongUsage) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error).rstrip(".")
        raise WrongUsage(f"{path}: {reason}. Correct the file; docs/data.md describes its keys.") from error


@cache
def parse_contract(path: Path, content: bytes, reference: Path | None = None) -> DatasetContract:
    """Return the contract of ``content``, the dataset file at ``path``. Raises ValueError, which names the key."""
    table = tomllib.loads(content.decode())
    try:
        # As JSON, because there strict pydantic reads the keys of `labels` as integers, and arrays as tuples.
        keys = _adapter().validate_json(json.dumps(table, default=str))
    except ValidationError as error:
        raise ValueError("; ".join(map(_describe, error.errors()[:3]))) from error
    if other := [key for key in table["labels"] if key not in map(str, keys.labels)]:
        raise ValueError(f"labels: expected integers such as 1 or -1, received {other[0]}")
    values = {entry.name: getattr(keys, entry.name) for entry in fields(keys)}
    digest = hashlib.sha256(json.dumps(table, sort_keys=True, default=str).encode()).hexdigest()
    return DatasetContract(**values, name=path.stem, path=path, digest=digest, reference=reference)


@cache
def _adapter() -> TypeAdapter[DatasetFile]:
    return TypeAdapter(DatasetFile)


def _describe(error: Any) -> str:
    """Return key, expected and received value of an error of pydantic."""
    key = ".".join(map(str, error["loc"]))
    match error["type"]:
        case "unexpected_keyword_argument":
            return f"{key}: expected no such key"
        case "missing_argument" | "missing":
            return f"{key}: expected this key, received none"
        case "value_error":
            return str(error["ctx"]["error"])
    return f"{key}: {error['msg']}, received {error['input']!r:.80}"


def _registered(name: str) -> str:
    try:
        return contract_of(name).name
    except WrongUsage as error:
        raise ValueError(str(error)) from error


class _ListedNames:
    """Add the names of all datasets to the JSON schema of a parameter."""

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {**handler(schema), "enum": sorted(dataset_paths())}


# A flow parameter: Prefect rejects any other name before the run starts. Its form has the names of the last `deploy`.
DatasetName = Annotated[str, AfterValidator(_registered), _ListedNames()]

FASHION_MNIST = _read(_SHIPPED / f"{DEFAULT_DATASET}.toml")
