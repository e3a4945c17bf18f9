"""Confidence interval of a share, and a test of paired outcomes.

`scipy.stats` has both, but its import takes half a second in every run. `scipy.special` is imported anyway.
"""

from statistics import NormalDist

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
