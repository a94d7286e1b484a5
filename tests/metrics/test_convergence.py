"""Had rmse stopped changing? The rule against hand-made curves and folders."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import stats

from cdmem.audit.distillation_curve import Copies, distillation_record
from cdmem.metrics.comparison.convergence import RMSE_MARGIN, rmse_convergence
from cdmem.run.folder import RunFolder
from cdmem.run.metrics_log import MetricsRecord


def spread(means, m=400, seed=0):
    """step -> seeds and squared errors whose mean over seeds is exactly the given one."""
    base = np.random.default_rng(seed).gamma(4.0, size=m)
    return {100 * (k + 1): (np.arange(m), mean * base / base.mean()) for k, mean in enumerate(means)}


@pytest.mark.parametrize(
    ("errors", "trend"),
    [
        ((9, 4, 3, 2, 1.5, 1.0), "falling"),
        ((9, 4, 1, 1, 1.5, 2.0), "rising"),
        ((9, 4, 1, 1.0, 1.01, 1.02), "stopped"),  # significant, but far within 5 % of rmse
    ],
)
def test_rmse_trend(errors, trend):
    assert rmse_convergence(spread(errors)).trend == trend


@pytest.mark.parametrize("factor", [0.25, 0.81, 1.0, 1.44])
def test_rmse_change_is_exact_when_all_errors_scale(factor):
    """Squared errors times c: rmse times sqrt(c), whatever the spread over seeds."""
    judged = rmse_convergence(spread((5, 5, 3, 1, 1, factor)))
    assert judged.change == pytest.approx(factor**0.5 - 1, rel=1e-12)
    assert judged.low <= judged.change <= judged.high
    assert (judged.from_step, judged.to_step, judged.samples) == (400, 600, 400)


def test_rmse_interval_is_students_on_the_squared_errors():
    before, after = np.array([1.0, 2.0, 3.0, 2.0]), np.array([1.2, 1.9, 3.5, 2.1])
    judged = rmse_convergence({2: (np.arange(4), before), 3: (np.arange(4), after)})
    d = after - before
    low, high = stats.t.interval(0.95, 3, loc=d.mean(), scale=stats.sem(d))
    assert judged.low == pytest.approx(np.sqrt(1 + low / 2) - 1, rel=1e-12)
    assert judged.high == pytest.approx(np.sqrt(1 + high / 2) - 1, rel=1e-12)


def test_noisy_errors_of_few_seeds_decide_nothing():
    rng = np.random.default_rng(1)
    judged = rmse_convergence({k: (np.arange(8), rng.gamma(1.0, size=8)) for k in (200, 300)})
    assert judged.trend == "undetermined" and judged.low < -RMSE_MARGIN and judged.high > RMSE_MARGIN


def test_only_seeds_of_both_ends_count_in_any_order():
    early = (np.array([5, 1, 3, 9]), np.array([1.0, 4.0, 9.0, 1e6]))
    late = (np.array([3, 7, 1, 5]), np.array([18.0, 1e6, 8.0, 2.0]))
    judged = rmse_convergence({200: early, 300: late})
    assert judged.samples == 3 and judged.change == pytest.approx(2**0.5 - 1, rel=1e-12)


@pytest.mark.parametrize(
    ("steps", "start"),
    [
        ((100, 200, 300), 200),  # an evaluation at two thirds exactly
        ((766, 1533, 2300), 1533),  # 2/3 of 2,300 is 1,533.3: the evaluation before it, not the one after
        ((100, 210, 300), 100),
        ((250, 300), 250),  # none before the last third: the first one
        ((0, 250, 300), 250),  # step 0 is no evaluation of a student
    ],
)
def test_the_last_third_is_never_shortened(steps, start):
    judged = rmse_convergence({s: (np.arange(9), np.arange(9) + 1.0) for s in steps})
    assert (judged.from_step, judged.to_step) == (start, steps[-1])


@pytest.mark.parametrize("seeds", [400, 4_000, 100_000])
def test_more_seeds_take_no_claim_away(seeds):
    """A drift of 2 % is nothing, however sure it is; one of 8 % is one as soon as it is sure."""
    rng = np.random.default_rng(seeds)
    before, noise = rng.gamma(8.0, size=seeds), 0.2 * rng.normal(size=seeds)
    small, large = (
        rmse_convergence({2: (np.arange(seeds), before), 3: (np.arange(seeds), before * f**2 + noise)})
        for f in (1.02, 1.08)
    )
    assert small.trend == "stopped" and small.change == pytest.approx(0.02, abs=0.01)
    assert large.trend == "rising" and large.low > 0


def test_equivalence_takes_the_90_percent_interval():
    """An interval that crosses the margin at 95 % but not at 90 %: standing still."""
    # Mean change 2 d of a mean of 1, its standard error so that the bounds of rmse lie at 5 %.
    d = np.tile([1.0, -1.0], 200)
    t90, t95 = (float(stats.t.ppf(q, 399)) for q in (0.95, 0.975))
    room = 1.05**2 - 1
    scale = room / ((t90 + t95) / 2) / stats.sem(d)
    judged = rmse_convergence({2: (np.arange(400), np.ones(400)), 3: (np.arange(400), 1 + scale * d)})
    assert judged.high > RMSE_MARGIN and judged.trend == "stopped"
    judged = rmse_convergence({2: (np.arange(400), np.ones(400)), 3: (np.arange(400), 1 + 1.1 * scale * d)})
    assert judged.trend == "undetermined"


def test_the_scatter_of_steps_is_that_of_a_regression():
    """All seeds alike: only the steps scatter, and the interval is scipy's of a slope, times the span."""
    at, level = np.array([200, 230, 250, 300]), np.array([1.0, 1.2, 0.9, 1.3])
    judged = rmse_convergence({int(t): (np.arange(5), np.full(5, y)) for t, y in zip(at, level)})
    line = stats.linregress(at, level)
    base = line.intercept + line.slope * 200
    for value, at_bound in ((judged.change, 0.0), (judged.low, -1.0), (judged.high, 1.0)):
        slope = line.slope + at_bound * stats.t.ppf(0.975, 2) * line.stderr
        assert value == pytest.approx(np.sqrt(max(1 + slope * 100 / base, 0)) - 1, rel=1e-9)


