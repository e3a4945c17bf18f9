from typing import Any

import numpy as np
import pytest

from schemas.config import PromotionConfig
from tasks.registry.promotion import Measured, PairedTest, decide, mcnemar

PER_CLASS = [{"name": "Shirt", "recall": 0.7}, {"name": "Bag", "recall": 0.95}]
DEFAULTS = PromotionConfig()


def _measured(**changed: Any) -> Measured:
    facts = {
        "accuracy": 0.9,
        "per_class": PER_CLASS,
        "golden_difference": 0.0,
        "champion": None,
        "champion_fault": None,
        "paired": None,
    }
    return Measured(**{**facts, **changed})


def _right(both: int, fixed: int, broken: int, neither: int) -> tuple[Any, Any]:
    counts = (both, fixed, broken, neither)
    return np.repeat([True, True, False, False], counts), np.repeat([True, False, True, False], counts)


# Hand-worked: two-sided, 2 * sum of C(n, i) / 2^n for i up to the smaller count, at most 1.
@pytest.mark.parametrize(
    ("fixed", "broken", "p_value"),
    [
        (0, 0, 1.0),
        (3, 3, 1.0),
        (1, 0, 1.0),
        (5, 0, 2 / 2**5),
        (0, 6, 2 / 2**6),
        (8, 1, 2 * (1 + 9) / 2**9),
        (2, 10, 2 * (1 + 12 + 66) / 2**12),
    ],
)
def test_mcnemar_by_hand(fixed: int, broken: int, p_value: float) -> None:
    found = mcnemar(*_right(50, fixed, broken, 7))
    assert (found.rows, found.fixed, found.broken) == (57 + fixed + broken, fixed, broken)
    assert found.p_value == pytest.approx(p_value, rel=1e-12)


def test_mcnemar_demands_the_same_rows() -> None:
    with pytest.raises(ValueError, match="rows of both models"):
        mcnemar(np.ones(3, dtype=bool), np.ones(4, dtype=bool))


@pytest.mark.parametrize(
    ("changed", "config", "said"),
    [
        ({"accuracy": 0.7999}, DEFAULTS, "test accuracy is 0.7999, expected >= 0.8"),
        ({"per_class": [*PER_CLASS, {"name": "Coat", "recall": 0.29}]}, DEFAULTS, "recall of Coat"),
        ({"golden_difference": 2e-5}, DEFAULTS, "golden predictions"),
        ({"accuracy": 0.94}, PromotionConfig(minimum_accuracy=0.95), "expected >= 0.95"),
    ],
)
def test_each_broken_rule_refuses_even_without_a_champion(
    changed: dict[str, Any], config: PromotionConfig, said: str
) -> None:
    verdict = decide(_measured(**changed), config)
    assert verdict["outcome"] == "refused"
    assert said in verdict["reason"]
    assert [rule["holds"] for rule in verdict["rules"]].count(False) == 1


def test_the_floor_itself_is_good_enough() -> None:
    at_the_floor = _measured(accuracy=0.8, per_class=[{"name": "Coat", "recall": 0.3}], golden_difference=1e-5)
    assert decide(at_the_floor, DEFAULTS)["outcome"] == "promoted"


BETTER, WORSE = PairedTest(1_000, 40, 10, 2e-5), PairedTest(1_000, 10, 40, 2e-5)
NOISE, NOISE_BELOW = PairedTest(1_000, 31, 29, 0.9), PairedTest(1_000, 29, 31, 0.9)


@pytest.mark.parametrize(
    ("paired", "policy", "outcome"),
    [
        (BETTER, "better", "promoted"),
        (NOISE, "better", "kept"),
        (WORSE, "better", "kept"),
        (BETTER, "not_worse", "promoted"),
        (NOISE_BELOW, "not_worse", "promoted"),
        (WORSE, "not_worse", "kept"),
        (BETTER, "never", "kept"),
    ],
)
def test_the_policy_decides_against_a_champion(paired: PairedTest, policy: Any, outcome: str) -> None:
    verdict = decide(_measured(champion=3, paired=paired), PromotionConfig(policy=policy))
    assert verdict["outcome"] == outcome
    if policy != "never":
        rule = verdict["rules"][-1]
        assert (rule["figure"], rule["fixed"], rule["broken"]) == (paired.p_value, paired.fixed, paired.broken)
        assert rule["holds"] == (outcome == "promoted")


@pytest.mark.parametrize(("changed", "policy"), [({"accuracy": 0.1}, "better"), ({}, "never"), ({}, "better")])
def test_the_comparison_with_the_champion_is_told_whatever_the_verdict_hung_on(
    changed: dict[str, Any], policy: Any
) -> None:
    verdict = decide(_measured(champion=3, paired=WORSE, **changed), PromotionConfig(policy=policy))
    assert verdict["paired"] == {"rows": 1_000, "fixed": 10, "broken": 40, "p_value": 2e-5}
    assert verdict["champion_fault"] is None


def test_a_champion_that_could_not_be_measured_is_told_even_of_a_refused_version() -> None:
    verdict = decide(_measured(accuracy=0.1, champion=3, champion_fault="its weights are gone"), DEFAULTS)
    assert (verdict["outcome"], verdict["paired"]) == ("refused", None)
    assert verdict["champion_fault"] == "its weights are gone"


def test_significance_is_the_one_that_was_asked_for() -> None:
    close = _measured(champion=3, paired=PairedTest(1_000, 30, 16, 0.054))
    assert decide(close, DEFAULTS)["outcome"] == "kept"
    assert decide(close, PromotionConfig(significance=0.06))["outcome"] == "promoted"


def test_without_a_champion_the_candidate_is_promoted() -> None:
    assert decide(_measured(), DEFAULTS)["outcome"] == "promoted"


@pytest.mark.parametrize("policy", ["better", "not_worse"])
def test_a_champion_that_cannot_be_measured_stays_and_the_verdict_says_why(policy: Any) -> None:
    damaged = decide(_measured(champion=3, champion_fault="its weights are gone"), PromotionConfig(policy=policy))
    assert damaged["outcome"] == "kept"
    assert "its weights are gone" in damaged["reason"]
    assert (damaged["rules"][-1]["holds"], damaged["rules"][-1]["figure"]) == (False, "its weights are gone")


@pytest.mark.parametrize(("fixed", "broken"), [(0, 1), (3, 9), (40, 70), (500, 500), (12, 0)])
def test_mcnemar_is_scipy_s_exact_test_of_the_table(fixed: int, broken: int) -> None:
    """Against the sum of the binomial's two tails, which scipy's other function gives."""
    import scipy.stats

    candidate = np.array([True] * fixed + [False] * broken + [True] * 5)
    champion = np.array([False] * fixed + [True] * broken + [True] * 5)
    tails = 2 * scipy.stats.binom.cdf(min(fixed, broken), fixed + broken, 0.5)
    assert mcnemar(candidate, champion).p_value == pytest.approx(min(1.0, tails), rel=1e-9)
