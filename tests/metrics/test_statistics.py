"""Intervals and tests against SciPy, hand values and simulation."""

from __future__ import annotations

import functools
import itertools
import math

import numpy as np
import pytest
from scipy import stats

from cdmem.errors import InputError
from cdmem.metrics.statistics import (
    benjamini_hochberg,
    conformal_p_values,
    holm,
    mcnemar_exact,
    mean_interval,
    newcombe_paired_difference,
    wilcoxon_signed_rank,
    wilson_interval,
)

TABLES = [(36, 12, 2, 0), (1, 1, 7, 12), (20, 5, 9, 66), (3, 40, 40, 3), (0, 10, 0, 5), (70, 1, 0, 29)]


@pytest.mark.parametrize("n", [1, 2, 7, 50, 333, 10_000])
@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
def test_wilson_is_scipys(n, confidence):
    for k in sorted({0, 1, n // 10, n // 3, n // 2, n - 1, n}):
        want = stats.binomtest(k, n).proportion_ci(confidence, method="wilson")
        assert wilson_interval(k, n, confidence) == pytest.approx((want.low, want.high), rel=1e-12, abs=1e-14)


@pytest.mark.parametrize("n", [1, 3, 10, 1000, 10_000, 123_457])
def test_wilson_ends_are_exact(n):
    assert wilson_interval(0, n)[0] == 0.0
    assert wilson_interval(n, n)[1] == 1.0
    assert 0 < wilson_interval(0, n)[1] < 1
    assert wilson_interval(n, n)[0] == pytest.approx(1 - wilson_interval(0, n)[1], abs=1e-12)


@pytest.mark.parametrize(
    "k, n, want",
    [(81, 263, (0.2553, 0.3662)), (15, 148, (0.0624, 0.1605)), (0, 20, (0, 0.1611)), (1, 29, (0.0061, 0.1718))],
)
def test_wilson_as_published(k, n, want):
    """Newcombe 1998, Statistics in Medicine 17:857, table I, method 3."""
    assert tuple(round(bound, 4) for bound in wilson_interval(k, n)) == want


def test_wilson_of_none_in_ten_thousand():
    low, high = wilson_interval(0, 10_000)
    assert low == 0.0 and round(high, 5) == 0.00038


@pytest.mark.parametrize("k, n", [(0, 0), (-1, 5), (6, 5)])
def test_wilson_refuses_what_is_no_fraction(k, n):
    with pytest.raises(InputError):
        wilson_interval(k, n)


def test_newcombe_as_published():
    """Newcombe 1998, Statistics in Medicine 17:2635, first example, method 10."""
    assert [round(x, 4) for x in newcombe_paired_difference(36, 12, 2, 0)] == [0.2, 0.0569, 0.3404]


@pytest.mark.parametrize("table", TABLES)
def test_newcombe_is_antisymmetric_and_brackets_its_estimate(table):
    both, first, second, neither = table
    d, low, high = newcombe_paired_difference(*table)
    assert d == pytest.approx((first - second) / sum(table), abs=1e-15)
    assert -1 <= low <= d <= high <= 1 and low < high
    assert newcombe_paired_difference(both, second, first, neither) == pytest.approx((-d, -high, -low), abs=1e-14)
    # Yes and no change places: the difference changes its sign.
    assert newcombe_paired_difference(neither, second, first, both) == pytest.approx((-d, -high, -low), abs=1e-14)


@pytest.mark.parametrize(
    "both, first, second, neither", [(6, 4, 24, 16), (25, 25, 25, 25), (0, 0, 40, 60), (1, 0, 0, 1)]
)
def test_newcombe_without_correlation_is_the_unpaired_interval(both, first, second, neither):
    n = both + first + second + neither
    assert 0 <= both * neither - first * second <= n / 2  # what the continuity correction takes away
    p1, p2 = (both + first) / n, (both + second) / n
    low1, high1 = stats.binomtest(both + first, n).proportion_ci(method="wilson")
    low2, high2 = stats.binomtest(both + second, n).proportion_ci(method="wilson")
    want = (p1 - p2 - math.hypot(p1 - low1, high2 - p2), p1 - p2 + math.hypot(high1 - p1, p2 - low2))
    assert newcombe_paired_difference(both, first, second, neither)[1:] == pytest.approx(want, abs=1e-12)


def test_newcombe_continuity_correction():
    # Table 1, 1, 7, 12: cross product 12 - 7 = 5 < n / 2, so phi is 0; with 20, 5, 9, 66 it is (1320 - 45 - 50) / root.
    p1, p2, n = 2 / 21, 8 / 21, 21
    low1, high1 = stats.binomtest(2, n).proportion_ci(method="wilson")
    low2, high2 = stats.binomtest(8, n).proportion_ci(method="wilson")
    want = (p1 - p2 - math.hypot(p1 - low1, high2 - p2), p1 - p2 + math.hypot(high1 - p1, p2 - low2))
    assert newcombe_paired_difference(1, 1, 7, 12)[1:] == pytest.approx(want, abs=1e-12)
    phi = (20 * 66 - 5 * 9 - 50) / math.sqrt(25 * 75 * 29 * 71)
    low1, high1 = stats.binomtest(25, 100).proportion_ci(method="wilson")
    low2, high2 = stats.binomtest(29, 100).proportion_ci(method="wilson")
    a, b = 0.25 - low1, high2 - 0.29
    c, d = high1 - 0.25, 0.29 - low2
    want = -0.04 - math.sqrt(a * a - 2 * phi * a * b + b * b), -0.04 + math.sqrt(c * c - 2 * phi * c * d + d * d)
    assert newcombe_paired_difference(20, 5, 9, 66)[1:] == pytest.approx(want, abs=1e-12)
    # A negative correlation widens the interval and is not corrected.
    phi = (9 - 1600) / math.sqrt(43 * 43 * 43 * 43)
    low, high = stats.binomtest(43, 86).proportion_ci(method="wilson")
    half = math.sqrt((0.5 - low) ** 2 + (high - 0.5) ** 2 - 2 * phi * (0.5 - low) * (high - 0.5))
    assert newcombe_paired_difference(3, 40, 40, 3) == pytest.approx((0, -half, half), abs=1e-12)


@pytest.mark.parametrize("both, neither", [(100, 0), (0, 100), (50, 50), (1, 999)])
def test_newcombe_without_discordant_pairs_has_width_and_contains_zero(both, neither):
    d, low, high = newcombe_paired_difference(both, 0, 0, neither)
    assert d == 0 and low < 0 < high and low == pytest.approx(-high, abs=1e-12)


def test_newcombe_everything_changed():
    d, low, high = newcombe_paired_difference(0, 100, 0, 0)
    assert d == 1 and high == 1 and 0.9 < low < 1


@pytest.mark.parametrize(
    "cells", [(0.3, 0.1, 0.1, 0.5), (0.05, 0.3, 0.02, 0.63), (0.8, 0.1, 0.03, 0.07), (0.02, 0.03, 0.01, 0.94)]
)
def test_newcombe_covers(cells):
    interval = functools.cache(newcombe_paired_difference)
    drawn = np.random.default_rng(7).multinomial(100, cells, size=1500)
    inside = [low <= cells[1] - cells[2] <= high for _, low, high in (interval(*t) for t in drawn.tolist())]
    assert 0.93 <= np.mean(inside) <= 0.995


def test_mcnemar_by_hand():
    assert mcnemar_exact(0, 0) == 1.0
    assert mcnemar_exact(0, 5) == pytest.approx(2 / 32)
    assert mcnemar_exact(10, 0) == pytest.approx(2 / 1024)
    assert mcnemar_exact(1, 7) == pytest.approx(2 * (1 + 8) / 256)
    assert mcnemar_exact(4, 4) == 1.0


def test_mcnemar_is_the_binomial_test():
    for a, b in [(3, 9), (9, 3), (12, 2), (250, 200), (0, 1)]:
        tail = 2 * stats.binom.cdf(min(a, b), a + b, 0.5)
        assert mcnemar_exact(a, b) == pytest.approx(min(tail, 1.0), rel=1e-9)
        assert mcnemar_exact(a, b) == mcnemar_exact(b, a)


# ---- families of tests ----------------------------------------------------------------------------------------------


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.5]) == [1.0, 1.0] and holm([0.2]) == [0.2] and holm([]) == []


