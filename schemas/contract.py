"""What a dataset promises. Each fact about Fashion-MNIST stands here once; suites and messages derive from it."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Literal, get_args

from schemas.errors import WrongUsage

Split = Literal["train", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
# The names of the contracts, as a type: a flow parameter of another name is refused before anything runs.
DatasetName = Literal["fashion-mnist", "digits"]

_PROFILES = Path(__file__).parent / "profiles"


@dataclass(frozen=True)
class IdxFile:
    """One of the four files that the dataset was published as.

    ``gzip_sha256`` names the file as its authors packed it; ``content_sha256`` names what is inside, which stays the
    same however it is packed (Debian packs it anew).
    """

    name: str
    gzip_bytes: int
    gzip_sha256: str
    content_sha256: str


@dataclass(frozen=True)
class PublishedSplit:
    """A split as its authors published it. ``rows_sha256`` is `tasks.fetch.rows_digest`: free of row order.

    ``images`` and ``labels`` where it was published as IDX.
    """

    rows: int
    rows_sha256: str
    images: IdxFile | None = None
    labels: IdxFile | None = None


@dataclass(frozen=True)
class BundledData:
    """Images that come with scikit-learn, unsplit: ``loader`` of `sklearn.datasets`.

    ``test_rows`` of them are the test split, every class in proportion, as `tasks.prepare.stratified_split` draws them
    with ``seed``.
    """

    loader: str
    test_rows: int
    seed: int


@dataclass(frozen=True)
class Check:
    """What `tasks.validate` knows about a split beyond types and ranges: one figure, and its bounds.

    Past ``warn`` it is told and goes on, past ``fail`` the split is refused; None: no such bound. Past is above, or
    below where ``low_is_bad``. ``found``: how the bounds were found.
    """

    name: str
    says: str
    found: str
    warn: float | None = None
    fail: float | None = None
    low_is_bad: bool = False

    def fails(self, figure: float) -> bool:
        """Whether a split with this figure is refused."""
        return self._past(self.fail, figure)

    def tells(self, figure: float) -> bool:
        """Whether a split with this figure is warned of, or refused."""
        return self._past(self.warn, figure) or self.fails(figure)

    def _past(self, bound: float | None, figure: float) -> bool:
        return bound is not None and (figure < bound if self.low_is_bad else figure > bound)


@dataclass(frozen=True)
class DatasetContract:
    """The form of one image dataset kept as CSV: a header, then a label and the pixels of one image a row.

    Pixels are integers, row-major from the top left; ``pixel_min`` is background. Labels are 0 .. classes - 1.
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
    # Root mean square difference of two images' pixels, as a share of the pixel range, up to which they are near
    # duplicates.
    near_duplicate: float
    # Baseline profile, from `python -m benchmarks.make_profile`. Without one, the checks that need it are skipped.
    reference: Path | None = None
    # Where the published data is to be had.
    kaggle_slug: str | None = None
    mirrors: tuple[str, ...] = ()
    debian_package: str | None = None
    debian_folder: str | None = None
    bundled: BundledData | None = None
    # For the model card in report.html, in words; nothing depends on them.
    licence: str = ""
    known_limits: tuple[str, ...] = ()

    label_column = "label"

    @property
    def pixels(self) -> int:
        """Pixels an image."""
        return self.height * self.width

    @property
    def classes(self) -> int:
        return len(self.class_names)

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """The header, in order: ``label, pixel1, ..``."""
        return (self.label_column, *(f"pixel{number}" for number in range(1, self.pixels + 1)))

    def bounds(self, column: str) -> tuple[int, int]:
        """Smallest and largest value that ``column`` may hold."""
        return (0, self.classes - 1) if column == self.label_column else (self.pixel_min, self.pixel_max)

    def check(self, name: str) -> Check:
        return {check.name: check for check in self.checks}[name]

    def csv_name(self, split: Split) -> str:
        return f"{self.name}_{split}.csv"


# Images of a split that figures about how they look are taken of, drawn with one seed. All of them would move such
# a figure by a hundredth.
SAMPLE_ROWS = 2_048

