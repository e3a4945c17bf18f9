import json
from typing import get_args

import pytest

from cli.contract_page import PAGE, contract_json, page
from schemas.contract import CONTRACTS, FASHION_MNIST, SPLITS, Check, DatasetContract, DatasetName, contract_of
from schemas.errors import WrongUsage


def test_fashion_mnist_has_a_label_and_784_pixels() -> None:
    assert FASHION_MNIST.pixels == 784
    assert len(FASHION_MNIST.columns) == 785
    assert FASHION_MNIST.columns[:2] == ("label", "pixel1")
    assert FASHION_MNIST.columns[-1] == "pixel784"
    assert [FASHION_MNIST.bounds(column) for column in ("label", "pixel1", "pixel784")] == [(0, 9), (0, 255), (0, 255)]


def test_csv_names_are_the_published_ones() -> None:
    assert [FASHION_MNIST.csv_name(split) for split in SPLITS] == ["fashion-mnist_train.csv", "fashion-mnist_test.csv"]


def test_every_contract_is_a_flow_parameter() -> None:
    assert set(CONTRACTS) == set(get_args(DatasetName))


def test_unknown_names_are_rejected() -> None:
    assert contract_of("fashion-mnist") is FASHION_MNIST
    with pytest.raises(WrongUsage, match="no dataset 'mnist': expected one of fashion-mnist, digits"):
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


@pytest.mark.parametrize("contract", CONTRACTS.values(), ids=CONTRACTS)
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


@pytest.mark.parametrize("contract", CONTRACTS.values(), ids=CONTRACTS)
def test_baselines_belong_to_their_dataset(contract: DatasetContract) -> None:
    assert contract.reference is not None
    assert contract.reference.stat().st_size < 60_000
    profile = json.loads(contract.reference.read_bytes())
    assert sum(profile["class_rows"]) == contract.published["train"].rows
    assert {len(image) for image in profile["mean_images"].values()} == {contract.pixels}
    assert len(profile["mean_images"]) == contract.classes