def test_holm_is_the_closed_test_with_bonferroni():
    """A hypothesis falls when every intersection that contains it falls by Bonferroni (Marcus, Peritz, Gabriel)."""
    rng = np.random.default_rng(0)
    for _ in range(30):
        p = (rng.random(5) ** 2).round(2)
        subsets = [s for r in range(1, 6) for s in itertools.combinations(range(5), r)]
        want = [max(min(1.0, len(s) * p[list(s)].min()) for s in subsets if k in s) for k in range(5)]
        assert holm(p.tolist()) == pytest.approx(want, abs=1e-15)


def test_benjamini_hochberg_as_published():
    """The 15 p values of section 3.2 of the paper: at 5 % the four smallest are rejected (Bonferroni: three)."""
    p = [
        0.0001,
        0.0004,
        0.0019,
        0.0095,
        0.0201,
        0.0278,
        0.0298,
        0.0344,
        0.0459,
        0.324,
        0.4262,
        0.5719,
        0.6528,
        0.759,
        1,
    ]
    order = np.random.default_rng(0).permutation(15)
    assert benjamini_hochberg(np.array(p)[order], 0.05).tolist() == [k < 4 for k in order]


def test_benjamini_hochberg_by_brute_force():
    """Rejected is p <= t for the largest t among the p values with t m / #{p <= t} <= rate; and SciPy's adjustment."""
    rng = np.random.default_rng(1)
    for rate in (0.01, 0.1, 0.3):
        for _ in range(50):
            p = rng.random(12) ** rng.integers(1, 5)
            good = [t for t in p if t * 12 / np.sum(p <= t) <= rate]
            want = p <= max(good, default=-1)
            assert (benjamini_hochberg(p, rate) == want).all()
            assert (want == (stats.false_discovery_control(p) <= rate)).all()
    assert benjamini_hochberg(np.array([]), 0.1).shape == (0,)


