"""Limits of curves: exact laws, other solvers, symmetries, refusals, and coverage on simulated students."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import stats

from cdmem.metrics.comparison.law_fit import OVERCONFIDENCE, Curve, adequacy, fit_laws, scan
from cdmem.metrics.comparison.laws import Laws
from cdmem.metrics.comparison.limit import (
    LEAST_EVALUATIONS,
    LEAST_SEEDS,
    Limit,
    fit_limit,
    paired_differences,
    possible,
    spaced,
)
from support.curves import simulate

STEPS = np.linspace(4_000.0, 92_000.0, 23)


def exact(curve: np.ndarray, seeds: int = LEAST_SEEDS) -> np.ndarray:
    """Differences whose means are ``curve``: the seeds differ by a constant, -0.4 or +0.4, half of them each."""
    return curve[:, None] + np.where(np.arange(seeds) % 2, 0.4, -0.4)


def power(b: float, offset: float = 0.0) -> np.ndarray:
    return ((STEPS + offset) / STEPS[-1]) ** -b


@pytest.mark.parametrize(
    ("limit", "gap", "shrinks"),
    [
        (0.0, power(0.5), 4.0),
        (-0.15, power(0.31), 2 ** (1 / 0.31)),
        (-0.15, power(0.62, 2_500), 1 + (2 ** (1 / 0.62) - 1) * (92_000 + 2_500) / 92_000),
        (0.05, power(1.0, -1_000), 1 + 91_000 / 92_000),
        (-0.15, np.exp(-(STEPS - 4_000) / 23_000), 1 + np.log(2) * 23 / 92),
    ],
)
def test_noise_free_laws_are_recovered(limit, gap, shrinks):
    found = fit_limit(STEPS, exact(limit - 0.1 * gap))
    assert isinstance(found, Limit) and found.skipped == 0 and found.evaluations == len(STEPS)
    assert found.value == pytest.approx(limit, abs=2e-5)
    assert found.shrinks == pytest.approx(shrinks, rel=1e-3)
    assert found.exponent == pytest.approx(np.log(2) / np.log(shrinks), rel=1e-3)
    assert found.exponent_ci95[0] <= found.exponent <= found.exponent_ci95[1]
    # Nothing is unknown but the seeds, and these are the same everywhere: their plain interval.
    for confidence in (0.90, 0.95):
        half = stats.norm.ppf(0.5 + confidence / 2) * 0.4 / np.sqrt((LEAST_SEEDS - 1) / OVERCONFIDENCE)
        assert np.allclose(found.interval(confidence), (limit - half, limit + half), atol=3e-4)
    assert np.allclose(found.curve(STEPS), limit - 0.1 * gap, atol=1e-4)


def test_solutions_equal_generalised_least_squares():
    """Value, variance and misfit against an explicit solution for three laws and two noise levels."""
    rng = np.random.default_rng(0)
    root = rng.normal(size=(23, 23)) * 0.002
    curve = Curve(STEPS, -0.2 * power(0.5) + rng.normal(size=23) * 0.01, root @ root.T, 4_000.0)
    laws = Laws.join([Laws.row(np.array([8_000.0]), 2.0), Laws.row(np.array([20_000.0, 60_000.0]))])
    noise = np.array([0.003, 0.01])
    found = scan(curve, laws, noise)
    apart = np.abs(STEPS[:, None] - STEPS)
    for k, n in enumerate(noise):
        inverse = np.linalg.inv(curve.covariance + n**2 * 8.0 ** (-apart / 4_000))
        for j, g in enumerate(laws.gap(STEPS - STEPS[0])):
            x = np.stack([np.ones(23), g], 1)
            variance = np.linalg.inv(x.T @ inverse @ x)
            fit = variance @ x.T @ inverse @ curve.mean
            rest = curve.mean - x @ fit
            expected = [fit[0], fit[1], variance[0, 0], rest @ inverse @ rest]
            assert np.allclose(
                [a[k, j] for a in (found.limit, found.amplitude, found.variance, found.misfit)], expected, rtol=1e-7
            )


def test_unknown_noise_gives_students_t():
    """One law, no seeds: the weights over the noise make the p value that of t with K - 3 degrees of freedom."""
    rng, law = np.random.default_rng(1), Laws.row(np.array([8_000.0]), 2.0)
    curve = Curve(STEPS, -0.15 - 0.1 * power(0.5) + 0.01 * rng.normal(size=23), np.zeros((23, 23)))
    found = scan(curve, law, np.geomspace(0.001, 0.1, 400))
    value, unit = found.limit[0, 0], found.variance[0, 0] / found.noise[0] ** 2
    residual = found.misfit[0, 0] * found.noise[0] ** 2
    for offset in (0.002, 0.006, 0.012):
        t = offset / np.sqrt(unit * residual / 20)
        assert found.p_limit(np.array([value + offset]))[0] == pytest.approx(
            2 * stats.t.sf(t / OVERCONFIDENCE**0.5, 20), rel=0.02
        )


def test_interval_ends_where_p_says():
    rng = np.random.default_rng(2)
    found = fit_laws(Curve(STEPS, -0.1 * power(0.5) + 0.007 * rng.normal(size=23), np.full((23, 23), 1e-4)))
    for confidence in (0.9, 0.95, 0.999):
        low, high = found.interval(confidence)
        inside, outside = found.p_limit(np.array([low + 1e-3, high - 1e-3])), found.p_limit(np.array([low, high]))
        assert np.all(inside > 1 - confidence) and np.all(
            found.p_limit(np.array([low - 1e-3, high + 1e-3])) < 1 - confidence
        )
        assert np.allclose(outside, 1 - confidence, rtol=0.1)


def test_order_of_seeds_and_unit_of_time_do_not_matter():
    differences = simulate(np.random.default_rng(3), STEPS, -0.1 * power(0.5))
    found = fit_limit(STEPS, differences, 3_000)
    shuffled = fit_limit(STEPS, differences[:, np.random.default_rng(4).permutation(LEAST_SEEDS)], 3_000)
    longer = fit_limit(10 * STEPS, differences, 30_000)
    mirrored = fit_limit(STEPS, -differences, 3_000)
    for other in (shuffled, longer):
        assert other.value == pytest.approx(found.value, abs=1e-5) and other.shrinks == pytest.approx(
            found.shrinks, rel=1e-3
        )
        assert np.allclose(other.interval(), found.interval(), atol=1e-4)
    assert (longer.from_step, longer.to_step) == (10 * found.from_step, 10 * found.to_step)
    assert np.allclose(mirrored.interval(), [-found.interval()[1], -found.interval()[0]], atol=1e-4)


def test_interval_counts_seeds_and_step_noise():
    """Wider with noise of the steps; and on a flat curve never narrower than the seeds alone allow."""
    flat = np.full(23, -0.15)
    calm = fit_limit(STEPS, simulate(np.random.default_rng(5), STEPS, flat, noise=0.0))
    noisy = fit_limit(STEPS, simulate(np.random.default_rng(5), STEPS, flat, noise=0.03))
    assert 0.015 < noisy.step_noise < 0.06 and calm.step_noise < 0.012
    assert np.ptp(noisy.interval()) > 1.5 * np.ptp(calm.interval())
    differences = simulate(np.random.default_rng(16), STEPS, flat, noise=0.0)
    common = differences.mean(0).std(ddof=1) / np.sqrt(LEAST_SEEDS)
    assert np.ptp(fit_limit(STEPS, differences).interval()) > 2 * 1.96 * common


def test_a_flat_curve_has_a_limit_but_no_exponent():
    found = fit_limit(STEPS, simulate(np.random.default_rng(7), STEPS, np.full(23, -0.15)))
    assert found.exponent is None and found.shrinks is None and found.record()["exponent"] is None
    assert found.interval()[0] < -0.15 < found.interval()[1] < 0


def test_a_straight_line_has_no_limit():
    for rise in (0.2, -0.2):
        gap = -0.3 + rise * (STEPS - STEPS[0]) / np.ptp(STEPS)
        found = fit_limit(STEPS, simulate(np.random.default_rng(8), STEPS, gap))
        assert isinstance(found, str) and "a straight line fits as well" in found


def test_a_limit_lies_where_differences_can():
    """A curve towards +0.95: its laws reach beyond 1, where no difference lies."""
    curve = exact(0.95 - 1.2 * power(0.4), 4_000) + simulate(np.random.default_rng(9), STEPS, 0 * STEPS, seeds=4_000)
    free, found = fit_limit(STEPS, curve, bounds=(-9.0, 9.0)), fit_limit(STEPS, curve)
    assert isinstance(found, Limit) and isinstance(free, Limit) and free.interval()[1] > 1
    low, high = found.interval()
    assert low < found.value <= high <= 1 and found.fit.p_bounds() > 0.05
    assert low < free.interval()[0]  # compared with the best law whose limit can be, not with the best one
    assert np.allclose(found.curve(STEPS), curve.mean(1), atol=0.05)


def test_a_curve_that_leads_to_what_cannot_be():
    """Beside a teacher of f_mem 0.9 the limit of 0.35, to which the whole curve leads, cannot be."""
    curve, bounds = exact(0.35 - 0.9 * power(0.4), 4_000), possible(3_600, 4_000)
    free, found = fit_limit(STEPS, curve), fit_limit(STEPS, curve, bounds=bounds)
    assert isinstance(free, Limit) and free.value == pytest.approx(0.35, abs=1e-3)
    assert isinstance(found, str) or max(found.value, found.interval()[1]) <= bounds[1]


@pytest.mark.parametrize("bounds", [(-0.5, 0.0), (-0.02, 0.3), (-0.5, 0.5)])
def test_bounds_are_a_constraint_of_the_likelihood(bounds):
    """p values against brute force, at one noise level: the least Q over all laws at a limit, less the least within."""
    rng, noise = np.random.default_rng(3), np.array([0.006])
    curve = Curve(STEPS, 0.02 - 0.1 * power(0.5) + 0.006 * rng.normal(size=23), np.full((23, 23), 1e-5))
    laws = Laws.join([Laws.row(np.geomspace(2_000, 80_000, 12), c) for c in (0.0, 1.0, 2.0)])
    found = scan(curve, laws, noise, bounds)
    inverse, y = np.linalg.inv(curve.covariance + noise[0] ** 2 * np.eye(23)), curve.mean

    def misfit(limit: float) -> float:
        """The least Q over the laws with the limit given."""
        rests = []
        for g in laws.gap(STEPS - STEPS[0]):
            a = g @ inverse @ (y - limit) / (g @ inverse @ g)
            rests.append((y - limit - a * g) @ inverse @ (y - limit - a * g))
        return min(rests)

    grid = np.linspace(*bounds, 2_001)
    floor = min(map(misfit, grid))
    values = grid[::200]
    wanted = [stats.chi2.sf(max(misfit(v) - floor, 0) / OVERCONFIDENCE, 1) for v in values]
    assert np.allclose(found.p_limit(values), wanted, atol=3e-3)
    least = min(misfit(v) for v in np.linspace(-0.6, 0.6, 4_001))
    assert found.p_bounds() == pytest.approx(stats.chi2.sf(max(floor - least, 0) / OVERCONFIDENCE, 1), abs=3e-3)
    assert found.value == pytest.approx(grid[np.argmin([misfit(v) for v in grid])], abs=1e-3)


def test_what_is_possible_beside_a_teacher():
    low, high = stats.binomtest(3_600, 4_000).proportion_ci(method="wilson")
    assert possible(3_600, 4_000) == pytest.approx((-high, 1 - low), abs=1e-12)


def test_the_early_part_may_follow_another_law():
    """A plateau of 30 points before the law begins: the fit starts after it."""
    gap = np.where(STEPS < 25_000, -0.45, -0.02 - 0.43 * np.exp(-(STEPS - 24_000) / 15_000))
    found = fit_limit(STEPS, simulate(np.random.default_rng(10), STEPS, gap))
    assert isinstance(found, Limit) and found.from_step >= 16_000 and found.skipped == np.sum(found.from_step > STEPS)
    assert found.evaluations == len(STEPS) - found.skipped
    assert found.interval()[0] < -0.02 < found.interval()[1]


def test_no_law_fits():
    gap = -0.3 + 0.1 * np.sin(STEPS / 5_000)
    assert fit_limit(STEPS, simulate(np.random.default_rng(11), STEPS, gap)) == "no law fits the last 10 evaluations"


def test_adequacy_is_uniform_where_the_law_holds():
    rng, p = np.random.default_rng(12), []
    for _ in range(25):
        p.append(
            adequacy(fit_laws(Curve(STEPS, -0.1 * power(0.5) + 0.008 * rng.normal(size=23), np.full((23, 23), 1e-4))))
        )
    assert stats.kstest(p, "uniform").pvalue > 0.001


def test_refusals_from_both_sides():
    differences = exact(-0.1 * power(0.5))
    before = slice(0, LEAST_EVALUATIONS - 1)
    assert fit_limit(STEPS[before], differences[before]) == "11 evaluations at a constant rate, a limit needs 12"
    assert isinstance(fit_limit(STEPS[:LEAST_EVALUATIONS], differences[:LEAST_EVALUATIONS]), Limit)
    assert fit_limit(STEPS, differences[:, :-1]) == "1999 seeds at every evaluation, a limit needs 2,000"
    assert isinstance(fit_limit(STEPS, differences), Limit)
    assert fit_limit(STEPS, differences, 8_000).evaluations == 12
    refused = fit_limit(STEPS, differences, 8_001)
    assert refused == "8 evaluations at least 8001 steps apart at a constant rate, a limit needs 12"
    assert fit_limit(np.array([]), np.zeros((0, 2_000))) == "0 evaluations at a constant rate, a limit needs 12"


def test_evaluations_that_are_too_close_are_dropped_from_the_end():
    assert spaced(np.array([100, 200, 300, 350, 400, 500]), 100).tolist() == [0, 1, 2, 4, 5]
    assert spaced(np.array([100, 200, 300]), 100.0).tolist() == [0, 1, 2]
    assert spaced(np.array([100, 200, 300]), 100.1).tolist() == [0, 2]
    assert spaced(np.array([100, 200, 300]), 0).tolist() == [0, 1, 2]


def test_shapes_that_do_not_belong_together():
    good = exact(-0.1 * power(0.5))
    for steps, d in ((STEPS[1:], good), (STEPS[::-1], good), (STEPS - 4_000, good), (STEPS, good[:, 0])):
        with pytest.raises(ValueError, match="not evaluations"):
            fit_limit(steps, d)
    with pytest.raises(ValueError, match="not evaluations"):
        fit_limit(STEPS, np.where(np.arange(LEAST_SEEDS) == 3, np.nan, good))


def test_differences_are_paired_by_seed():
    teacher = (np.array([9, 3, 5, 7]), np.array([True, False, True, True]))
    by_step = {
        200: (np.array([5, 3, 9]), np.array([True, True, False])),
        100: (np.array([3, 5, 9]), np.array([False, False, True])),
    }
    steps, d = paired_differences(teacher, by_step)
    assert steps.tolist() == [100, 200] and d.tolist() == [[0, -1, 0], [1, 0, -1]]


def test_seeds_that_do_not_match():
    teacher = (np.array([3, 5, 7]), np.ones(3, bool))
    one = (np.array([3, 5]), np.ones(2, bool))
    other = (np.array([3, 7]), np.ones(2, bool))
    assert paired_differences(teacher, {1: one, 2: other}) == "the evaluations at steps 1 and 2 have different seeds"
    missing = "the teacher was not sampled on the seeds of the evaluations"
    assert paired_differences(teacher, {1: (np.array([3, 8]), np.ones(2, bool))}) == missing
    assert paired_differences((np.array([]), np.array([])), {1: one}) == missing
    assert paired_differences(teacher, {}) == "there are no evaluations"


def test_record_is_json():
    found = fit_limit(STEPS, exact(-0.15 - 0.1 * power(0.5)))
    record = json.loads(json.dumps(found.record()))
    assert record["value"] == found.value and tuple(record["ci95"]) == found.interval(0.95)
    assert tuple(record["ci90"]) == found.interval(0.90) and record["exponent"]["ci95"] == list(found.exponent_ci95)
    assert (record["from_step"], record["to_step"], record["seeds"]) == (4_000, 92_000, LEAST_SEEDS)


CURVES = {
    "exponential": lambda t: -0.3 * np.exp(-4 * (t - 4_000) / 88_000),
    "t^-0.5": lambda t: -0.08 * (t / 92_000) ** -0.5,
    "t^-1": lambda t: -0.02 * (t / 92_000) ** -1.0,
    "logistic": lambda t: -0.5 / (1 + np.exp((t - 23_000) / 9_000)),
    "two time scales": lambda t: -0.25 * np.exp(-(t - 4_000) / 5_500) - 0.1 * np.exp(-(t - 4_000) / 37_000),
    "t^-0.3": lambda t: -0.08 * (t / 92_000) ** -0.3,
    "no change": lambda t: 0 * t,
}


def coverage(curve: str, runs: int) -> float:
    """Share of the 95 % intervals that hold the limit -0.15, among those given."""
    rng, hits = np.random.default_rng(20), []
    for _ in range(runs):
        found = fit_limit(STEPS, simulate(rng, STEPS, -0.15 + CURVES[curve](STEPS)), 4_000)
        if isinstance(found, Limit):
            low, high = found.interval()
            hits.append(low <= -0.15 <= high)
    assert len(hits) > runs / 2
    return float(np.mean(hits))


@pytest.mark.parametrize("curve", ["exponential", "t^-0.5"])
def test_intervals_cover_in_a_few_runs(curve):
    """Of 15 intervals that cover in 95 %, fewer than 11 do so six times in 10,000."""
    assert coverage(curve, 15) >= 11 / 15


@pytest.mark.slow
@pytest.mark.parametrize("curve", CURVES)
def test_intervals_cover(curve):
    """200 intervals: 0.93 less 2.5 standard errors."""
    assert coverage(curve, 200) >= 0.885
