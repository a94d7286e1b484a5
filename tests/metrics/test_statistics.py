"""Intervals and tests against SciPy, hand values and simulation."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats

from cdmem.errors import InputError
from cdmem.metrics.statistics import (
    NORMAL_95,
    benjamini_hochberg,
    conformal_discoveries,
    conformal_p_values,
    holm,
    mcnemar_exact,
    mean_interval,
    median,
    newcombe_paired_difference,
    smallest_visible,
    squared_distance_interval,
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
    "table, phi",
    [
        # No more than what the continuity correction takes away.
        ((6, 4, 24, 16), 0),
        ((25, 25, 25, 25), 0),
        ((0, 0, 40, 60), 0),
        ((1, 0, 0, 1), 0),
        ((1, 1, 7, 12), 0),
        ((20, 5, 9, 66), (20 * 66 - 5 * 9 - 50) / math.sqrt(25 * 75 * 29 * 71)),
        # A negative correlation widens the interval and is not corrected.
        ((3, 40, 40, 3), (9 - 1600) / 43**2),
    ],
)
def test_newcombe_by_its_correlation(table, phi):
    """From SciPy's Wilson intervals; with phi = 0 it is the unpaired interval."""
    both, first, second, _ = table
    p1, p2 = (both + first) / sum(table), (both + second) / sum(table)
    one, two = (stats.binomtest(both + k, sum(table)).proportion_ci(method="wilson") for k in (first, second))
    sides = ((p1 - one.low, two.high - p2), (one.high - p1, p2 - two.low))
    down, up = (math.sqrt(a * a - 2 * phi * a * b + b * b) for a, b in sides)
    want = (p1 - p2, p1 - p2 - down, p1 - p2 + up)
    assert newcombe_paired_difference(*table) == pytest.approx(want, abs=1e-12)


@pytest.mark.parametrize("both, neither", [(100, 0), (0, 100), (50, 50), (1, 999)])
def test_newcombe_without_discordant_pairs_has_width_and_contains_zero(both, neither):
    d, low, high = newcombe_paired_difference(both, 0, 0, neither)
    assert d == 0 and low < 0 < high and low == pytest.approx(-high, abs=1e-12)


def test_newcombe_everything_changed():
    d, low, high = newcombe_paired_difference(0, 100, 0, 0)
    assert d == 1 and high == 1 and 0.9 < low < 1


@pytest.mark.parametrize("a, b", [(0, 0), (0, 1), (0, 5), (10, 0), (4, 4), (1, 7), (3, 9), (12, 2), (250, 200)])
def test_mcnemar_is_the_binomial_test(a, b):
    tail = 2 * stats.binom.cdf(min(a, b), a + b, 0.5)
    assert mcnemar_exact(a, b) == pytest.approx(min(tail, 1.0), rel=1e-9)
    assert mcnemar_exact(a, b) == mcnemar_exact(b, a)


# ---- families of tests ----------------------------------------------------------------------------------------------


def test_holm_is_the_closed_test_with_bonferroni():
    """A hypothesis falls when every intersection that contains it falls by Bonferroni (Marcus, Peritz, Gabriel)."""
    rng = np.random.default_rng(0)
    for _ in range(30):
        p = (rng.random(5) ** 2).round(2)
        subsets = [s for r in range(1, 6) for s in itertools.combinations(range(5), r)]
        want = [max(min(1.0, len(s) * p[list(s)].min()) for s in subsets if k in s) for k in range(5)]
        assert holm(p.tolist()) == pytest.approx(want, abs=1e-15)
    assert holm([0.6, 0.5]) == [1.0, 1.0] and holm([]) == []


def test_benjamini_hochberg_as_published():
    """The 15 p values of section 3.2 of the paper: at 5 % the four smallest are rejected (Bonferroni: three)."""
    rejected = [0.0001, 0.0004, 0.0019, 0.0095]
    kept = [0.0201, 0.0278, 0.0298, 0.0344, 0.0459, 0.324, 0.4262, 0.5719, 0.6528, 0.759, 1]
    order = np.random.default_rng(0).permutation(15)
    assert benjamini_hochberg(np.array(rejected + kept)[order], 0.05).tolist() == [k < 4 for k in order]


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


def brute_visible(samples, controls, rate):
    """The least number of samples below every control that is discovered, by trying."""
    control = np.arange(controls) + 10.0
    for k in range(1, samples + 1):
        scores = np.append(np.zeros(k), np.full(samples - k, 10.0 + controls))
        if benjamini_hochberg(conformal_p_values(scores, control), rate).sum() == k:
            return k / samples
    return None


