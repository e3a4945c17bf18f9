"""Whether a candidate takes the champion's place: a quality floor, golden predictions, and a paired test.

Pure: figures in, a verdict out. `tasks.version` gathers the figures and acts on the verdict.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from schemas.config import PromotionConfig
from tasks.data.statistics import sign_test
from tasks.model.inference import TOLERANCE

Outcome = Literal["promoted", "kept", "refused"]


@dataclass(frozen=True)
class PairedTest:
    """Two models on the same test rows. ``fixed``: rows that the candidate alone has right; ``broken``: the other way.

    ``p_value`` is two-sided: how often two equally good models would differ as much as this or more.
    """

    rows: int
    fixed: int
    broken: int
    p_value: float


def mcnemar(candidate_right: npt.NDArray[np.bool_], champion_right: npt.NDArray[np.bool_]) -> PairedTest:
    """The exact test on the rows where two models differ, both bool (N,).

    McNemar, "Note on the sampling error of the difference between correlated proportions or percentages",
    Psychometrika 12, 1947; exact, as a sign test of both sides. Raises ValueError for unlike lengths.
    """
    if candidate_right.shape != champion_right.shape:
        raise ValueError(f"rows of both models were expected, received {candidate_right.shape}, {champion_right.shape}")
    fixed = int((candidate_right & ~champion_right).sum())
    broken = int((champion_right & ~candidate_right).sum())
    p_value = min(1.0, 2 * sign_test(max(fixed, broken), min(fixed, broken)))
    return PairedTest(len(candidate_right), fixed, broken, p_value)


@dataclass(frozen=True)
class Measured:
    """What the verdict rests on.

    golden_difference: largest difference of the golden predictions when the stored files were loaded in a fresh
    process. champion: its version, None where there is none.
    paired: None where there is no champion, or where ``champion_fault`` says why it could not be measured.
    """

    accuracy: float
    per_class: Sequence[Mapping[str, Any]]
    golden_difference: float
    champion: int | None
    champion_fault: str | None
    paired: PairedTest | None


def decide(measured: Measured, config: PromotionConfig) -> dict[str, Any]:
    """The verdict as JSON: outcome, reason, policy, champion, and each rule with its figure, its bound and if it holds.

    ``paired`` is the comparison with the champion, also where nothing hung on it; null where none could be made, and
    ``champion_fault`` then says why, if there is a champion.

    refused: below the floor, or not what was measured once loaded. promoted: no champion, or better than it by the
    policy. kept: everything else; being as good as the champion is no error.
    """
    rules = [*_floor(measured, config), _golden(measured)]
    failed = [rule for rule in rules if not rule["holds"]]
    outcome: Outcome
    if failed:
        outcome, reason = "refused", "Refused: " + "; ".join(_said(rule) for rule in failed) + "."
    else:
        outcome, reason, rule = _against_champion(measured, config)
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


def _said(rule: Mapping[str, Any]) -> str:
    figure = rule["figure"]
    return f"{rule['rule']} is {figure if not isinstance(figure, float) else f'{figure:.4g}'}, expected {rule['bound']}"


def _floor(measured: Measured, config: PromotionConfig) -> list[dict[str, Any]]:
    worst = min(measured.per_class, key=lambda row: float(row["recall"]))
    return [
        {
            "rule": "test accuracy",
            "figure": measured.accuracy,
            "bound": f">= {config.minimum_accuracy}",
            "holds": measured.accuracy >= config.minimum_accuracy,
        },
        {
            "rule": f"recall of {worst['name']}, the lowest of all classes",
            "figure": worst["recall"],
            "bound": f">= {config.minimum_recall}",
            "holds": worst["recall"] >= config.minimum_recall,
        },
    ]


def _golden(measured: Measured) -> dict[str, Any]:
    return {
        "rule": "golden predictions repeated in a fresh process, largest difference",
        "figure": measured.golden_difference,
        "bound": f"<= {TOLERANCE}",
        "holds": measured.golden_difference <= TOLERANCE,
    }


def _against_champion(measured: Measured, config: PromotionConfig) -> tuple[Outcome, str, dict[str, Any] | None]:
    champion, paired = measured.champion, measured.paired
    rule: dict[str, Any]
    if config.policy == "never":
        return "kept", 'Kept: the policy is "never".', None
    if champion is None:
        return "promoted", "Promoted: there was no champion.", None
    if paired is None:
        # Whatever cannot be compared is not known to be better, and a champion may be restored.
        rule = {
            "rule": f"version {champion}, the champion, can be measured",
            "figure": measured.champion_fault,
            "bound": "loaded, and run on the same test rows",
            "holds": False,
        }
        return (
            "kept",
            f"Kept: version {champion}, the champion, cannot be measured. {measured.champion_fault} Restore it from a "
            "copy, or make another version champion with `fashion-ann promote`.",
            rule,
        )
    significant = paired.p_value < config.significance
    better = significant and paired.fixed > paired.broken
    worse = significant and paired.broken > paired.fixed
    holds = better if config.policy == "better" else not worse
    rule = {
        "rule": f"McNemar's exact test against version {champion}, p",
        "figure": paired.p_value,
        "bound": f"< {config.significance}, in favour of the candidate"
        if config.policy == "better"
        else f"not < {config.significance} in favour of the champion",
        "holds": holds,
        "rows": paired.rows,
        "fixed": paired.fixed,
        "broken": paired.broken,
    }
    word = "better than" if better else "worse than" if worse else "within noise of"
    reason = (
        f"{'Promoted' if holds else 'Kept'}: {word} version {champion} on the same {paired.rows} test rows "
        f"({paired.fixed} fixed, {paired.broken} broken, p = {paired.p_value:.3g})."
    )
    return ("promoted" if holds else "kept"), reason, rule
