"""Shares of rows, and what chance makes of them.

`scipy.stats` has all this; to import it takes half a second, in every run. `scipy.special` is there already.
"""

from statistics import NormalDist

_TWO_SIDED_95 = NormalDist().inv_cdf(0.975)


def wilson_interval(count: float, rows: float, z: float = _TWO_SIDED_95) -> tuple[float, float]:
    """Bounds of a share that was found as ``count`` of ``rows`` (more than 0), ``z`` standard errors to each side.

    Neither need be whole: of rows that weigh differently they are what so many equal rows would tell.

    Wilson, "Probable inference, the law of succession, and statistical inference", Journal of the American Statistical
    Association 22, 1927.
    """
    share, spread = count / rows, z**2 / rows
    centre = share + spread / 2
    reach = z * ((share * (1 - share) + spread / 4) / rows) ** 0.5
    low, high = (centre - reach) / (1 + spread), (centre + reach) / (1 + spread)
    # The ends themselves, which rounding would miss.
    return (low if count else 0.0), (high if count < rows else 1.0)


def sign_test(of: int, against: int) -> float:
    """How likely chance gives at least ``of`` of the ``of + against`` rows that differ, each way as likely; one-sided.

    Dixon and Mood, "The statistical sign test", Journal of the American Statistical Association 41, 1946.
    """
    from scipy.special import bdtrc

    return float(bdtrc(of - 1, of + against, 0.5))