@pytest.mark.parametrize(("samples", "controls"), [(200, 999), (200, 1000), (60, 99), (60, 98), (7, 400), (50, 20_000)])
@pytest.mark.parametrize("rate", [0.01, 0.1])
def test_smallest_visible_share_by_trying(samples, controls, rate):
    assert smallest_visible(samples, controls, rate) == brute_visible(samples, controls, rate)


def test_smallest_visible_share_is_one_over_rate_times_controls():
    """10 % with 1,000 held-out images at 1 %, rounded up to a number of samples; none below 99 of them."""
    assert smallest_visible(10**5, 999, 0.01) == 0.1 and smallest_visible(2000, 1000, 0.01) == 200 / 2000
    assert smallest_visible(2000, 99, 0.01) == 1 and smallest_visible(2000, 98, 0.01) is None
    for h in (500, 3000, 20_000):
        assert 0 <= smallest_visible(10**5, h, 0.01) - 100 / (h + 1) < 1e-5


def test_conformal_discoveries_say_what_they_cannot_see():
    """101 exact copies of 2,000 samples: nothing with 1,000 held-out images, all with as many as the note asks for."""
    scores, rng = np.append(np.zeros(101), np.full(1899, 0.9)), np.random.default_rng(0)
    found = conformal_discoveries(scores, 0.5 + 0.3 * rng.random(1000), 0.01, 101 / 2000)
    assert found["discoveries"] == 0 and found["smallest_visible"] == 0.1 and found["held_out"] == 1000
    assert found["smallest_p"] == 1 / 1001 and found["false_discovery_rate"] == 0.01
    assert found["note"] == (
        "1000 held-out images show no less than 10.0 % at a false-discovery rate of 1 %: f_mem of 5.1 % takes 1980"
    )
    assert conformal_discoveries(scores, 0.5 + 0.3 * rng.random(1980), 0.01)["discoveries"] == 101
    assert conformal_discoveries(scores, 0.5 + 0.3 * rng.random(1979), 0.01)["discoveries"] == 0
    for suspected in (0.0, 0.1, 0.5):
        assert "note" not in conformal_discoveries(scores, np.full(1000, 0.5), 0.01, suspected)
    few = conformal_discoveries(scores, np.full(98, 0.5), 0.01, 0.9)
    assert few["smallest_visible"] is None and "98 held-out images show nothing" in few["note"]
    assert "note" not in conformal_discoveries(scores, np.full(98, 0.5), 0.01)


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


@pytest.mark.parametrize("values", [[3.0], [1.0, 4.0], [5.0, 1.0, 2.0], [1, 2, 3, 10], [0.0, -1.0, 7.0, 7.5, 2.0, 2.5]])
def test_median_is_the_middle_of_the_sorted_or_of_its_two(values):
    ordered, k = sorted(values), len(values)
    assert median(values) == median(torch.tensor(values)) == (ordered[(k - 1) // 2] + ordered[k // 2]) / 2


@pytest.mark.parametrize(("value", "variance", "plug_in"), [(2.0, 0.3, 0.4), (-0.1, 0.05, 0.2), (0.5, 0.0, 0.1)])
def test_squared_distance_interval_solves_its_equation(value, variance, plug_in):
    """Its ends are where the distance to the estimate is z standard errors of the end in question."""
    found = squared_distance_interval(value, variance, plug_in, 1.6)
    for end in found[1:]:
        spread = variance + plug_in / 1.6 * (end - value)
        assert (end - value) ** 2 == pytest.approx(NORMAL_95**2 * spread, abs=1e-12)
    assert found.low <= value < found.high
    # Without growth it is the normal interval.
    half = NORMAL_95 * math.sqrt(variance)
    assert squared_distance_interval(value, variance, plug_in, 0.0) == pytest.approx(
        (value, value - half, value + half)
    )


def test_squared_distance_interval_covers_where_the_normal_one_does_not():
    """|shift + noise|^2 less its bias, in 5 dimensions, for noise of unit variance, which is known."""
    rng = np.random.default_rng(6)
    for shift in (0.0, 1.0, 3.0):
        points = rng.normal(size=(4000, 5)) + np.eye(5)[0] * shift
        biased = (points**2).sum(1)
        variances = np.maximum(4 * (biased - 5), 0) + 10  # 4 |shift|^2 + 2 d
        pairs = [(b - 5, v) for b, v in zip(biased, variances)]
        found = [squared_distance_interval(v, s, 4 * (v + 5), v + 5) for v, s in pairs]
        assert 0.93 <= np.mean([f.low <= shift**2 <= f.high for f in found]) <= 0.985
        assert np.mean([f.high < shift**2 for f in found]) < 0.04
