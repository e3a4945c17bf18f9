import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from prefect.utilities.callables import parameter_schema

from cli.contract_page import PAGE, contract_json, contract_text, page
from flows.train_fashion_mnist import train_fashion_mnist
from schemas.contract import (
    FASHION_MNIST,
    SPLITS,
    Bounds,
    Check,
    DatasetContract,
    contract_of,
    dataset_paths,
    shipped_contracts,
)
from schemas.errors import WrongUsage
from tests.field_faults import field_fault

EACH = pytest.mark.parametrize("contract", shipped_contracts(), ids=lambda contract: contract.name)
MINIMAL = 'height = 2\nwidth = 2\nlabels = { 1 = "a", 3 = "b" }\n'


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., DatasetContract]:
    """Write a dataset file of your own, and return its contract."""
    monkeypatch.setenv("FASHION_ANN_DATASETS_DIR", str(tmp_path))

    def write(text: str, name: str = "mine") -> DatasetContract:
        (tmp_path / f"{name}.toml").write_text(text, encoding="utf-8")
        return contract_of(name)

    return write


def test_fashion_mnist_has_a_label_and_784_pixels() -> None:
    assert FASHION_MNIST.pixels == 784
    assert len(FASHION_MNIST.columns) == 785
    assert FASHION_MNIST.columns[:2] == ("label", "pixel1")
    assert FASHION_MNIST.columns[-1] == "pixel784"
    assert [FASHION_MNIST.bounds(column) for column in ("label", "pixel1", "pixel784")] == [(0, 9), (0, 255), (0, 255)]


def test_csv_names_are_the_published_ones() -> None:
    assert [FASHION_MNIST.csv_name(split) for split in SPLITS] == ["fashion-mnist_train.csv", "fashion-mnist_test.csv"]


def test_unknown_names_are_rejected() -> None:
    assert contract_of("fashion-mnist") is FASHION_MNIST
    with pytest.raises(WrongUsage, match="no dataset 'mnist': expected one of digits, fashion-mnist"):
        contract_of("mnist")


def test_docs_page_is_current() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "python -m cli.contract_page > docs/contract.md"


@pytest.mark.parametrize(
    ("value", "warns", "fails"),
    [(1.0, False, False), (1.1, True, False), (2.0, True, False), (2.1, True, True)],
)
def test_checks_compare_with_their_bounds(value: float, warns: bool, fails: bool) -> None:
    for sign in (1, -1):
        check = Check("name", "", "", warn=sign * 1, fail=sign * 2, low_is_bad=sign < 0)
        assert (check.warns(sign * value), check.fails(sign * value)) == (warns, fails)
        assert Check("name", "", "", fail=sign * 2, low_is_bad=sign < 0).warns(sign * value) is fails


@EACH
def test_checks_have_names_texts_and_ordered_bounds(contract: DatasetContract) -> None:
    assert len({check.name for check in contract.checks}) == len(contract.checks)
    for check in contract.checks:
        assert check.description
        assert check.evidence
        assert {check.warn, check.fail} != {None}
        if check.warn is not None and check.fail is not None:
            assert check.warn > check.fail if check.low_is_bad else check.warn < check.fail


def test_json_has_every_check() -> None:
    checks = contract_json(FASHION_MNIST)["checks"]
    assert [check["name"] for check in checks] == [check.name for check in FASHION_MNIST.checks]
    assert all(set(check) == {"name", "says", "found", "warn", "fail", "low_is_bad"} for check in checks)


@EACH
def test_baselines_belong_to_their_dataset(contract: DatasetContract) -> None:
    assert contract.reference is not None
    assert contract.reference.stat().st_size < 60_000
    profile = json.loads(contract.reference.read_bytes())
    assert sum(profile["class_rows"]) == contract.published["train"].rows
    assert {len(image) for image in profile["mean_images"].values()} == {contract.pixels}
    assert len(profile["mean_images"]) == contract.classes


# --- dataset files ---


def test_a_minimal_file_is_enough(write: Callable[..., DatasetContract]) -> None:
    contract = write(MINIMAL)
    assert (contract.class_labels, contract.class_names, contract.label_ranges) == ((1, 3), ("a", "b"), "1, 3")
    assert contract.columns == ("label", "pixel1", "pixel2", "pixel3", "pixel4")
    assert contract.csv_name("test") == "mine_test.csv"
    assert (contract.published, contract.reference, contract.can_be_fetched) == ({}, None, False)


@field_fault(
    "failure without a message", "A dataset file lists no published data", "Its contract is printed as text and as JSON"
)
def test_text_and_json_need_no_published_data(write: Callable[..., DatasetContract]) -> None:
    text = contract_text(write(MINIMAL + 'background = "none"\n'))
    assert "1 a, 3 b" in text
    assert "no background" in text
    assert "baseline profile: none" in text
    assert contract_json(contract_of("mine"))["published"] == {}