# How the bounds were found: figures of random subsets of the published test splits, of 100 rows (300 of them), of 200
# (300) and of 1,000 (60), none of which is warned of, against those of the same data made wrong.
# `python -m benchmarks.checks` prints them anew.
CHECKS: tuple[Check, ...] = (
    Check(
        "polarity",
        "How much better the classes' mean images agree with those of the reference once they are inverted: difference "
        "of the mean correlations",
        "right data: -1.23 to -0.84; inverted: 0.88 to 1.22",
        fail=0,
    ),
    Check(
        "orientation",
        "How much better they agree turned, mirrored or transposed than as they are, measured in the same way",
        "right data: -0.20 to -0.12; turned, mirrored or transposed: 0.17 to 0.92",
        fail=0,
    ),
    Check(
        "position",
        "How much better they agree moved by a pixel to any side than as they are, measured in the same way; -1 where "
        "they are inverted or turned",
        "right data: -0.19 to -0.01; columns moved by one: 0.05, and of the digits likeness fails",
        warn=0,
        fail=0.03,
    ),
    Check(
        "likeness",
        "How well they agree in the orientation and polarity that fit best: mean correlation",
        "right data: 0.93 or more; pixels permuted, or noise: 0.23 or less; shuffled labels: 0.77",
        fail=0.6,
        low_is_bad=True,
    ),
    Check(
        "inverted_images",
        "Share of images whose border is brighter than the middle of the range: background is the smallest value",
        "right data: none",
        warn=0.001,
        fail=0.01,
    ),
    Check(
        "background",
        "Share of images without a pixel of the background, the smallest value of the range",
        "right data: none",
        warn=0,
        fail=0.1,
    ),
    Check(
        "brightest_pixel",
        "Largest pixel of an image, the median of the images, as a share of the range",
        "right data: 1; halved: 0.5; zeros and ones: 0.004",
        warn=0.95,
        fail=0.75,
        low_is_bad=True,
    ),
    Check(
        "label_permutation",
        "Whether more images are like the reference's mean image of their class once labels are renamed in the best "
        "way: p-value of McNemar's exact test, one-sided",
        "right data: 0.02 or more; labels shifted: 1e-90 or less; two classes swapped: 1e-10 or less of 2,048 images, "
        "up to 0.1 of 100",
        warn=1e-2,
        fail=1e-4,
        low_is_bad=True,
    ),
    Check(
        "label_relation",
        "Share of the pixels' variance that labels explain (omega squared, every class weighed alike), relative to "
        "the reference",
        "right data: 0.81 or more; 15 % of the labels shuffled: 0.7; 30 %: 0.5; all: 0.01 or less",
        warn=0.7,
        fail=0.6,
        low_is_bad=True,
    ),
    Check(
        "label_agreement",
        "Share of images that of all mean images of the reference are most like that of their class (upper end of "
        "Wilson's interval, z = 4), relative to the reference",
        "right data: 1.01 or more; 15 % of the labels shuffled: 0.9; 30 %: 0.8; all: 0.25 or less",
        warn=0.95,
        fail=0.8,
        low_is_bad=True,
    ),
    Check(
        "odd_parts",
        "Share of the parts of a split, each of 128 or more images that are looked at in file order, that would be "
        "refused by themselves for how they look, for the range of their pixels or for their labels; parts with less "
        "than 3 images of a class, or with more than half of them blank, are left out",
        "right data: none; a tenth of 10,000 rows, in one piece, made wrong: 0.06 to 0.13; a tenth of 359: 0",
        fail=0,
    ),
    Check(
        "class_imbalance",
        "Rows of the largest class for each row of the smallest",
        "random subsets of 100 rows: up to 17, of 200: up to 5",
        warn=10,
    ),
    Check(
        "constant_columns",
        "Share of the pixels that have one value in all rows, where that is not background, or where by the reference "
        "less than one split of a million would have such a pixel by chance",
        "right data: none",
        warn=0,
        fail=0.05,
    ),
    Check("blank_images", "Share of images of one value alone", "right data: none", warn=0, fail=0.01),
    Check("repeated_images", "Share of images that stand in an earlier row, too", "right data: none", warn=0, fail=0.1),
    Check(
        "test_images_in_train",
        "Share of test images that stand in train, too",
        "right data: none; up to the second bound figures are given with and without them",
        warn=0,
        fail=0.1,
    ),
    Check(
        "near_duplicates_in_train",
        "Share of the other test images that all but stand in train",
        "right data: 6 of 10,000 of Fashion-MNIST, known as such; none of the digits",
        warn=0.005,
        fail=0.1,
    ),
    Check(
        "drift",
        "Distance of the distribution of pixel values from that of the champion's train split, or from the reference "
        "where no champion was made from other data: Jensen-Shannon, to the base 2",
        "right data: 0.07 or less; 10 % brighter: 0.13; 20 % brighter: 0.2",
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
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    ),
    minimum_rows=MappingProxyType({"train": 1_000, "test": 100}),
    maximum_class_share=0.5,
    published=MappingProxyType(
        {
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
        }
    ),
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
        "somewhat flattered; those that are nearly the same to the pixel are counted above.",
        "Some images carry a wrong label, in both splits (arXiv 1912.05283): a few of the mistakes that are shown here "
        "are the label's.",
        "Studio pictures of one shop, cut out, centred, grey and turned upright: other photographs are another task.",
    ),
)

DIGITS = DatasetContract(
    name="digits",
    height=8,
    width=8,
    pixel_min=0,
    pixel_max=16,
    class_names=("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    minimum_rows=MappingProxyType({"train": 500, "test": 100}),
    maximum_class_share=0.5,
    published=MappingProxyType(
        {
            "train": PublishedSplit(
                rows=1_438, rows_sha256="87e4fab0f62a07d302c1852cb9ee044443d343482f18a87ae3db41c4c3d09f21"
            ),
            "test": PublishedSplit(
                rows=359, rows_sha256="e8e626027d88364e73bdbc75542388e07fe9ffe809143daa0d19aa8bdd12a49d"
            ),
        }
    ),
    checks=CHECKS,
    near_duplicate=0.03,
    reference=_PROFILES / "digits.json",
    bundled=BundledData(loader="load_digits", test_rows=359, seed=0),
    licence='CC BY 4.0: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning '
    "Repository, 1998",
    known_limits=(
        "The 1,797 images that come with scikit-learn are the test part alone of the 5,620 that were published: "
        "figures of others on all of them are another matter.",
        "13 people wrote these, of the 43 who wrote all. Train and test are drawn from them at random, so each "
        "writer's digits stand in both: the test accuracy says little about a hand that was never seen.",
        "Images of 8 x 8 pixels, each 0 to 16: the black ones counted in 4 x 4 blocks of a bitmap of 32 x 32, size and "
        "place made alike. Digits from another scanner or preparation are another task.",
    ),
)

CONTRACTS: Mapping[str, DatasetContract] = MappingProxyType(
    {contract.name: contract for contract in (FASHION_MNIST, DIGITS)}
)


def contract_of(dataset: str) -> DatasetContract:
    """The contract of that name; raises `WrongUsage`, naming those that there are."""
    if dataset not in CONTRACTS:
        raise WrongUsage(f"There is no dataset {dataset!r}: expected one of {', '.join(CONTRACTS)}.")
    return CONTRACTS[dataset]
