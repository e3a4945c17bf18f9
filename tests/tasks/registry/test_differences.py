from typing import Any

import pytest

from tasks.registry.differences import differences, settings, unknown_differences
from tests.field_faults import field_fault
from tests.stored import DIGEST, data_facts, facts

OTHER = "f" * 64


def _facts(train_key: str = DIGEST, **changed: Any) -> Any:
    stages = [
        {"stage": name, "split": None, "key": key, "digest": DIGEST, "reused": False, "seconds": 1.0}
        for name, key in (("prepare", DIGEST), ("train", train_key), ("evaluate", train_key))
    ]
    code = {"revision": "c0ffee", "dirty": False}
    return facts(**{"lineage": stages, "code": code, "code_sha256": DIGEST, **changed})


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"configuration": {"hidden_units": 512}}, "hidden_units"),
        ({"batch_size_used": 192}, "batch_size"),
        ({"promotion": {"policy": "never"}}, "promotion, policy"),
        ({"topology_id": OTHER}, "topology, sha256"),
        ({"code_sha256": OTHER}, "code of the train stage, sha256"),
        ({"code": {"revision": "beef", "dirty": False}}, "code"),
        ({"code": {"revision": "c0ffee", "dirty": True}}, "uncommitted changes"),
        ({"data": data_facts(OTHER)}, "train data, sha256"),
        ({"lock_sha256": OTHER}, "lock, sha256"),
        ({"packages": {"keras": "3.15"}}, "package keras"),
        ({"environment": {"XLA_FLAGS": "--a"}}, "XLA_FLAGS"),
        ({"device": {"kind": "cpu", "name": "another", "count": 1, "backend": "tensorflow"}}, "device"),
        ({"device": {"kind": "cpu", "name": "a CPU", "count": 1, "backend": "jax"}}, "device, backend"),
    ],
)
def test_each_recorded_property_is_compared(changed: dict[str, Any], what: str) -> None:
    assert [row["what"] for row in differences(_facts(), _facts(OTHER, **changed))] == [what]


def test_equal_manifests_have_no_differences() -> None:
    assert (differences(_facts(), _facts()), unknown_differences(_facts(), _facts())) == ([], [])


def test_equal_rows_in_other_csvs_are_the_same_data() -> None:
    one, eight = data_facts(), data_facts()
    eight["train"] |= {"csv_sha256": OTHER, "parquet_sha256": OTHER}
    assert differences(_facts(data=one), _facts(data=eight)) == []
    assert settings(_facts(data=one)) == settings(_facts(data=eight)) != settings(_facts(data=data_facts(OTHER)))


def test_a_cache_key_alone_is_a_difference() -> None:
    rows = differences(_facts(), _facts(OTHER))
    assert [row["what"] for row in rows] == ["cache key of train", "cache key of evaluate"]


def test_the_value_of_a_third_champion_is_in_each_row() -> None:
    one, two = _facts(configuration={"seed": 1}), _facts(configuration={"seed": 1, "epochs": 2})
    champion = _facts(configuration={"seed": 3})
    assert differences(one, two, champion) == [
        {"what": "seed", "before": 1, "after": 1, "champion": 3},
        {"what": "epochs", "before": None, "after": 2, "champion": None},
    ]


@pytest.mark.parametrize(
    ("changed", "part"),
    [
        ({"code": {"revision": "c0ffee", "dirty": True}, "lineage": []}, "uncommitted changes"),
        ({"code": {"revision": "c0ffee", "dirty": None}, "lineage": []}, "uncommitted changes"),
        ({"code": {"revision": None, "dirty": None}, "lineage": []}, "revision of the code is not recorded"),
        ({"code_sha256": None}, "code of the train stage is not recorded"),
    ],
)
@field_fault(
    "cause named but not observed",
    "`compare` reads versions of uncommitted code, or without a recorded revision",
    "It names what may differ, and does not call the code the same",
)
def test_unrecorded_parts_are_not_called_the_same(changed: dict[str, Any], part: str) -> None:
    one = _facts(**changed)
    (sentence,) = unknown_differences(one, one)
    assert part in sentence


def test_the_same_cache_keys_prove_the_same_code() -> None:
    dirty = _facts(code={"revision": "c0ffee", "dirty": True})
    assert unknown_differences(dirty, dirty) == []
