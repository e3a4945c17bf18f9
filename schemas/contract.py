"""What a dataset promises. Each fact about Fashion-MNIST stands here once; suites and messages derive from it."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Literal, get_args

from schemas.errors import WrongUsage

Split = Literal["train", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
# The names of the contracts, as a type: a flow parameter of another name is refused before anything runs.
DatasetName = Literal["fashion-mnist"]


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
    """A split as its authors published it. ``rows_sha256`` is `tasks.fetch.rows_digest`: free of row order."""

    rows: int
    images: IdxFile
    labels: IdxFile
    rows_sha256: str


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
    kaggle_slug: str
    mirrors: tuple[str, ...]
    debian_package: str
    debian_folder: str
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

    def csv_name(self, split: Split) -> str:
        return f"{self.name}_{split}.csv"


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
        "somewhat flattered. The duplicates that are counted above are exact ones alone.",
        "Some images carry a wrong label, in both splits (arXiv 1912.05283): a few of the mistakes that are shown here "
        "are the label's.",
        "Studio pictures of one shop, cut out, centred, grey and turned upright: other photographs are another task.",
    ),
)

CONTRACTS: Mapping[str, DatasetContract] = MappingProxyType({FASHION_MNIST.name: FASHION_MNIST})


def contract_of(dataset: str) -> DatasetContract:
    """The contract of that name; raises `WrongUsage`, naming those that there are."""
    if dataset not in CONTRACTS:
        raise WrongUsage(f"There is no dataset {dataset!r}: expected one of {', '.join(CONTRACTS)}.")
    return CONTRACTS[dataset]