@pytest.mark.parametrize(
    ("lines", "columns"),
    [
        ('columns = "pixel0.."', ("label", "pixel0", "pixel1", "pixel2", "pixel3")),
        ('columns = "pixel0..pixel3"', ("label", "pixel0", "pixel1", "pixel2", "pixel3")),
        ('columns = "1x1..2x2"', ("label", "1x1", "1x2", "2x1", "2x2")),
        ('columns = "0..3"\nlabel_column = "class"', ("class", "0", "1", "2", "3")),
        ('columns = "none"', ("label", "pixel1", "pixel2", "pixel3", "pixel4")),
        ("transpose = true", ("label", "pixel1", "pixel3", "pixel2", "pixel4")),
        ('columns = "1x1.."\ntranspose = true', ("label", "1x1", "2x1", "1x2", "2x2")),
    ],
)
def test_columns_have_the_names_of_the_file(
    write: Callable[..., DatasetContract], lines: str, columns: tuple[str, ...]
) -> None:
    assert write(f"{lines}\n{MINIMAL}").columns == columns


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (MINIMAL + "hight = 2", "hight: expected no such key"),
        ("height = 2", "width: expected this key, received none"),
        (MINIMAL.replace("2", '"2"', 1), "height: Input should be a valid integer, received '2'"),
        (MINIMAL.replace('"b"', '"a"'), "labels: expected a different name for each label"),
        (MINIMAL.replace("3 = ", "three = "), "labels.three.*: Input should be a valid integer"),
        (MINIMAL + "pixel_max = 256", "pixel_max: Input should be less than or equal to 255, received 256"),
        (MINIMAL + "background = 3", 'background: expected 0, 255 or "none", received 3'),
        (MINIMAL + 'columns = "pixels"', 'columns: expected the first name, then two dots, such as "pixel0.."'),
        (MINIMAL + 'columns = "pixel0..pixel9"', "received 'pixel0..pixel9' for 2 x 2 pixels"),
        (MINIMAL + "[checks]\nblur = 'off'", "checks: expected names of .*, received 'blur'"),
        (MINIMAL + "[checks]\ndrift = 'on'", "checks.drift"),
        (MINIMAL + "[checks]\nposition = { warn = 2, fail = 1 }", "checks.position: expected a warning before the"),
        (MINIMAL + "holdout = 1.0", "holdout: Input should be less than 1"),
        (MINIMAL + "[minimum_rows]\ntrain = 1", "minimum_rows: expected train and test, received train"),
        (MINIMAL + '[files]\ntrain = "../a.csv"', "files.train"),
        ("height =", "Invalid value"),
        ("a = " + "[" * 3_000, "maximum recursion depth exceeded"),
        (MINIMAL.replace("3 = ", "07 = "), "labels: expected integers such as 1 or -1, received 07"),
        (MINIMAL + "[checks]\ndrift = { warn = nan }", "checks.drift.warn: Input should be a finite number"),
        (
            MINIMAL + "[minimum_rows]\ntrain = 1\ntest = 0",
            "minimum_rows.test: Input should be greater",
        ),
    ],
)
def test_a_wrong_file_is_named_with_its_key(write: Callable[..., DatasetContract], text: str, message: str) -> None:
    with pytest.raises(WrongUsage, match=rf"mine\.toml: .*{message}"):
        write(text)


@field_fault("failure without a message", "A dataset is named sign_mnist", "The file is rejected, with sign-mnist")
@pytest.mark.parametrize("name", ["sign_mnist", "Sign-Mnist", "a b", "-a", "a--b", "é", "a" * 65])
def test_names_are_those_of_stores_and_artifacts(write: Callable[..., DatasetContract], name: str) -> None:
    with pytest.raises(WrongUsage, match=f"{name}.toml: Expected the name of a dataset"):
        write(MINIMAL, name)


def test_a_name_of_the_project_cannot_be_replaced(write: Callable[..., DatasetContract]) -> None:
    with pytest.raises(WrongUsage, match="has the name of a dataset of the project"):
        write(MINIMAL, "digits")


def test_a_digest_is_that_of_the_file_alone(write: Callable[..., DatasetContract]) -> None:
    before, other = write(MINIMAL).digest, FASHION_MNIST.digest
    assert write("# A comment.\n" + MINIMAL).digest == before
    assert write(MINIMAL + "pixel_max = 16").digest != before
    assert contract_of("fashion-mnist").digest == other


def test_photographs_have_bounds_of_their_own(write: Callable[..., DatasetContract]) -> None:
    contract = write(MINIMAL + 'kind = "photographs"\n[checks]\nposition = "off"\ndrift = { warn = 0.5 }')
    assert contract.check("background").bounds == contract.check("position").bounds == Bounds()
    assert contract.check("drift").bounds == Bounds(warn=0.5)
    assert contract.check("polarity").bounds == FASHION_MNIST.check("polarity").bounds
    assert replace(contract, kind="drawings").check("background") == FASHION_MNIST.check("background")


def test_forms_list_every_dataset(write: Callable[..., DatasetContract]) -> None:
    write(MINIMAL)
    assert set(dataset_paths()) == {"digits", "fashion-mnist", "mine"}
    schema = parameter_schema(train_fashion_mnist).model_dump()["properties"]["dataset"]
    assert schema["enum"] == ["digits", "fashion-mnist", "mine"]
    assert train_fashion_mnist.validate_parameters({"dataset": "mine"})["dataset"] == "mine"
    with pytest.raises(Exception, match="There is no dataset 'other'"):
        train_fashion_mnist.validate_parameters({"dataset": "other"})
