"""The laws by which a gap closes, against their closed forms, and the assumptions that bound them, from both sides."""

from __future__ import annotations

import numpy as np
import pytest

from cdmem.metrics.comparison.laws import (
    HEAD_START,
    LATEST_START,
    LEAST_EXPONENT,
    SLOWEST,
    TENFOLD,
    Laws,
    allowed,
    exponent,
    law_grid,
)

FIRST, LAST = 4_000.0, 92_000.0
STEPS = np.linspace(FIRST, LAST, 23)


def power(b: float, offset: float) -> Laws:
    """(t + offset)^-b."""
    return Laws.row(np.array([(FIRST + offset) / b]), 1 / b)


@pytest.mark.parametrize(("b", "offset"), [(0.3, 0), (0.5, 2_500), (1.0, -1_500), (3.0, 9_000)])
def test_powers_with_an_offset(b, offset):
    truth = ((STEPS + offset) / (FIRST + offset)) ** -b
    assert np.allclose(power(b, offset).gap(STEPS - FIRST)[0], truth, rtol=1e-12)


def test_exponential_is_the_limit_of_powers_and_of_logistic_curves():
    truth = np.exp(-(STEPS - FIRST) / 20_000)
    for curvature, tolerance in ((0.0, 1e-14), (1e-7, 1e-5), (-1e-7, 1e-5)):
        law = Laws.row(np.array([20_000.0]), curvature)
        assert np.allclose(law.gap(STEPS - FIRST)[0], truth, rtol=tolerance)


def test_logistic_curve():
    middle, scale = 20_000, 7_000
    truth = (1 + np.exp((FIRST - middle) / scale)) / (1 + np.exp((STEPS - middle) / scale))
    plateau = 1 / (1 + np.exp((FIRST - middle) / scale))
    law = Laws.row(np.array([float(scale)]), -plateau)
    assert np.allclose(law.gap(STEPS - FIRST)[0], truth, rtol=1e-12)


def test_two_rates():
    law = Laws.row(np.array([30_000.0]), slow=0.4, quick=1 / 6)
    since = STEPS - FIRST
    assert np.allclose(law.gap(since)[0], 0.6 * np.exp(-since / 5_000) + 0.4 * np.exp(-since / 30_000), rtol=1e-12)


def test_halving_by_hand():
    assert np.isclose(power(0.5, 0).halving(FIRST, LAST)[0], 4)
    assert np.isclose(power(1.0, 0).halving(FIRST, LAST)[0], 2)
    exponential = Laws.row(np.array([23_000.0]))
    assert np.isclose(exponential.halving(FIRST, LAST)[0], 1 + np.log(2) / 4)
    assert np.allclose(exponent(np.array([4.0, 2.0, 2 ** (1 / 0.3)])), [0.5, 1, 0.3])


def test_halving_halves_every_law():
    laws = Laws.join(law_grid(FIRST, LAST, 20))
    factors = laws.halving(FIRST, LAST)
    ends = laws.gap(np.stack([np.full(len(laws), LAST - FIRST), LAST * factors - FIRST], 1))
    seen = ends[:, 0] > 1e-250
    assert seen.sum() > 1_000 and np.all(factors > 1)
    assert np.allclose(ends[seen, 1] / ends[seen, 0], 0.5, atol=1e-9)


@pytest.mark.parametrize(
    ("inside", "outside"),
    [
        (power(LEAST_EXPONENT, 0), power(LEAST_EXPONENT - 0.001, 0)),
        # Without an offset the least exponent is the slowest; faster ones may have an offset.
        (power(LEAST_EXPONENT, 0), power(LEAST_EXPONENT, 50)),
        (power(0.3, 0), power(0.3, 0.06 * LAST)),
        (power(0.5, -LATEST_START * FIRST), power(0.5, -(LATEST_START + 0.01) * FIRST)),
        (power(0.9, 0.999 * HEAD_START * FIRST), power(0.9, 1.01 * HEAD_START * FIRST)),
        (Laws.row(np.array([0.999 * SLOWEST * LAST])), Laws.row(np.array([1.001 * SLOWEST * LAST]))),
    ],
)
def test_bounds_from_both_sides(inside, outside):
    assert allowed(inside, FIRST, LAST)[0] and not allowed(outside, FIRST, LAST)[0]


def test_grid_reaches_the_bounds_and_keeps_the_assumptions():
    rows = law_grid(FIRST, LAST, 20)
    single = [r for r in rows if r.quick[0] == 1]
    assert len(single) < len(rows)
    for row in single:
        assert allowed(row, FIRST, LAST).all()
    for row in rows:
        ends = row.gap(np.array([LAST - FIRST, LAST / 10 - FIRST]))
        assert np.all(ends[:, 0] <= (TENFOLD + 1e-6) * ends[:, 1])
        longer = Laws.row(1.01 * row.tau[-1:], row.curvature[0])
        assert not allowed(longer, FIRST, LAST)[0]
    assert min(1 / r.curvature[0] for r in rows if r.curvature[0] > 0) == pytest.approx(LEAST_EXPONENT)


def test_grid_has_no_time_scale_of_its_own():
    for mine, other in zip(law_grid(FIRST, LAST, 20), law_grid(7 * FIRST, 7 * LAST, 20), strict=True):
        assert np.allclose(7 * mine.tau, other.tau, rtol=1e-9) and np.array_equal(mine.curvature, other.curvature)
