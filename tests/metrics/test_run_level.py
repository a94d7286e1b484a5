"""Runs as units: Student's t against scipy's, no run dropped, coverage by simulation."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import stats

from cdmem.metrics.comparison.runs import RunLevel, run_level, runs_needed

NOW, LIMITS = [-0.15, -0.16, -0.12, -0.18, -0.14], [-0.13, -0.14, -0.10, -0.15, -0.12]


def test_intervals_are_students_t():
    found = run_level(30_000, NOW, LIMITS)
    assert isinstance(found, RunLevel) and found.claim == "reduced"
    for mean, values in ((found.now, NOW), (found.limit, LIMITS)):
        test = stats.ttest_1samp(values, 0)
        for confidence, interval in ((0.90, mean.ci90), (0.95, mean.ci95)):
            assert np.allclose(interval, test.confidence_interval(confidence), rtol=1e-12)
        assert mean.sd == pytest.approx(np.std(values, ddof=1))


def test_sentence_names_runs_size_and_distillation():
    found = run_level(30_000, NOW, LIMITS)
    expected = (
        "over 5 runs: reduced by 15 points [12, 18] at two steps after 30,000 steps, "
        "-12.8 points [-15.2, -10.4] in the limit"
    )
    assert found.sentence("at two steps") == expected
    assert json.loads(json.dumps(found.record()))["now"]["ci95"] == list(found.now.ci95)


def test_transient_and_unchanged():
    gone = run_level(30_000, [-0.05, -0.06, -0.055], [0.0, 0.01, -0.01])
    assert gone.claim == "transient" and gone.sentence("at one step").startswith(
        "over 3 runs: transient; -5.5 points ["
    )
    assert run_level(30_000, [0.0, 0.01, -0.01], [0.0, 0.01, -0.01]).claim == "unchanged"
    assert (
        run_level(30_000, [0.1, 0.11, 0.1], [0.1, 0.12, 0.11])
        .sentence("at one step")
        .startswith("over 3 runs: amplified by 10 points [9, 12]")
    )


def test_a_run_without_limit_is_not_dropped():
    found = run_level(30_000, NOW, [*LIMITS[:4], None])
    assert (found.claim, found.limit, found.without_limit) == ("undecided", None, 1)
    assert found.reason == "no limit can be given: 1 of 5 runs have none" and found.reason in found.sentence("x")


def test_three_runs_are_the_least():
    assert run_level(1, NOW[:2], LIMITS[:2]) == "2 runs, a statement over runs needs 3"
    assert isinstance(run_level(1, NOW[:3], LIMITS[:3]), RunLevel)


def test_values_that_do_not_belong_together():
    for now, limits in ((NOW, LIMITS[:4]), ([*NOW[:4], np.nan], LIMITS), (NOW, [np.inf, *LIMITS[1:]])):
        with pytest.raises(ValueError, match="not all finite"):
            run_level(1, now, limits)


@pytest.mark.parametrize(("sd", "margin"), [(0.02, 0.03), (0.05, 0.03), (0.3, 0.03), (0.001, 0.03)])
def test_runs_needed_is_the_least_number(sd, margin):
    half = [stats.t.ppf(0.975, k - 1) * sd / np.sqrt(k) for k in range(3, 1_000)]
    assert runs_needed(sd, margin) == 3 + next(i for i, h in enumerate(half) if h <= margin)


def test_runs_needed_gives_up():
    assert runs_needed(10.0, 0.001) is None


@pytest.mark.parametrize("runs", [3, 5])
def test_coverage(runs):
    """400 groups of runs whose limits scatter by 4 points about -0.15; 3.5 standard errors either way."""
    values = np.random.default_rng(runs).normal(-0.15, 0.04, (400, runs))
    limits = [run_level(1, list(v), list(v)).limit.ci95 for v in values]
    covered = np.mean([low <= -0.15 <= high for low, high in limits])
    assert 0.912 < covered < 0.988
