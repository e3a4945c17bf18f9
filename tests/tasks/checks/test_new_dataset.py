"""`dataset init` infers a dataset from CSVs."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from schemas.contract import Bounds, DatasetContract, contract_of
from schemas.errors import DataContractError, DataUnavailable, FashionAnnError, WrongUsage
from tasks.checks.image_profile import baseline_profile, read_profile
from tasks.checks.new_dataset import dataset_toml, init_dataset, make_profile
from tests.field_faults import field_fault
from tests.own_data import digits, numbered, photographs, split, write_csv

Write = Callable[[Path], object]


@pytest.fixture(autouse=True)
def datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of the dataset files."""
    monkeypatch.setenv("FASHION_ANN_DATASETS_DIR", str(tmp_path / "datasets"))
    return tmp_path / "datasets"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with 600 digits of 8 x 8 pixels, without a header."""
    (tmp_path / "csvs").mkdir()
    images, labels = digits(8, 1)
    for name, (some, classes) in split(images[:600], labels[:600]).items():
        write_csv(tmp_path / "csvs" / f"{name}.csv", some, classes)
    return tmp_path / "csvs"


def test_a_written_dataset_is_read_again(folder: Path, datasets: Path) -> None:
    new = init_dataset("mine", folder)
    contract = contract_of("mine")
    assert new.contract == contract
    assert contract.path == datasets / "mine.toml"
    assert contract.reference == datasets / "mine.json"
    assert (
        read_profile(contract.reference.read_bytes(), contract).class_rows
        == np.bincount(np.loadtxt(folder / "train.csv", delimiter=",", dtype=int)[:, 0]).tolist()
    )
    assert (contract.height, contract.width, contract.background, contract.kind) == (8, 8, 0, "drawings")
    assert dict(contract.minimum_rows) == {"train": 240, "test": 60}
    assert new.picture[0] == f"first image of train, label {np.loadtxt(folder / 'train.csv', delimiter=',')[0, 0]:.0f}:"
    assert len(new.picture) == 9
    (datasets / "copy.toml").write_text(dataset_toml(contract))
    assert contract_of("copy").digest == contract.digest
    minima = replace(contract.promotion, minimum_robustness={"blur": 0.7, "noise": 0.8})
    (datasets / "robust.toml").write_text(dataset_toml(replace(contract, promotion=minima)))
    assert contract_of("robust").promotion == minima


@pytest.mark.parametrize(
    ("header", "naming", "label"),
    [
        (["label", *numbered(64, 1)], "pixel1..", "label"),
        (["label", *numbered(64, 0)], "pixel0..", "label"),
        (["class", *(f"{row}x{column}" for row in range(1, 9) for column in range(1, 9))], "1x1..", "class"),
        (["y", *map(str, range(64))], "0..", "y"),
        (list(map(str, range(65))), "1..", "0"),
        ((), "none", "label"),
    ],
)
def test_columns_are_inferred(folder: Path, header: list[str], naming: str, label: str) -> None:
    for name in ("train", "test"):
        rows = np.loadtxt(folder / f"{name}.csv", delimiter=",", dtype=int)
        write_csv(folder / f"{name}.csv", rows[:, 1:].reshape(-1, 8, 8), rows[:, 0], header)
    contract = init_dataset("mine", folder).contract
    assert (contract.naming, contract.label_column, contract.pixels) == (naming, label, 64)


def test_columns_in_another_order_are_inferred(folder: Path) -> None:
    order = np.random.default_rng(0).permutation(64)
    header = ["label", *(f"{number // 8}x{number % 8}" for number in order)]
    for name in ("train", "test"):
        rows = np.loadtxt(folder / f"{name}.csv", delimiter=",", dtype=int)
        write_csv(folder / f"{name}.csv", rows[:, 1:][:, order].reshape(-1, 8, 8), rows[:, 0], header)
    contract = init_dataset("mine", folder).contract
    assert (contract.naming, contract.height, contract.width) == ("0x0..", 8, 8)


def test_sides_are_those_with_similar_rows(folder: Path) -> None:
    images, labels = digits(8, 1)
    narrow = np.repeat(images[:600, :, 1:7], 2, axis=1)  # 16 x 6
    for name, (some, classes) in split(narrow, labels[:600]).items():
        write_csv(folder / f"{name}.csv", some, classes)
    new = init_dataset("mine", folder)
    assert (new.contract.height, new.contract.width) == (16, 6)
    assert any("16 x 6 pixels" in note for note in new.notes)
    turned = init_dataset("turned", folder, transpose=True).contract
    assert (turned.height, turned.width) == (6, 16)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda images: images, (0, 255, 0)),
        (lambda images: 255 - images, (0, 255, 255)),
        (lambda images: images // 16, (0, 15, 0)),
        (lambda images: (images > 99).astype(np.uint8), (0, 1, 0)),
    ],
    ids=["dark background", "light background", "16 values", "two values"],
)
def test_range_and_background_are_inferred(
    folder: Path, change: Callable[[np.ndarray], np.ndarray], expected: tuple[int, int, int]
) -> None:
    images, labels = digits(28, 3)
    for name, (some, classes) in split(change(images[:400]), labels[:400]).items():
        write_csv(folder / f"{name}.csv", some, classes)
    new = init_dataset("mine", folder)
    assert (new.contract.pixel_min, new.contract.pixel_max, new.contract.background) == expected
    assert {check.name for check in new.contract.checks if check.off} <= {"near_duplicates_in_train"}, new.notes


def test_photographs_have_no_background(folder: Path) -> None:
    for name, seed in (("train", 0), ("test", 1)):
        write_csv(folder / f"{name}.csv", *photographs([3, 7, 8], 60, seed))
    contract = init_dataset("mine", folder).contract
    assert (contract.background, contract.kind, contract.label_ranges) == (None, "photographs", "3, 7..8")
    assert contract.check("background").bounds == Bounds()


@pytest.mark.parametrize("related", [True, False], ids=["labels of the images", "random labels, 9 of 10 alike"])
def test_minima_are_between_one_class_and_the_nearest_mean(folder: Path, related: bool) -> None:
    if not related:
        for name in ("train", "test"):
            rows = np.loadtxt(folder / f"{name}.csv", delimiter=",", dtype=int)
            rows[:, 0] = np.random.default_rng(0).choice(2, len(rows), p=(0.9, 0.1))
            np.savetxt(folder / f"{name}.csv", rows, "%d", delimiter=",")
    minima = init_dataset("mine", folder).contract.promotion
    labels = np.loadtxt(folder / "test.csv", delimiter=",", dtype=int)[:, 0]
    constant = np.bincount(labels).max() / len(labels)
    assert constant < minima.minimum_accuracy <= (0.6 if related else constant + 0.011)
    assert minima.minimum_recall < 0.25


def test_a_check_that_train_fails_is_off(folder: Path) -> None:
    rows = (folder / "train.csv").read_text().splitlines(keepends=True)
    (folder / "train.csv").write_text("".join(rows[:300] * 2))
    new = init_dataset("mine", folder)
    assert [check.name for check in new.contract.checks if check.off] == ["repeated_images", "test_images_in_train"]
    assert any(note.startswith("check repeated_images: off") for note in new.notes)


def test_near_duplicates_within_train_are_expected_in_test(folder: Path) -> None:
    images, labels = digits(28, 3)
    for name, (some, classes) in split((images > 99).astype(np.uint8), labels).items():
        write_csv(folder / f"{name}.csv", some, classes)
    new = init_dataset("mine", folder)
    assert [check.name for check in new.contract.checks if check.off] == ["near_duplicates_in_train"]
    assert not any("will reject" in note for note in new.notes)


def test_a_faulty_test_split_is_reported(folder: Path) -> None:
    rows = np.loadtxt(folder / "test.csv", delimiter=",", dtype=int)
    write_csv(folder / "test.csv", 255 - rows[:, 1:].reshape(-1, 8, 8), rows[:, 0])
    new = init_dataset("mine", folder)
    assert not any(check.off for check in new.contract.checks)
    assert any("`train` will reject it because of inverted_images, polarity" in note for note in new.notes)


def test_a_few_bad_rows_are_left_out(folder: Path) -> None:
    with (folder / "train.csv").open("a") as file:
        file.write("77,1\n")
    new = init_dataset("mine", folder)
    assert new.contract.label_ranges == "0..9"
    assert any("1 of train" in note and "--bad-rows" in note for note in new.notes)


def test_bounds_are_copied_from_another_dataset(folder: Path, datasets: Path) -> None:
    first = init_dataset("first", folder).contract
    text = first.path.read_text() + '\n[checks]\ndrift = { warn = 0.3 }\nsimilarity = "off"\n'
    first.path.write_text(text.replace("near_duplicate = 0.02", "near_duplicate = 0.04"))
    contract = init_dataset("second", folder, like="first").contract
    assert contract.near_duplicate == 0.04
    assert contract.check("drift").bounds == Bounds(warn=0.3)
    assert contract.check("similarity").off


def _only(names: str) -> Write:
    def write(folder: Path) -> None:
        (path,) = {folder / "train.csv"}
        content = path.read_bytes()
        for old in folder.iterdir():
            old.unlink()
        for name in names.split():
            (folder / name).write_bytes(content)

    return write


def _train(change: Callable[[str], str]) -> Write:
    return lambda folder: (folder / "train.csv").write_text(change((folder / "train.csv").read_text()))


def _each(change: Callable[[str], str]) -> Write:
    def write(folder: Path) -> None:
        for path in folder.iterdir():
            path.write_text(change(path.read_text()))

    return write


def _unlabelled(folder: Path) -> None:
    rows = np.loadtxt(folder / "test.csv", delimiter=",", dtype=int)
    write_csv(folder / "test.csv", rows[:, 1:].reshape(-1, 8, 8), None)


@pytest.mark.parametrize(
    ("write", "error", "message"),
    [
        (_only(""), DataUnavailable, "contains no CSV. Expected one CSV with 'train' in its name"),
        (_only("train.csv"), DataUnavailable, "Expected one CSV with 'test' in its name.*--holdout 0.1"),
        (_only("a_train.csv b_train.csv test.csv"), DataUnavailable, "contains a_train.csv, b_train.csv, test.csv"),
        (_unlabelled, DataContractError, "has one column fewer than train.csv.*--holdout 0.1"),
        (_train(lambda text: "".join(f"a{line}" for line in text.splitlines(True))), DataContractError, "such as 'a"),
        (_train(lambda text: text.replace(",0,", ",0.0,")), DataContractError, "column pixel.*received 0.0"),
        (
            _train(lambda text: "id,label," + ",".join(numbered(64, 1)) + "\n" + text),
            DataContractError,
            "'id', 'label'",
        ),
        (_train(lambda text: "PK\x03\x04" + text), DataContractError, "is not a CSV but a zip archive"),
        (_train(lambda text: ""), DataContractError, "the file is empty"),
        (_each(lambda text: "," + ",".join(numbered(64, 1)) + "\n" + text), DataContractError, "index.*index=False"),
        (_each(lambda text: "index,label," + ",".join(numbered(64, 1)) + "\n"), DataContractError, "index=False"),
        (_each(lambda text: text.replace(",", ";")), DataContractError, "received one column.*with commas"),
        (_each(lambda text: re.sub("(?m)^([0-9]+)", r"\1.0", text)), DataContractError, "as an integer"),
        (
            _each(lambda text: re.sub("(?m)^([0-9]+),(.*)$", r"\2,\1", text)),
            DataContractError,
            "first column must",
        ),
        (_each(lambda text: re.sub("(?m)^(?=.)", "9" * 9, text)), DataContractError, "less than 2147483648"),
    ],
)
def test_other_folders_are_rejected(
    folder: Path, datasets: Path, write: Write, error: type[FashionAnnError], message: str
) -> None:
    write(folder)
    with pytest.raises(error, match=f"(?s){message}"):
        init_dataset("mine", folder)
    assert not datasets.exists()


def test_the_train_split_is_found_among_others(folder: Path) -> None:
    for name in ("train", "test"):
        (folder / f"{name}.csv").rename(folder / f"my_letters-{name}-1.csv")
        (folder / f"other_{name}.csv").touch()
    assert dict(init_dataset("my-letters", folder).contract.files) == {
        "train": "my_letters-train-1.csv",
        "test": "my_letters-test-1.csv",
    }


def test_a_holdout_must_have_rows(folder: Path) -> None:
    with pytest.raises(DataContractError, match=r"train\.csv: --holdout leaves no row for test"):
        init_dataset("mine", folder, holdout=1e-9)


def test_train_images_without_relation_to_labels(folder: Path) -> None:
    images, labels = np.ones((20, 8, 8), np.uint8), np.arange(20) % 2
    images[:, 0, 0] = 9
    for name in ("train", "test"):
        write_csv(folder / f"{name}.csv", images, labels)
    assert init_dataset("mine", folder).contract.check("label_relation").off


def test_an_existing_name_is_rejected(folder: Path) -> None:
    init_dataset("mine", folder)
    for name, message in (("mine", "mine.toml exists"), ("digits", "digits.toml exists"), ("a_b", "Use a-b")):
        with pytest.raises(WrongUsage, match=message):
            init_dataset(name, folder)


@field_fault(
    "failure without a message",
    "The profile of a dataset of one's own is made again",
    "It is made from the CSVs in the data folder, without published data",
)
def test_a_profile_is_made_of_own_data(folder: Path, tmp_path: Path) -> None:
    contract = init_dataset("mine", folder).contract
    assert contract.reference is not None
    make_profile(contract, folder, tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == contract.reference.read_bytes()
    with pytest.raises(DataContractError, match=r"lists no published data\. To supply the data yourself"):
        make_profile(contract, tmp_path / "none", tmp_path / "again.json")


def test_makes_the_stored_profile_of_the_digits(tmp_path: Path) -> None:
    contract: DatasetContract = contract_of("digits")
    make_profile(contract, tmp_path, tmp_path / "digits.json")
    assert contract.reference is not None
    assert (tmp_path / "digits.json").read_bytes() == contract.reference.read_bytes()


def test_makes_no_profile_of_other_data(tmp_path: Path) -> None:
    for name in ("train", "test"):
        (tmp_path / f"digits_{name}.csv").write_text("label\n")
    with pytest.raises(WrongUsage, match="not the published train split"):
        make_profile(contract_of("digits"), tmp_path, tmp_path / "digits.json")


def test_a_profile_of_other_labels_names_the_cure(folder: Path) -> None:
    contract = init_dataset("mine", folder).contract
    contract.path.write_text(contract.path.read_text().replace('9 = "9"\n', ""))
    with pytest.raises(WrongUsage, match=r"mine\.json is no baseline profile.*9 classes.*dataset profile mine`"):
        baseline_profile(contract_of("mine"))
