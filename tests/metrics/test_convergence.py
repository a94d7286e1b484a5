"""Had f_mem and rmse stopped changing? The rules against hand-made curves and folders."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import stats

from cdmem.audit.distillation_curve import distillation_record
from cdmem.metrics.comparison.convergence import (
    MARGIN,
    RMSE_MARGIN,
    classify,
    convergence,
    extrapolate,
    rmse_convergence,
)
from cdmem.run.folder import RunFolder
from cdmem.run.metrics_log import MetricsRecord


def curve(*fractions: float, m: int = 2000) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    seeds = np.arange(m)
    return {100 * (k + 1): (seeds, seeds < round(f * m)) for k, f in enumerate(fractions)}


@pytest.mark.parametrize(
    ("fractions", "trend"),
    [
        ((0.1, 0.2, 0.3, 0.4, 0.5, 0.6), "rising"),
        ((0.1, 0.2, 0.3, 0.4, 0.4, 0.4), "stopped"),
        ((0.6, 0.6, 0.6, 0.5, 0.45, 0.4), "falling"),
    ],
)
def test_trend(fractions, trend):
    assert convergence(curve(*fractions)).trend == trend


def test_few_samples_decide_nothing():
    """Ten of forty at both ends, but on other seeds: the interval is far wider than the margin."""
    early, late = np.arange(40) < 10, np.arange(40) >= 30
    judged = convergence({200: (np.arange(40), early), 300: (np.arange(40), late)})
    assert judged.trend == "undetermined" and judged.change == 0 and judged.high > MARGIN


def test_only_the_last_third_counts():
    judged = convergence(curve(0.0, 0.9, 0.5, 0.5, 0.5, 0.5))
    assert (judged.from_step, judged.to_step, judged.trend) == (400, 600, "stopped")


def test_one_evaluation_is_no_trend():
    assert convergence(curve(0.1)) is None and convergence({}) is None


def test_classes_are_exclusive_at_the_margin():
    assert classify(-MARGIN, MARGIN) == "stopped"
    assert classify(-MARGIN - 1e-9, MARGIN) == classify(-MARGIN, MARGIN + 1e-9) == "undetermined"
    assert classify(1e-9, MARGIN) == "rising" and classify(-MARGIN, -1e-9) == "falling"
    assert classify(0.0, MARGIN) == classify(-MARGIN, 0.0) == classify(0.0, 0.0) == "stopped"


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
    flags = convergence({200: (early[0], early[1] > 3), 300: (late[0], late[1] > 3)})
    # Seeds 1, 3, 5: yes, yes, no at both ends.
    assert flags.samples == 3 and flags.change == 0


def test_change_is_late_minus_early():
    judged = convergence(curve(0, 0, 0, 0.2, 0.9, 0.7))
    assert judged.change == pytest.approx(0.5) and judged.low < 0.5 < judged.high


def test_no_rmse_trend_without_errors():
    assert rmse_convergence({}) is None and rmse_convergence(spread((1.0,))) is None
    assert rmse_convergence(spread((0.0, 0.0, 0.0))) is None
    assert rmse_convergence(spread((1.0, 1.0, 1.0), m=1)) is None
    assert rmse_convergence(spread((1.0, 1.0, 1.0), m=2)).samples == 2
    assert rmse_convergence(spread((1.0, 0.0, 1.0))) is None and rmse_convergence(spread((1.0, 1.0, 0.0))).change == -1
    apart = {200: (np.arange(5), np.ones(5)), 300: (np.arange(5) + 5, np.ones(5))}
    assert rmse_convergence(apart) is None and convergence(apart) is None


def on_a_line(a, b, rmses, m=1000):
    """Evaluations with f_mem = a - b rmse exactly, up to 1/m."""
    seeds, rng = np.arange(m), np.random.default_rng(2)
    flags = {100 * (k + 1): (seeds, rng.permutation(m) < round(m * (a - b * r))) for k, r in enumerate(rmses)}
    return flags, spread([r * r for r in rmses], m)


def test_extrapolation_recovers_a_line():
    found = extrapolate(*on_a_line(0.8, 1.0, (0.6, 0.5, 0.4, 0.3, 0.2, 0.1)))
    assert found["f_mem"] == pytest.approx(0.8, abs=1e-9) and found["slope"] == pytest.approx(-1.0, abs=1e-9)
    assert found["ci95"][0] < 0.8 < found["ci95"][1] and found["ci95"][1] - found["ci95"][0] < 0.2
    assert found["evaluations"] == 5 and found["rmse"] == pytest.approx([0.1, 0.5])
    assert found["reach"] == pytest.approx(0.1 / 0.4)


def test_extrapolation_ignores_the_first_third():
    flags, errors = on_a_line(0.8, 1.0, (0.7, 0.5, 0.4, 0.3, 0.2, 0.1))
    flags[100] = (flags[100][0], np.ones(1000, bool))
    assert extrapolate(flags, errors)["f_mem"] == pytest.approx(0.8, abs=1e-9)


def test_extrapolation_of_one_draw_has_no_width():
    """The interval is that of the redrawn seeds alone: one draw is both of its ends, and not the estimate."""
    found = extrapolate(*on_a_line(0.8, 1.0, (0.5, 0.4, 0.3, 0.2, 0.1), m=100), draws=1)
    assert found["ci95"][0] == found["ci95"][1] != found["f_mem"]


def test_extrapolation_stays_a_fraction():
    found = extrapolate(*on_a_line(0.98, 1.5, (0.6, 0.55, 0.5, 0.48, 0.46, 0.45)))
    assert 0 <= found["ci95"][0] <= found["f_mem"] <= found["ci95"][1] <= 1
    steep = extrapolate(*on_a_line(1.3, 1.0, (0.9, 0.8, 0.7, 0.6, 0.5, 0.4)))
    assert steep["f_mem"] == 1.0


@pytest.mark.parametrize("draw", range(5))
def test_extrapolation_interval_contains_the_truth(draw):
    """Seeds answer independently with probability 0.8 - rmse; truth at rmse 0 is 0.8."""
    rng, m = np.random.default_rng(draw), 500
    threshold = rng.random(m)
    rmses = (0.5, 0.4, 0.3, 0.2, 0.1)
    flags = {100 * (k + 1): (np.arange(m), threshold < 0.8 - r) for k, r in enumerate(rmses)}
    low, high = extrapolate(flags, spread([r * r for r in rmses], m, draw))["ci95"]
    assert low - 0.01 <= 0.8 <= high + 0.01


def test_extrapolation_needs_three_evaluations_and_a_change():
    assert extrapolate({}, {}) is None
    flags, errors = on_a_line(0.8, 1.0, (0.5, 0.4, 0.3))
    assert extrapolate(flags, errors) is not None
    assert extrapolate(flags, {k: errors[k] for k in (200, 300)}) is None
    assert extrapolate(flags, {}) is None
    assert extrapolate(*on_a_line(0.8, 1.0, (0.3, 0.3, 0.3, 0.3))) is None
    assert extrapolate(*on_a_line(0.8, 1.0, (0.0, 0.0, 0.0, 0.0))) is None
    other = {k: (seeds + 1000, values) for k, (seeds, values) in errors.items()}
    assert extrapolate(flags, other) is None


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
    found = distillation_record(folder, 1 / 2)
    json.dumps(found, allow_nan=False)
    assert found["curve"] == [{"step": 1000, "memorization/f_mem_nfe1": 0.1, "distillation/rmse_nfe1": 0.6}]
    assert found["lr_schedule"] == "cosine"
    one, two = found["f_mem_trend"]["1"], found["f_mem_trend"]["2"]
    # 10 < 0.25 * 100 is memorised, 80 is not: 80 hits at step 4000, 120 at 6000.
    assert one["change"] == pytest.approx(40 / 200) and one["trend"] == "rising" and one["samples"] == 200
    assert (one["from_step"], one["to_step"]) == (4000, 6000)
    assert two["change"] == 0 and two["trend"] == "stopped"
    assert found["rmse_trend"]["1"]["trend"] == "falling" and found["rmse_trend"]["2"] is None
    assert found["rmse_trend"]["1"]["change"] == pytest.approx(0.1 / 0.3 - 1, rel=1e-9)
    # f_mem = 0.1 (k + 1) against rmse 0.6 - 0.1 k: 0.7 - rmse.
    assert found["extrapolation"]["1"]["f_mem"] == pytest.approx(0.7, abs=1e-9)
    assert found["extrapolation"]["2"] is None


def test_record_obeys_the_threshold(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.write_text("config.yaml", "model: {class_path: x, init_args: {}}\n")
    evaluate(folder, 20, 1, 50)
    evaluate(folder, 30, 1, 150)
    assert distillation_record(folder, 1 / 2)["f_mem_trend"]["1"]["change"] == pytest.approx(0.5)
    strict = distillation_record(folder, 0.3)  # 10 > 0.09 * 100
    assert strict["f_mem_trend"]["1"]["change"] == 0
    assert strict["lr_schedule"] is None and strict["curve"] == []


def test_record_without_evaluations(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.write_text("config.yaml", "model: {class_path: x, init_args: {}}\n")
    found = distillation_record(folder, 1 / 3)
    assert found["f_mem_trend"] == found["rmse_trend"] == found["extrapolation"] == {}
