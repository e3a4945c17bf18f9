"""Measure a candidate, and the champion on the same test rows: what a promotion depends on."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from schemas.contract import contract_of
from schemas.errors import StoredArtifactError
from schemas.layout import METRICS_NAME, PREDICTIONS_NAME
from schemas.references import Evaluation, PreparedData
from tasks.model.inference import run_stored_model
from tasks.model.test_predictions import read_predictions
from tasks.registry.paired_test import PairedTest, mcnemar


@dataclass(frozen=True)
class Champion:
    """The champion version. ``fault`` is the reason why its stored files cannot be used, else None."""

    number: int
    folder: Path
    fault: str | None


@dataclass(frozen=True)
class CandidateMetrics:
    """The values that a verdict is decided from.

    golden_difference: largest difference of the golden predictions after loading the stored files in a fresh process.
    champion: its version number, None if there is no champion.
    champion_fault: the reason why the champion could not be measured, else None.
    paired: None without a champion that could be measured.
    """

    accuracy: float
    per_class: Sequence[Mapping[str, Any]]
    golden_difference: float
    champion: int | None
    champion_fault: str | None
    paired: PairedTest | None


def measure_candidate(prepared: PreparedData, evaluation: Evaluation, champion: Champion | None) -> CandidateMetrics:
    """Collect the candidate's metrics, and compare it with the champion on the test rows of ``prepared``.

    The champion predicts these rows again: its own metrics may come from other rows.
    """
    folder = evaluation.record.path
    metrics = json.loads((folder / METRICS_NAME).read_bytes())
    fault, paired = (None if champion is None else champion.fault), None
    if champion is not None and fault is None:
        try:
            champion_right = run_stored_model(champion.folder, prepared.record.path).right
        except StoredArtifactError as error:
            fault = str(error)
        else:
            candidate = read_predictions(folder / PREDICTIONS_NAME, contract_of(prepared.dataset))
            paired = mcnemar(candidate.right, champion_right)
    return CandidateMetrics(
        accuracy=metrics["test_accuracy"],
        per_class=metrics["per_class"],
        golden_difference=evaluation.golden_difference,
        champion=None if champion is None else champion.number,
        champion_fault=fault,
        paired=paired,
    )
