"""Error over repeated looks, by sums and by simulation; and how much distillation is still missing."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from cdmem.metrics.comparison.claims import claim, state
from cdmem.metrics.comparison.limit import Limit, fit_limit
from cdmem.metrics.comparison.looks import confidences, error_at_look, steps_missing
from support.curves import simulate


def test_shares_sum_to_the_total():
    shares = [error_at_look(k, 0.05) for k in range(1, 1_001)]
    assert shares[:3] == pytest.approx([0.025, 0.05 / 6, 0.05 / 12])
    assert sum(shares) == pytest.approx(0.05 * 1_000 / 1_001)
    assert confidences(1) == pytest.approx((0.95, 0.975)) and confidences(3, 0.12) == pytest.approx((0.98, 0.99))


@pytest.mark.parametrize(("look", "total"), [(0, 0.05), (-1, 0.05), (1, 0.0), (1, 1.0), (1, float("nan"))])
def test_no_such_look(look, total):
    with pytest.raises(ValueError, match="looks count from 1"):
        error_at_look(look, total)


def test_thirty_looks_at_nothing_keep_the_error():
    """Means of the first 100, 200, ... of 3,000 draws about 0: at 5 % each look a third of the series errs."""
    draws = np.random.default_rng(0).normal(size=(4_000, 30, 100)).sum(2).cumsum(1)
    z = np.abs(draws) / np.sqrt(100 * np.arange(1, 31))
    fixed = np.mean(np.any(z > stats.norm.ppf(0.975), axis=1))
    spent = [stats.norm.ppf(0.5 + confidences(k)[1] / 2) for k in range(1, 31)]
    assert fixed > 0.25 and np.mean(np.any(z > spent, axis=1)) <= 0.05


def look(steps: np.ndarray, differences: np.ndarray, number: int) -> str:
    """The claim of one look."""
    inner, outer = confidences(number)
    last = differences[-1]
    halves = [stats.norm.ppf(0.5 + c / 2) * last.std(ddof=1) / np.sqrt(len(last)) for c in (inner, outer)]
    now = state(*((last.mean() - h, last.mean() + h) for h in halves), 0.03)
    limit = fit_limit(steps, differences)
    if isinstance(limit, str):
        return claim(now, None, limit)[0]
    return claim(now, state(limit.interval(inner), limit.interval(outer), 0.05))[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "gap", "right"),
    [
        ("equal all along", lambda t: 0 * t, {"unchanged"}),
        ("closes like t^-0.5", lambda t: -0.1 * (t / 60_000) ** -0.5, {"transient", "unchanged"}),
        ("15 below", lambda t: -0.15 - 0.3 * np.exp(-t / 12_000), {"reduced"}),
    ],
)
def test_looks_at_a_growing_run_keep_the_error(name, gap, right):
    """40 runs, looked at after 12, 15, ..., 30 evaluations until decided: at most 2 (5 %) claim what is wrong."""
    steps, wrong = np.linspace(2_000, 60_000, 30), 0
    for seed in range(40):
        differences = simulate(np.random.default_rng([seed, len(name)]), steps, gap(steps))
        for number, seen in enumerate(range(12, 31, 3), 1):
            made = look(steps[:seen], differences[:seen], number)
            if made != "undecided":
                wrong += made not in right
                break
    assert wrong <= 2


STEPS = np.linspace(4_000.0, 92_000.0, 23)


def test_missing_steps_shrink_with_the_run_and_end_in_a_decision():
    gap = -0.15 - 0.1 * (STEPS / 92_000) ** -0.5
    short, long = (fit_limit(STEPS[:k], simulate(np.random.default_rng(1), STEPS, gap)[:k]) for k in (13, 23))
    assert isinstance(short, Limit) and isinstance(long, Limit)
    missing = steps_missing(short), steps_missing(long)
    assert isinstance(missing[0], int) and isinstance(missing[1], int)
    assert short.to_step + missing[0] >= short.to_step * 1.25 and missing[1] >= 0.25 * 92_000 - 1


def test_what_more_steps_do_not_decide():
    """At the margin of now only seeds help, whatever the limit does."""
    flat = fit_limit(STEPS, simulate(np.random.default_rng(5), STEPS, np.full(23, -0.026)))
    assert isinstance(flat, Limit)
    assert "not within 64 times the steps so far" in steps_missing(flat, margin=0.001, limit_margin=0.001, look=50)
    assert steps_missing("no law fits") == "unknown while no limit can be given (no law fits)"


def test_a_wider_margin_and_an_earlier_look_need_no_more_steps():
    gap = -0.1 * (STEPS / 92_000) ** -0.7
    limit = fit_limit(STEPS, simulate(np.random.default_rng(3), STEPS, gap, seeds=8_000))
    narrow, wide, late = (steps_missing(limit, limit_margin=m, look=k) for m, k in ((0.05, 1), (0.2, 1), (0.05, 6)))
    assert isinstance(wide, int) and wide <= (narrow if isinstance(narrow, int) else np.inf)
    assert not isinstance(narrow, int) or not isinstance(late, int) or late >= narrow
