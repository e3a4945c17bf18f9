"""Decide whether a candidate becomes champion: minimum accuracy and recall, golden predictions, and a paired test.

A pure function of the measured values and the configuration. `tasks.version` acts on the verdict.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Literal

from schemas.config import PromotionConfig
from tasks.model.inference import TOLERANCE
from tasks.registry.candidate import CandidateMetrics
from tasks.registry.paired_test import PairedTest

Outcome = Literal["promoted", "kept", "refused"]


def decide(measured: CandidateMetrics, config: PromotionConfig) -> dict[str, Any]:
    """Return the verdict, as JSON.

    ``outcome``: "refused" below a minimum, or if the golden predictions differ; "promoted" without a champion, or if
    better than the champion by the policy; else "kept".
    ``rules``: each with its measured ``figure``, its ``bound`` and whether it ``holds``.
    ``paired``: the comparison with the champion, also if it did not decide; null if none was possible.
    ``champion_fault``: the reason why the champion could not be measured, else null.
    """
    rules = [*_minimum_rules(measured, config), _golden_rule(measured)]
    outcome: Outcome
    if failed := [rule for rule in rules if not rule["holds"]]:
        outcome, reason = "refused", f"Rejected: {'; '.join(_describe(rule) for rule in failed)}."
    else:
        outcome, reason, rule = _compare_with_champion(measured, config)
        rules += [rule] if rule else []
    return {
        "outcome": outcome,
        "reason": reason,
        "policy": config.policy,
        "champion": measured.champion,
        "rules": rules,
        "paired": None if measured.paired is None else asdict(measured.paired),
        "champion_fault": measured.champion_fault,
    }


def _describe(rule: Mapping[str, Any]) -> str:
    value = rule["figure"]
    return f"{rule['rule']} is {f'{value:.4g}' if isinstance(value, float) else value}, expected {rule['bound']}"


def _minimum_rules(measured: CandidateMetrics, config: PromotionConfig) -> list[dict[str, Any]]:
    worst = min(measured.per_class, key=lambda row: float(row["recall"]))
    return [
        {
            "rule": "test accuracy",
            "figure": measured.accuracy,
            "bound": f">= {config.minimum_accuracy}",
            "holds": measured.accuracy >= config.minimum_accuracy,
        },
        {
            "rule": f"lowest recall of all classes ({worst['name']})",
            "figure": worst["recall"],
            "bound": f">= {config.minimum_recall}",
            "holds": worst["recall"] >= config.minimum_recall,
        },
    ]


def _golden_rule(measured: CandidateMetrics) -> dict[str, Any]:
    return {
        "rule": "largest difference of the golden predictions in a fresh process",
        "figure": measured.golden_difference,
        "bound": f"<= {TOLERANCE}",
        "holds": measured.golden_difference <= TOLERANCE,
    }


def _compare_with_champion(
    measured: CandidateMetrics, config: PromotionConfig
) -> tuple[Outcome, str, dict[str, Any] | None]:
    champion, paired = measured.champion, measured.paired
    if config.policy == "never":
        return "kept", 'Kept: the promotion policy is "never".', None
    if champion is None:
        return "promoted", "Promoted: there was no champion.", None
    if paired is None:
        # A candidate without a comparison is not known to be better, and the champion may be restored.
        rule = {
            "rule": f"version {champion}, the champion, can be measured",
            "figure": measured.champion_fault,
            "bound": "loads and predicts the same test rows",
            "holds": False,
        }
        reason = (
            f"Kept: version {champion}, the champion, cannot be measured. {measured.champion_fault} Restore it from a "
            "copy, or promote another version with `fashion-ann promote`."
        )
        return "kept", reason, rule
    return _apply_policy(champion, paired, config)


def _apply_policy(champion: int, paired: PairedTest, config: PromotionConfig) -> tuple[Outcome, str, dict[str, Any]]:
    significant = paired.p_value < config.significance
    better = significant and paired.fixed > paired.broken
    worse = significant and paired.broken > paired.fixed
    if config.policy == "better":
        holds, bound = better, f"< {config.significance}, in favour of the candidate"
    else:
        holds, bound = not worse, f"not < {config.significance} in favour of the champion"
    rule = {
        "rule": f"p-value of McNemar's exact test against version {champion}",
        "figure": paired.p_value,
        "bound": bound,
        "holds": holds,
        "rows": paired.rows,
        "fixed": paired.fixed,
        "broken": paired.broken,
    }
    result = "better than" if better else "worse than" if worse else "not significantly different from"
    reason = (
        f"{'Promoted' if holds else 'Kept'}: {result} version {champion} on the same {paired.rows:,} test rows "
        f"({paired.fixed} fixed, {paired.broken} broken, p = {paired.p_value:.3g})."
    )
    return ("promoted" if holds else "kept"), reason, rule
