from typing import get_args

import pytest

from schemas.contract import CONTRACTS, FASHION_MNIST, SPLITS, DatasetName, contract_of
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
    with pytest.raises(WrongUsage, match="no dataset 'mnist': expected one of fashion-mnist"):
        contract_of("mnist")
