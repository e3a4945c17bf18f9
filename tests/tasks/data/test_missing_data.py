"""The description of a folder without the CSVs: its content, and the names that were likely intended."""

from pathlib import Path

import pytest

from schemas.contract import FASHION_MNIST
from tasks.data.missing_data import describe_missing, likely_names
from tests.field_faults import field_fault
from tests.tasks.data.published import TEST, TRAIN, supply

EITHER = f"{TRAIN} or {TEST}"


@pytest.mark.parametrize(
    ("name", "intended"),
    [
        pytest.param(
            "fashion-mnist_train.CSV",
            TRAIN,
            marks=field_fault(
                "input replaced silently",
                "A CSV has another spelling or format: case, underscore, zip, tar, Parquet",
                "The error lists the name with the likely intended one",
            ),
        ),
        ("fashion_mnist_train.csv", TRAIN),
        ("Fashion-MNIST_test.csv.GZ", f"{TEST}.gz"),
        ("train.csv", TRAIN),
        ("testing.csv", TEST),
        ("fashion-mnist_trian.csv", TRAIN),
        ("fashion-mnist_train.csv ", TRAIN),
        ("Copy of fashion-mnist_test (1).csv", "fashion-mnist_test-1.csv"),
        ("train_2024-b.csv", "fashion-mnist_train-2024-b.csv"),
        ("fashion-mnist_train.csv.zip", TRAIN),
        ("fashion-mnist_test.tar.gz", TEST),
        ("train.parquet", TRAIN),
        ("t10k-images-idx3-ubyte.gz", TEST),
        (".fashion-mnist_train.csv.icloud", TRAIN),
        ("archive.zip", EITHER),
        ("fashionmnist.zip", EITHER),
        ("images.csv", EITHER),
    ],
)
def test_likely_names(tmp_path: Path, name: str, intended: str) -> None:
    supply(tmp_path, name)
    assert likely_names(FASHION_MNIST, tmp_path) == {name: intended}
    assert f"{name!r} (did you mean {intended}?)" in str(describe_missing(FASHION_MNIST, tmp_path))


@pytest.mark.parametrize(
    "name",
    [
        *("README.md", "notes.txt", ".DS_Store", "._fashion-mnist_train.csv", ".gitkeep", "digits_train.csv"),
        *(".fashion-mnist.lock", "fashion-mnist.source.json", TRAIN, "fashion-mnist_test-1.csv.gz"),
    ],
)
def test_other_names_have_no_likely_name(tmp_path: Path, name: str) -> None:
    supply(tmp_path, name)
    assert likely_names(FASHION_MNIST, tmp_path) == {}


@pytest.mark.parametrize("name", [TRAIN, "test.csv"])
def test_a_folder_of_csvs_is_a_likely_name(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty-train").mkdir()
    supply(tmp_path / "archive", name)
    assert likely_names(FASHION_MNIST, tmp_path) == {"archive": f"the folder {tmp_path / 'archive'}"}


def test_one_missing_split_is_described_with_its_own_names(tmp_path: Path) -> None:
    supply(tmp_path, TRAIN, "fashion-mnist_train_2.csv", "fashion_mnist_test.csv")
    text = str(describe_missing(FASHION_MNIST, tmp_path))
    assert text.startswith(f"{tmp_path} contains {TRAIN} but not {TEST}. Expected both splits.")
    assert f"'fashion_mnist_test.csv' (did you mean {TEST}?), '{TRAIN}'" in text
    supply(tmp_path, TEST)
    assert describe_missing(FASHION_MNIST, tmp_path) is None


def test_a_missing_folder_is_described_with_its_siblings(tmp_path: Path) -> None:
    (tmp_path / "fashion").mkdir()
    (tmp_path / "link").symlink_to("gone")
    text = str(describe_missing(FASHION_MNIST, tmp_path / "fasion"))
    assert text.startswith(f"{tmp_path / 'fasion'} does not exist. Expected a folder with {TRAIN} and {TEST}.")
    assert f"{tmp_path} contains 'fashion' (did you mean {tmp_path / 'fashion'}?), 'link'." in text
    assert "link is a link to gone, which does not exist" in str(describe_missing(FASHION_MNIST, tmp_path / "link"))


def test_the_list_of_names_is_bounded(tmp_path: Path) -> None:
    supply(tmp_path, *(f"{number}.png" for number in range(10, 40)), "train.csv")
    text = str(describe_missing(FASHION_MNIST, tmp_path))
    assert f"The folder contains 'train.csv' (did you mean {TRAIN}?), '10.png', '11.png'" in text
    assert text.endswith("'16.png' and 23 more.")