@pytest.mark.parametrize(("evaluations", "seeds", "scatter"), [(9, 400, 0.05), (4, 400, 0.03), (12, 50, 0.0)])
def test_chance_rises_rarely(evaluations, seeds, scatter):
    """Errors that stand still but scatter from step to step, alike for all seeds: 2.5 % "rise"; 3.5 standard errors."""
    rng = np.random.default_rng(evaluations)
    rises, tries = 0, 600
    for _ in range(tries):
        means = 1 + scatter * rng.normal(size=evaluations)
        by_seed = rng.gamma(4.0, 0.25, size=(seeds, 1)) + 0.2 * rng.normal(size=(seeds, evaluations))
        curve = {200 + 10 * k: (np.arange(seeds), means[k] * by_seed[:, k]) for k in range(evaluations)}
        rises += rmse_convergence(curve).low > 0
    assert rises / tries < 0.025 + 3.5 * np.sqrt(0.025 * 0.975 / tries)


def test_a_rise_along_many_evaluations_is_one():
    rng = np.random.default_rng(2)
    level = np.linspace(1, 1.3, 9) * (1 + 0.02 * rng.normal(size=9))
    curve = {200 + 10 * k: (np.arange(50), y * rng.gamma(50.0, 0.02, size=50)) for k, y in enumerate(level)}
    judged = rmse_convergence(curve)
    assert judged.trend == "rising" and judged.low < np.sqrt(1.3) - 1 < judged.high


def test_no_rmse_trend_without_errors():
    assert rmse_convergence({}) is None and rmse_convergence(spread((1.0,))) is None
    assert rmse_convergence(spread((0.0, 0.0, 0.0))) is None
    assert rmse_convergence(spread((1.0, 1.0, 1.0), m=1)) is None
    assert rmse_convergence(spread((1.0, 1.0, 1.0), m=2)).samples == 2
    assert rmse_convergence(spread((1.0, 0.0, 1.0))) is None and rmse_convergence(spread((1.0, 1.0, 0.0))).change == -1
    apart = {200: (np.arange(5), np.ones(5)), 300: (np.arange(5) + 5, np.ones(5))}
    assert rmse_convergence(apart) is None


# ---- the record of a run folder -------------------------------------------------------------------------------------


def evaluate(folder, step, nfe, hits, squared_error=None, m=200):
    columns = {"seeds": np.arange(m), "squared1": np.where(np.arange(m) < hits, 10, 80), "squared2": np.full(m, 100)}
    columns |= {} if squared_error is None else {"squared_error": np.linspace(0.5, 1.5, m) * squared_error}
    folder.write_arrays(f"evaluations/step={step}_nfe={nfe}.npz", **columns)


def test_record_of_a_run_folder(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.write_text("config.yaml", "model: {class_path: x, init_args: {optimization: {schedule: cosine}}}\n")
    for k, step in enumerate((1000, 2000, 3000, 4000, 5000, 6000)):
        evaluate(folder, step, 1, 20 * (k + 1), (0.6 - 0.1 * k) ** 2)
        evaluate(folder, step, 2, 100)
    metrics = MetricsRecord(folder)
    metrics.append(1000, {"train/loss": 1.0})
    metrics.append(1000, {"memorization/f_mem_nfe1": 0.1, "distillation/rmse_nfe1": 0.6, "quality/fd": 3.0})
    found = distillation_record(folder, Copies(1 / 2))
    json.dumps(found, allow_nan=False)
    assert found["curve"] == [{"step": 1000, "memorization/f_mem_nfe1": 0.1, "distillation/rmse_nfe1": 0.6}]
    assert found["lr_schedule"] == "cosine"
    trend = found["rmse_trend"]["1"]
    assert trend["trend"] == "falling" and found["rmse_trend"]["2"] is None
    assert trend["change"] == pytest.approx(0.1 / 0.3 - 1, rel=1e-9)
    assert (trend["from_step"], trend["to_step"], trend["samples"]) == (4000, 6000, 200)


def test_record_without_evaluations(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.write_text("config.yaml", "model: {class_path: x, init_args: {}}\n")
    found = distillation_record(folder, Copies(1 / 3))
    assert found["rmse_trend"] == {}