def test_conformal_p_values_by_hand():
    found = conformal_p_values(np.array([0.5, 2, 2.5, 4, 9]), np.array([3, 1, 4, 2]))
    assert found.tolist() == [1 / 5, 3 / 5, 3 / 5, 1, 1]


def test_conformal_p_values_of_the_control_itself_are_uniform():
    """Exchangeable scores have a uniform rank; less a uniform share of one step it is uniform on (0, 1)."""
    rng = np.random.default_rng(2)
    scores = rng.gamma(2.0, size=(4000, 20))
    p = np.array([conformal_p_values(row[:1], row[1:])[0] for row in scores])
    assert stats.kstest(p - rng.random(4000) / 20, "uniform").pvalue > 1e-3
    assert set(np.round(p * 20).astype(int)) == set(range(1, 21))


# ---- paired values, means, runs -------------------------------------------------------------------------------------


@pytest.mark.parametrize("zeros", [0, 3])
def test_wilcoxon_by_enumerating_signs(zeros):
    """Ranks of |d| with the zeros counted (Pratt), then all 2^n signs of the others."""
    d = np.concatenate([np.zeros(zeros), np.random.default_rng(3).normal(0.4, 1, 9)])
    ranks = stats.rankdata(np.abs(d))[zeros:]
    signs = np.array(list(itertools.product([0, 1], repeat=9)))
    null, seen = signs @ ranks, (d[zeros:] > 0) @ ranks
    extreme = np.abs(null - ranks.sum() / 2) >= abs(seen - ranks.sum() / 2) - 1e-9
    found = wilcoxon_signed_rank(d)
    assert found["median"] == np.median(d)
    assert found["p_value"] == pytest.approx(extreme.mean(), rel=1e-9)


def test_wilcoxon_is_scipys_and_knows_nothing_but_zeros():
    d = np.random.default_rng(4).normal(0.2, 1, 200)
    d[:20] = 0
    want = stats.wilcoxon(d, zero_method="pratt", method="approx").pvalue
    assert wilcoxon_signed_rank(d)["p_value"] == pytest.approx(want, rel=1e-12)
    assert wilcoxon_signed_rank(np.zeros(5)) == {"median": 0.0, "p_value": 1.0}


@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_mean_interval_is_students(confidence):
    v = np.random.default_rng(5).normal(size=7)
    want = stats.t.interval(confidence, 6, loc=v.mean(), scale=stats.sem(v))
    assert mean_interval(v, confidence) == pytest.approx((v.mean(), *want), rel=1e-12)
    assert mean_interval(np.array([2.0])) == (2.0, -math.inf, math.inf)
