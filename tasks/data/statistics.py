"""Confidence interval of a share, its exact test, and tests of paired outcomes.

`scipy.stats` has both, but its import takes half a second in every run. `scipy.special` is imported anyway.
"""

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

_TWO_SIDED_95 = NormalDist().inv_cdf(0.975)


def wilson_interval(count: float, rows: float, z: float = _TWO_SIDED_95) -> tuple[float, float]:
    """Return the confidence bounds of the share ``count`` / ``rows``, ``z`` standard errors to each side.

    ``rows`` must be above 0. Both may be fractions: effective sample sizes of weighted rows.

    Wilson, "Probable inference, the law of succession, and statistical inference", Journal of the American Statistical
    Association 22, 1927.
    """
    share, spread = count / rows, z**2 / rows
    centre = share + spread / 2
    reach = z * ((share * (1 - share) + spread / 4) / rows) ** 0.5
    low, high = (centre - reach) / (1 + spread), (centre + reach) / (1 + spread)
    # Exactly 0 and 1, which rounding would miss.
    return (low if count else 0.0), (high if count < rows else 1.0)


def sign_test(of: int, against: int) -> float:
    """Return the one-sided p-value of at least ``of`` successes in ``of + against`` trials of probability 1/2.

    Dixon and Mood, "The statistical sign test", Journal of the American Statistical Association 41, 1946.
    """
    from scipy.special import bdtrc

    return float(bdtrc(of - 1, of + against, 0.5))


def binomial_test(successes: int, rows: int, probability: float) -> float:
    """Return the one-sided p-value of at most ``successes`` in ``rows`` trials of that probability, exact."""
    from scipy.special import bdtr

    return float(bdtr(successes, rows, probability))


def same_shares_test(one: npt.ArrayLike, other: npt.ArrayLike) -> float:
    """Return the p-value of the chi-square test that two samples, counts per class, have the same shares.

    Classes in neither sample do not count. Without two classes, or without a row in one sample, it is 1.

    Pearson, "On the criterion that a given system of deviations ...", Philosophical Magazine 50, 1900.
    """
    from scipy.special import chdtrc

    counts = np.array([one, other], np.float64)
    counts = counts[:, counts.any(axis=0)]
    if counts.shape[1] < 2 or not counts.any(axis=1).all():
        return 1.0
    expected = counts.sum(axis=1, keepdims=True) * counts.sum(axis=0) / counts.sum()
    return float(chdtrc(counts.shape[1] - 1, ((counts - expected) ** 2 / expected).sum()))


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
