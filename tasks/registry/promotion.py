"""Measure a candidate and the champion on the same test rows, and decide whether the candidate becomes champion."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from schemas.config import PromotionConfig
from schemas.contract import SPLITS, DatasetContract, Split, contract_of
from schemas.errors import StoredArtifactError
from schemas.layout import METRICS_NAME, PREDICTIONS_NAME
from schemas.references import Evaluation, PreparedData
from tasks.data.statistics import PairedTest, mcnemar
from tasks.model.inference import TOLERANCE, run_stored_model
from tasks.model.test_predictions import read_predictions


@dataclass(frozen=True)
class Champion:
    """The champion version. ``fault`` is the reason why it cannot be measured, else None.

    origin: `data_origin` of its data, None if its manifest cannot be read. digests: the sha256 of its files by name.
    """

    number: int
    folder: Path
    fault: str | None
    origin: str | None = None
    digests: Mapping[str, str] | None = None


@dataclass(frozen=True)
class CandidateMetrics:
    """The values that a verdict is decided from.

    golden_difference: largest difference of the golden predictions after loading the stored files in a fresh process.
    paired: None without a champion that could be measured.
    origin: `data_origin` of its data. robustness: its test accuracy by disturbance.
    """

    accuracy: float
    per_class: Sequence[Mapping[str, Any]]
    golden_difference: float
    champion: Champion | None
    paired: PairedTest | None
    origin: str | None = None
    robustness: Mapping[str, float] = field(default_factory=dict)


def data_origin(origins: Mapping[Split, str]) -> str:
    """Return where the splits of a version come from, such as "train supplied, test fetched"."""
    return ", ".join(f"{split} {origins[split]}" for split in SPLITS)


def with_minima(config: PromotionConfig, contract: DatasetContract) -> PromotionConfig:
    """Return the rules with the minima of the dataset where ``config`` has none."""
    return PromotionConfig(**{**asdict(contract.promotion), **config.model_dump(exclude_none=True)})


def measure_candidate(
    prepared: PreparedData, evaluation: Evaluation, champion: Champion | None, origin: str | None = None
) -> CandidateMetrics:
    """Collect the candidate's metrics, and compare it with the champion on the test rows of ``prepared``.

    The champion predicts these rows again: its own metrics may come from other rows.
    """
    folder = evaluation.record.path
    metrics = json.loads((folder / METRICS_NAME).read_bytes())
    paired = None
    if champion is not None and champion.fault is None:
        try:
            champion_right = run_stored_model(champion.folder, prepared.record.path, champion.digests).right
        except StoredArtifactError as error:
            champion = replace(champion, fault=str(error))
        else:
            candidate = read_predictions(folder / PREDICTIONS_NAME, contract_of(prepared.dataset))
            paired = mcnemar(candidate.right, champion_right)
    difference = evaluation.golden_difference
    robustness = {name: measured["accuracy"] for name, measured in metrics["robustness"].items()}
    return CandidateMetrics(
        metrics["test_accuracy"], metrics["per_class"], difference, champion, paired, origin, robustness
    )


def decide(measured: CandidateMetrics, config: PromotionConfig) -> dict[str, Any]:
    """Return the verdict, as JSON. A minimum of None is no rule: `with_minima` replaces it.

    ``outcome``: "refused" below a minimum, or if the golden predictions differ; "promoted" without a champion, or if
    better than the champion by the policy; else "kept". "waiting" instead of "promoted" if a person decides, or the
    rules require a shadow of the champion. Data of another origin than the champion's is always "kept".
    ``rules``: each with its measured ``figure``, its ``bound`` and whether it ``holds``.
    ``paired``: the comparison with the champion, also if it did not decide; null if none was possible.
    ``champion_fault``: the reason why the champion could not be measured, else null.
    """
    champion = measured.champion
    worst = min(measured.per_class, key=lambda row: float(row["recall"]))
    minima = (
        ("test accuracy", measured.accuracy, config.minimum_accuracy),
        (f"lowest recall of all classes ({worst['name']})", worst["recall"], config.minimum_recall),
        *(
            (f"test accuracy under the disturbance {name}", measured.robustness[name], minimum)
            for name, minimum in (config.minimum_robustness or {}).items()
        ),
    )
    rules = [
        _rule(name, value, f">= {minimum}", value >= minimum) for name, value, minimum in minima if minimum is not None
    ]
    golden, difference = "largest difference of the golden predictions in a fresh process", measured.golden_difference
    rules.append(_rule(golden, difference, f"<= {TOLERANCE}", difference <= TOLERANCE))
    failed = [rule for rule in rules if not rule["holds"]]
    other_origin = None
    if champion is not None and champion.origin is not None:
        name = f"origin of the data, compared with version {champion.number}"
        rules.append(_rule(name, measured.origin, champion.origin, measured.origin == champion.origin))
        if measured.origin != champion.origin:
            other_origin = (
                f"Kept: its data is of another origin ({measured.origin}) than that of version {champion.number}, the "
                f"champion ({champion.origin}). Promote it with `fashion-ann promote V --reason R` if it is to "
                "replace the champion."
            )
    if failed:
        broken = (f"{rule['rule']} is {rule['figure']:.6g}, expected {rule['bound']}" for rule in failed)
        outcome, reason = "refused", f"Rejected: {'; '.join(broken)}."
    elif other_origin is not None:
        outcome, reason = "kept", other_origin
    elif config.policy == "never":
        outcome, reason = "kept", 'Kept: the promotion policy is "never".'
    elif champion is None:
        outcome, reason = "promoted", "Promoted: there was no champion."
    else:
        reason, rule = _compare(champion, measured.paired, config)
        outcome = "promoted" if rule["holds"] else "kept"
        rules.append(rule)
    if outcome == "promoted" and config.policy == "ask":
        outcome, reason = "waiting", reason.replace("Promoted:", "Waiting for approval:")
    elif outcome == "promoted" and champion is not None and config.minimum_shadow_rows is not None:
        outcome = "waiting"
        reason = reason.replace("Promoted:", f"Waiting for a shadow of {config.minimum_shadow_rows} rows:")
    return {
        "outcome": outcome,
        "reason": reason,
        "policy": config.policy,
        "champion": None if champion is None else champion.number,
        "rules": rules,
        "paired": measured.paired and asdict(measured.paired),
        "champion_fault": None if champion is None else champion.fault,
    }


def _rule(rule: str, figure: Any, bound: str, holds: bool, **more: int) -> dict[str, Any]:
    return {"rule": rule, "figure": figure, "bound": bound, "holds": holds, **more}


def _compare(champion: Champion, paired: PairedTest | None, config: PromotionConfig) -> tuple[str, dict[str, Any]]:
    """Return the reason of the verdict, and the rule that decides it."""
    number = champion.number
    if paired is None:
        # A candidate without a comparison is not known to be better, and the champion may be restored.
        reason = (
            f"Kept: version {number}, the champion, cannot be measured. {champion.fault} Restore it, or promote "
            "another version with `fashion-ann promote V --reason R`."
        )
        name = f"version {number}, the champion, can be measured"
        return reason, _rule(name, champion.fault, "loads and predicts the same test rows", holds=False)
    significant = paired.p_value < config.significance
    better = significant and paired.fixed > paired.broken
    worse = significant and paired.broken > paired.fixed
    if config.policy in ("better", "ask"):
        holds, bound = better, f"< {config.significance}, in favour of the candidate"
    else:
        holds, bound = not worse, f"not < {config.significance} in favour of the champion"
    result = "better than" if better else "worse than" if worse else "not significantly different from"
    reason = (
        f"{'Promoted' if holds else 'Kept'}: {result} version {number} on the same {paired.rows:,} test rows "
        f"({paired.fixed} fixed, {paired.broken} broken, p = {paired.p_value:.3g})."
    )
    name = f"p-value of McNemar's exact test against version {number}"
    counts = {"rows": paired.rows, "fixed": paired.fixed, "broken": paired.broken}
    return reason, _rule(name, paired.p_value, bound, holds, **counts)
