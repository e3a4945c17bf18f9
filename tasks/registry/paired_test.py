"""McNemar's exact test of two models on the same rows."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tasks.data.statistics import sign_test


@dataclass(frozen=True)
class PairedTest:
    """Two models on the same test rows.

    fixed: rows that only the candidate predicts correctly. broken: rows that only the champion predicts correctly.
    p_value: two-sided probability that two equally good models differ by this much or more.
    """

    rows: int
    fixed: int
    broken: int
    p_value: float


def mcnemar(candidate_right: npt.NDArray[np.bool_], champion_right: npt.NDArray[np.bool_]) -> PairedTest:
    """Compare the correct rows of two models, both bool (N,). Raises ValueError if the lengths differ.

    McNemar, "Note on the sampling error of the difference between correlated proportions or percentages",
    Psychometrika 12, 1947. Exact, as a two-sided sign test.
    """
    if candidate_right.shape != champion_right.shape:
        raise ValueError(f"expected the same rows, received {candidate_right.shape} and {champion_right.shape}")
    fixed = int((candidate_right & ~champion_right).sum())
    broken = int((champion_right & ~candidate_right).sum())
    p_value = min(1.0, 2 * sign_test(max(fixed, broken), min(fixed, broken)))
    return PairedTest(len(candidate_right), fixed, broken, p_value)
