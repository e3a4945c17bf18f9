from typing import Any

import numpy as np
import pytest

from tasks.registry.paired_test import mcnemar


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
    paired = mcnemar(*_right(50, fixed, broken, 7))
    assert (paired.rows, paired.fixed, paired.broken) == (57 + fixed + broken, fixed, broken)
    assert paired.p_value == pytest.approx(p_value, rel=1e-12)


def test_mcnemar_requires_the_same_rows() -> None:
    with pytest.raises(ValueError, match="expected the same rows"):
        mcnemar(np.ones(3, dtype=bool), np.ones(4, dtype=bool))


@pytest.mark.parametrize(("fixed", "broken"), [(0, 1), (3, 9), (40, 70), (500, 500), (12, 0)])
def test_mcnemar_matches_scipy(fixed: int, broken: int) -> None:
    """Compare with the sum of the two tails of the binomial distribution."""
    import scipy.stats

    candidate = np.array([True] * fixed + [False] * broken + [True] * 5)
    champion = np.array([False] * fixed + [True] * broken + [True] * 5)
    tails = 2 * scipy.stats.binom.cdf(min(fixed, broken), fixed + broken, 0.5)
    assert mcnemar(candidate, champion).p_value == pytest.approx(min(1.0, tails), rel=1e-9)
