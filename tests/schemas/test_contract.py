import json
from typing import get_args

import pytest

from cli.contract_page import PAGE, page
from schemas.contract import CONTRACTS, FASHION_MNIST, SPLITS, DatasetContract, DatasetName, contract_of
from schemas.errors import WrongUsage


def test_fashion_mnist_has_a_label_and_784_pixels() -> None:
    assert FASHION_MNIST.pixels == 784
    assert len(FASHION_MNIST.columns) == 785
    assert FASHION_MNIST.columns[:2] == ("label", "pixel1")
    assert FASHION_MNIST.columns[-1] == "pixel784"


@pytest.mark.parametrize(("column", "bounds"), [("label", (0, 9)), ("pixel1", (0, 255)), ("pixel784", (0, 255))])
def test_bounds_of_a_column(column: str, bounds: tuple[int, int]) -> None:
    assert FASHION_MNIST.bounds(column) == bounds


def test_file_names_are_those_of_the_published_csvs() -> None:
    assert [FASHION_MNIST.csv_name(split) for split in SPLITS] == ["fashion-mnist_train.csv", "fashion-mnist_test.csv"]


def test_every_contract_can_be_named_as_a_flow_parameter() -> None:
    assert set(CONTRACTS) == set(get_args(DatasetName))


def test_a_contract_is_found_by_its_name_and_an_unknown_one_names_those_there_are() -> None:
    assert contract_of("fashion-mnist") is FASHION_MNIST
    with pytest.raises(WrongUsage, match="no dataset 'mnist': expected one of fashion-mnist, digits"):
        contract_of("mnist")


def test_the_page_in_docs_is_the_contracts_as_they_are() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "python -m cli.contract_page > docs/contract.md"


@pytest.mark.parametrize("contract", CONTRACTS.values(), ids=CONTRACTS)
def test_every_check_has_a_bound_a_reason_and_a_name_of_its_own(contract: DatasetContract) -> None:
    assert len({check.name for check in contract.checks}) == len(contract.checks)
    for check in contract.checks:
        assert check.says
        assert check.found
        assert {check.warn, check.fail} != {None}
        if check.warn is not None and check.fail is not None:
            assert check.warn > check.fail if check.low_is_bad else check.warn < check.fail


@pytest.mark.parametrize("contract", CONTRACTS.values(), ids=CONTRACTS)
def test_the_reference_is_of_this_dataset(contract: DatasetContract) -> None:
    assert contract.reference is not None
    assert contract.reference.stat().st_size < 60_000
    profile = json.loads(contract.reference.read_bytes())
    assert sum(profile["class_rows"]) == contract.published["train"].rows
    assert {len(image) for image in profile["mean_images"].values()} == {contract.pixels}
    assert len(profile["mean_images"]) == contract.classes
