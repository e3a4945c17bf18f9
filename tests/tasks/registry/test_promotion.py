from pathlib import Path
from typing import Any

import pytest

from schemas.config import PromotionConfig
from schemas.contract import FASHION_MNIST
from schemas.store import Verdict
from tasks.data.statistics import PairedTest
from tasks.registry.promotion import CandidateMetrics, Champion, decide, with_minima

PER_CLASS = [{"name": "Shirt", "recall": 0.7}, {"name": "Bag", "recall": 0.95}]
DEFAULTS = with_minima(PromotionConfig(), FASHION_MNIST)
CHAMPION = Champion(3, Path("0003"), None)
BETTER, WORSE = PairedTest(1_000, 40, 10, 2e-5), PairedTest(1_000, 10, 40, 2e-5)
SIMILAR, SLIGHTLY_WORSE = PairedTest(1_000, 31, 29, 0.9), PairedTest(1_000, 29, 31, 0.9)


def _candidate(**changed: Any) -> CandidateMetrics:
    metrics = {"accuracy": 0.9, "per_class": PER_CLASS, "robustness": {"blur": 0.7, "mirror": 0.2}}
    metrics |= {"golden_difference": 0.0, "champion": None, "paired": None}
    return CandidateMetrics(**{**metrics, **changed})


@pytest.mark.parametrize(
    ("changed", "config", "reason"),
    [
        ({"accuracy": 0.7999}, DEFAULTS, "test accuracy is 0.7999, expected >= 0.8"),
        ({"per_class": [*PER_CLASS, {"name": "Coat", "recall": 0.29}]}, DEFAULTS, "(Coat) is 0.29, expected >= 0.3"),
        ({"golden_difference": 2e-5}, DEFAULTS, "golden predictions"),
        ({"accuracy": 0.94}, PromotionConfig(minimum_accuracy=0.95), "expected >= 0.95"),
        ({}, PromotionConfig(minimum_robustness={"blur": 0.71}), "under the disturbance blur is 0.7, expected >= 0.71"),
    ],
    ids=["accuracy", "recall", "golden predictions", "configured minimum", "robustness"],
)
def test_each_failed_rule_rejects(changed: dict[str, Any], config: PromotionConfig, reason: str) -> None:
    verdict = decide(_candidate(**changed), config)
    assert verdict["outcome"] == "refused"
    assert reason in verdict["reason"]
    assert [rule["holds"] for rule in verdict["rules"]].count(False) == 1


def test_the_minimum_itself_is_enough() -> None:
    at_the_minimum = _candidate(accuracy=0.8, per_class=[{"name": "Coat", "recall": 0.3}], golden_difference=1e-5)
    assert decide(at_the_minimum, DEFAULTS)["outcome"] == "promoted"


def test_a_given_minimum_replaces_that_of_the_dataset() -> None:
    given = PromotionConfig(minimum_accuracy=0, policy="never")
    assert with_minima(given, FASHION_MNIST) == given.model_copy(update={"minimum_recall": 0.3})


@pytest.mark.parametrize(
    ("paired", "policy", "outcome", "words"),
    [
        (BETTER, "better", "promoted", "better than version 3"),
        (SIMILAR, "better", "kept", "not significantly different from version 3"),
        (WORSE, "better", "kept", "worse than version 3"),
        (BETTER, "not_worse", "promoted", "better than version 3"),
        (SLIGHTLY_WORSE, "not_worse", "promoted", "not significantly different from version 3"),
        (WORSE, "not_worse", "kept", "worse than version 3"),
        (BETTER, "never", "kept", "policy"),
        (BETTER, "ask", "waiting", "Waiting for approval: better than version 3"),
        (SIMILAR, "ask", "kept", "not significantly different from version 3"),
    ],
)
def test_the_policy_decides_against_a_champion(paired: PairedTest, policy: Any, outcome: str, words: str) -> None:
    verdict = decide(_candidate(champion=CHAMPION, paired=paired), PromotionConfig(policy=policy))
    assert verdict["outcome"] == outcome
    assert words in verdict["reason"]
    if policy != "never":
        rule = verdict["rules"][-1]
        assert (rule["figure"], rule["fixed"], rule["broken"]) == (paired.p_value, paired.fixed, paired.broken)
        assert rule["holds"] == (outcome != "kept")


