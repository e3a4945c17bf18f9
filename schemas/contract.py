"""Define the data contract of each dataset: files, columns, value ranges, classes and checks."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from schemas.errors import WrongUsage

Split = Literal["train", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
# The contracts' names as a type: Prefect rejects a flow parameter with another name before the run starts.
DatasetName = Literal["fashion-mnist", "digits"]

_PROFILES = Path(__file__).parent / "profiles"


@dataclass(frozen=True)
class IdxFile:
    """One of the four IDX files of the published dataset.

    gzip_sha256: digest of the file as its authors compressed it. content_sha256: digest of its content, which does not
    depend on the compression (Debian compresses it again).
    """

    name: str
    gzip_bytes: int
    gzip_sha256: str
    content_sha256: str


@dataclass(frozen=True)
class PublishedSplit:
    """A split as its authors published it, with its IDX files if there are any.

    rows_sha256: `tasks.data.sources.rows_digest`, which does not depend on row order.
    """

    rows: int
    rows_sha256: str
    images: IdxFile | None = None
    labels: IdxFile | None = None


@dataclass(frozen=True)
class BundledData:
    """Images that come with scikit-learn, without splits: ``loader`` of `sklearn.datasets`.

    `tasks.data.splits.stratified_split` draws the ``test_rows`` of the test split with ``seed``.
    """

    loader: str
    test_rows: int
    seed: int


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


@dataclass(frozen=True)
class DatasetContract:
    """The format and the checks of one image dataset stored as CSV: a header, then one row per image.

    A row is the label and the pixels, row-major from the top left. Pixels are integers; ``pixel_min`` is background.
    Labels are 0 .. classes - 1.
    """

    name: str
    height: int
    width: int
    pixel_min: int
    pixel_max: int
    class_names: tuple[str, ...]
    minimum_rows: Mapping[Split, int]
    maximum_class_share: float
    published: Mapping[Split, PublishedSplit]
    checks: tuple[Check, ...]
    # Largest root mean square difference of near duplicates, as a share of the pixel range.
    near_duplicate: float
    # Baseline profile, created from the published train split by `python -m benchmarks.make_profile`. Without it, the
    # checks that need it are skipped.
    reference: Path | None = None
    # Sources of the published data.
    kaggle_slug: str | None = None
    mirrors: tuple[str, ...] = ()
    debian_package: str | None = None
    debian_folder: str | None = None
    bundled: BundledData | None = None
    # Text of the model card in report.html.
    licence: str = ""
    known_limits: tuple[str, ...] = ()

    label_column = "label"

    @property
    def scale(self) -> PixelScale:
        return PixelScale(self.pixel_min, self.pixel_max)

    @property
    def pixels(self) -> int:
        """Return the number of pixels per image."""
        return self.height * self.width

    @property
    def classes(self) -> int:
        return len(self.class_names)

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """Return the column names in order: ``label, pixel1, ..``."""
        return (self.label_column, *(f"pixel{number}" for number in range(1, self.pixels + 1)))

    def bounds(self, column: str) -> tuple[int, int]:
        """Return the smallest and the largest value that ``column`` may contain."""
        return (0, self.classes - 1) if column == self.label_column else (self.pixel_min, self.pixel_max)

    def check(self, name: str) -> Check:
        return next(check for check in self.checks if check.name == name)

    def csv_name(self, split: Split) -> str:
        return f"{self.name}_{split}.csv"


# Images that are sampled for checks of images and labels. With all of them, measurements would change by about 1 %.
SAMPLE_ROWS = 2_048

# The bounds were derived from random subsets of the published test splits, which cause no warning: 300 of 100 rows, 300
# of 200 rows and 60 of 1,000 rows. They are compared with faulty copies of the same data.
# `python -m benchmarks.checks` prints the measurements.
CHECKS: tuple[Check, ...] = (
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
        "Share of chunks, in file order, that would fail on their own because of orientation, pixel range or labels. A "
        "chunk has at least 128 sampled images; chunks with fewer than 3 images of a class, or with more than half "
        "of them blank, are skipped",
        "correct data: none; a tenth of 10,000 rows faulty, in one piece: 0.06 to 0.13; a tenth of 359: 0",
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

FASHION_MNIST = DatasetContract(
    name="fashion-mnist",
    height=28,
    width=28,
    pixel_min=0,
    pixel_max=255,
    class_names=(
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    ),
    minimum_rows={"train": 1_000, "test": 100},
    maximum_class_share=0.5,
    published={
        "train": PublishedSplit(
            rows=60_000,
            images=IdxFile(
                name="train-images-idx3-ubyte.gz",
                gzip_bytes=26_421_880,
                gzip_sha256="3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
                content_sha256="c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            ),
            labels=IdxFile(
                name="train-labels-idx1-ubyte.gz",
                gzip_bytes=29_515,
                gzip_sha256="a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
                content_sha256="bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            ),
            rows_sha256="0c69d5cdeb902b69084012f812f066de080317bb3c64f43ca87f910d8ec86906",
        ),
        "test": PublishedSplit(
            rows=10_000,
            images=IdxFile(
                name="t10k-images-idx3-ubyte.gz",
                gzip_bytes=4_422_102,
                gzip_sha256="346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
                content_sha256="5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            ),
            labels=IdxFile(
                name="t10k-labels-idx1-ubyte.gz",
                gzip_bytes=5_148,
                gzip_sha256="67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
                content_sha256="0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
            ),
            rows_sha256="90c92c0507755a7d443edde8297ce4d0f131e42884e2e87e7fc9b81ffe215258",
        ),
    },
    checks=CHECKS,
    near_duplicate=0.02,
    reference=_PROFILES / "fashion-mnist.json",
    kaggle_slug="zalando-research/fashionmnist",
    mirrors=(
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        "https://storage.googleapis.com/tensorflow/tf-keras-datasets/",
    ),
    debian_package="dataset-fashion-mnist",
    debian_folder="/usr/share/datasets/fashion-mnist",
    licence="MIT, copyright 2017 Zalando SE",
    known_limits=(
        "Some test images have near-duplicates among the train images (arXiv 1906.08255), so the test accuracy is "
        "slightly too high. Those that differ in few pixels are counted above.",
        "Some images have a wrong label, in both splits (arXiv 1912.05283). A few of the errors shown here are errors "
        "of the label.",
        "The images are studio pictures of one shop: cut out, centred, grey and upright. Other photographs are another "
        "task.",
    ),
)

DIGITS = DatasetContract(
    name="digits",
    height=8,
    width=8,
    pixel_min=0,
    pixel_max=16,
    class_names=("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    minimum_rows={"train": 500, "test": 100},
    maximum_class_share=0.5,
    published={
        "train": PublishedSplit(
            rows=1_438, rows_sha256="87e4fab0f62a07d302c1852cb9ee044443d343482f18a87ae3db41c4c3d09f21"
        ),
        "test": PublishedSplit(
            rows=359, rows_sha256="e8e626027d88364e73bdbc75542388e07fe9ffe809143daa0d19aa8bdd12a49d"
        ),
    },
    checks=CHECKS,
    near_duplicate=0.03,
    reference=_PROFILES / "digits.json",
    bundled=BundledData(loader="load_digits", test_rows=359, seed=0),
    licence='CC BY 4.0: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning '
    "Repository, 1998",
    known_limits=(
        "The 1,797 images that come with scikit-learn are only the test part of the 5,620 published ones. Results on "
        "all of them are not comparable.",
        "13 of the 43 writers wrote these. Train and test are drawn at random, so both contain digits of every writer. "
        "The test accuracy does not predict the accuracy on an unknown writer.",
        "Images are 8 x 8 pixels with values 0 to 16: counts of black pixels in 4 x 4 blocks of a 32 x 32 bitmap, with "
        "size and position normalized. Digits from another scanner or preparation are another task.",
    ),
)

CONTRACTS: Mapping[str, DatasetContract] = {contract.name: contract for contract in (FASHION_MNIST, DIGITS)}


def contract_of(dataset: str) -> DatasetContract:
    """Return the contract with that name. Raises `WrongUsage`, which lists the known names."""
    if dataset not in CONTRACTS:
        raise WrongUsage(f"There is no dataset {dataset!r}: expected one of {', '.join(CONTRACTS)}.")
    return CONTRACTS[dataset]
