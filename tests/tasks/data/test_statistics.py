from typing import Any

import numpy as np
import pytest
from scipy.stats import chi2_contingency

from tasks.data.statistics import binomial_test, mcnemar, same_shares_test, sign_test, wilson_interval


def test_published_wilson_intervals() -> None:
    # Newcombe, "Two-sided confidence intervals for the single proportion", Statistics in Medicine 17, 1998, table I.
    for right, rows, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0, 0.1611)):
        assert wilson_interval(right, rows) == pytest.approx((low, high), abs=5e-5)


def test_a_hand_worked_wilson_interval() -> None:
    # z = 4, n = 16, p = 8 / 16: (p + z2 / 2n -+ z sqrt(p (1 - p) / n + z2 / 4n2)) / (1 + z2 / n) with z2 / n = 1
    # is (0.5 + 0.5 -+ 4 sqrt(1 / 64 + 1 / 64)) / 2 = (1 -+ sqrt(1 / 2)) / 2.
    assert wilson_interval(8, 16, 4) == pytest.approx((0.146447, 0.853553), abs=1e-6)


def test_wilson_intervals_of_none_and_all_are_exact() -> None:
    assert (wilson_interval(0, 29)[0], wilson_interval(29, 29)[1]) == (0, 1)


@pytest.mark.parametrize(("count", "rows"), [(0, 10), (7, 10), (10, 10), (680, 1_000)])
@pytest.mark.parametrize("z", [1.0, 4.0])
def test_wilson_intervals_agree_with_scipy(count: int, rows: int, z: float) -> None:
    from scipy.stats import binomtest, norm

    expected = binomtest(count, rows).proportion_ci(1 - 2 * norm.sf(z), method="wilson")
    assert wilson_interval(count, rows, z) == pytest.approx((expected.low, expected.high))


@pytest.mark.parametrize(("of", "against"), [(0, 0), (0, 7), (1, 0), (5, 2), (40, 70), (500, 480), (4_000, 0)])
def test_the_sign_test_agrees_with_scipy(of: int, against: int) -> None:
    from scipy.stats import binomtest

    expected = binomtest(of, of + against, alternative="greater").pvalue if of + against else 1
    assert sign_test(of, against) == pytest.approx(expected, rel=1e-9)


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


@pytest.mark.parametrize(("right", "rows", "share"), [(0, 5, 0.9), (7, 10, 0.5), (880, 1_000, 0.9), (4, 4, 1)])
def test_binomial_p_values_agree_with_scipy(right: int, rows: int, share: float) -> None:
    from scipy.stats import binomtest

    expected = binomtest(right, rows, share, alternative="less").pvalue
    assert binomial_test(right, rows, share) == pytest.approx(expected)


def test_equal_shares_are_tested_as_by_scipy() -> None:
    one, other = [50, 30, 0, 20], [400, 420, 0, 180]
    expected = chi2_contingency(np.array([one, other])[:, [0, 1, 3]], correction=False).pvalue
    assert same_shares_test(one, other) == pytest.approx(expected)
    assert same_shares_test([5, 0], [7, 0]) == same_shares_test([0, 0], [7, 3]) == 1.0