@pytest.mark.parametrize(
    ("paired", "finding"),
    [
        (BETTER, "2e-05 in favour of the candidate (40 fixed, 10 broken)"),
        (WORSE, "2e-05 in favour of the champion (10 fixed, 40 broken)"),
        (PairedTest(1_000, 5, 5, 1.0), "1 in favour of neither (5 fixed, 5 broken)"),
    ],
)
def test_a_p_value_is_shown_with_its_direction(paired: PairedTest, finding: str) -> None:
    verdict = Verdict.parse(decide(_candidate(champion=CHAMPION, paired=paired), DEFAULTS), "verdict.json")
    assert verdict.rules[-1].finding == finding


def test_a_figure_just_below_its_bound_is_not_rounded_to_it() -> None:
    verdict = Verdict.parse(decide(_candidate(accuracy=0.79998), DEFAULTS), "verdict.json")
    assert (verdict.rules[0].finding, verdict.rules[0].bound) == ("0.79998", ">= 0.8")
    assert "0.79998" in verdict.reason


SUPPLIED, FETCHED = "train supplied, test supplied", "train fetched, test fetched"


@pytest.mark.parametrize("policy", ["better", "not_worse", "never"])
@pytest.mark.parametrize("fault", [None, "report.html: expected sha256"])
@pytest.mark.parametrize("origin", [FETCHED, "train supplied, test fetched"])
def test_data_of_another_origin_is_kept(policy: Any, fault: str | None, origin: str) -> None:
    champion, paired = Champion(3, Path("0003"), fault, SUPPLIED), None if fault else BETTER
    verdict = decide(_candidate(champion=champion, paired=paired, origin=origin), PromotionConfig(policy=policy))
    assert verdict["outcome"] == "kept"
    assert f"another origin ({origin}) than that of version 3, the champion ({SUPPLIED})" in verdict["reason"]
    (rule,) = (rule for rule in verdict["rules"] if not rule["holds"])
    assert (rule["figure"], rule["bound"]) == (origin, SUPPLIED)


def test_data_of_the_same_origin_is_compared() -> None:
    champion = Champion(3, Path("0003"), None, FETCHED)
    verdict = decide(_candidate(champion=champion, paired=BETTER, origin=FETCHED), DEFAULTS)
    assert verdict["outcome"] == "promoted"
    assert all(rule["holds"] for rule in verdict["rules"])
    assert {"figure": FETCHED, "bound": FETCHED}.items() <= verdict["rules"][-2].items()
    rejected = decide(_candidate(accuracy=0.1, champion=CHAMPION, origin=FETCHED), DEFAULTS)
    assert rejected["outcome"] == "refused"


@pytest.mark.parametrize(("changed", "policy"), [({"accuracy": 0.1}, "better"), ({}, "never"), ({}, "better")])
def test_the_comparison_is_always_in_the_verdict(changed: dict[str, Any], policy: Any) -> None:
    verdict = decide(_candidate(champion=CHAMPION, paired=WORSE, **changed), PromotionConfig(policy=policy))
    assert verdict["paired"] == {"rows": 1_000, "fixed": 10, "broken": 40, "p_value": 2e-5}
    assert verdict["champion_fault"] is None


def test_the_configured_significance_decides() -> None:
    close = _candidate(champion=CHAMPION, paired=PairedTest(1_000, 30, 16, 0.054))
    assert decide(close, DEFAULTS)["outcome"] == "kept"
    assert decide(close, PromotionConfig(significance=0.06))["outcome"] == "promoted"


@pytest.mark.parametrize("policy", ["better", "not_worse"])
def test_a_champion_that_cannot_be_measured_stays(policy: Any) -> None:
    fault = "its weights are missing"
    verdict = decide(_candidate(champion=Champion(3, Path(), fault)), PromotionConfig(policy=policy))
    assert (verdict["outcome"], verdict["paired"], verdict["champion_fault"]) == ("kept", None, fault)
    assert fault in verdict["reason"]
    assert (verdict["rules"][-1]["holds"], verdict["rules"][-1]["figure"]) == (False, fault)
    rejected = decide(_candidate(accuracy=0.1, champion=Champion(3, Path(), fault)), DEFAULTS)
    assert (rejected["outcome"], rejected["paired"], rejected["champion_fault"]) == ("refused", None, fault)


def test_a_better_version_waits_for_its_shadow() -> None:
    demanding = DEFAULTS.model_copy(update={"minimum_shadow_rows": 500})
    verdict = decide(_candidate(champion=CHAMPION, paired=BETTER), demanding)
    assert (verdict["outcome"], verdict["reason"][:36]) == ("waiting", "Waiting for a shadow of 500 rows: be")
    assert decide(_candidate(), demanding)["outcome"] == "promoted"  # beside no champion there is no shadow
    assert decide(_candidate(champion=CHAMPION, paired=WORSE), demanding)["outcome"] == "kept"
