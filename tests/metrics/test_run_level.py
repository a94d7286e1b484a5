"""Runs as units: Student's t against scipy's, no run dropped, coverage by simulation."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import stats

from cdmem.metrics.comparison.runs import RunLevel, over_runs, run_level, runs_needed

NOW, LIMITS = [-0.15, -0.16, -0.12, -0.18, -0.14], [-0.13, -0.14, -0.10, -0.15, -0.12]


def over(now: list[float], limits: list[float | None]) -> RunLevel:
    found = run_level(now, limits, [30_000] * len(now))
    assert isinstance(found, RunLevel)
    return found


def test_intervals_are_students_t():
    found = over(NOW, LIMITS)
    assert found.claim == "reduced" and not found.reason
    for mean, values in ((found.now, NOW), (found.limit, LIMITS)):
        test = stats.ttest_1samp(values, 0)
        for key, confidence in (("ci90", 0.90), ("ci95", 0.95)):
            assert np.allclose(mean[key], test.confidence_interval(confidence), rtol=1e-12)


def test_sentence_names_runs_size_and_distillation():
    found = over(NOW, LIMITS)
    expected = (
        "over 5 runs: reduced by 15 points [12, 18], student, 2 NFE after 30,000 steps; "
        "in the limit -12.8 points [-15.2, -10.4]."
    )
    assert found.sentence("student, 2 NFE") == expected
    assert json.loads(json.dumps(found.record()))["now"]["ci95"] == list(found.now["ci95"])


def test_transient_and_unchanged():
    gone = over([-0.05, -0.06, -0.055], [0.0, 0.01, -0.01])
    assert gone.claim == "transient" and gone.sentence("x").startswith("over 3 runs: transient; -5.5 points [")
    assert over([0.0, 0.01, -0.01], [0.0, 0.01, -0.01]).claim == "unchanged"
    assert over([0.1, 0.11, 0.1], [0.1, 0.12, 0.11]).sentence("x").startswith("over 3 runs: amplified by 10 points [")


def test_a_run_without_limit_is_not_dropped():
    found = over(NOW, [*LIMITS[:4], None])
    assert found.claim == "undecided" and found.limit == "1 of 5 runs have none"
    assert found.limit in found.reason and "no limit (1 of 5 runs have none)" in found.sentence("x")


def test_why_runs_have_no_verdict_together():
    assert run_level(NOW[:2], LIMITS[:2], [1, 1]) == "2 runs are too few, 3 are needed"
    assert "no step in common (10 to 20)" in str(run_level(NOW[:3], LIMITS[:3], [10, 20, 20]))


@pytest.mark.parametrize("sd", [0.02, 0.05, 0.3, 0.001])
def test_runs_needed_is_the_least_number(sd):
    values = np.array([-1.0, 0.0, 1.0]) * sd  # of this standard deviation
    half = [stats.t.ppf(0.95, k - 1) * sd / np.sqrt(k) for k in range(2, 1_000)]
    assert runs_needed(values, 0.03) == 2 + next(i for i, h in enumerate(half) if h <= 0.03)
    again = np.array([-1.0, 1.0] * (runs_needed(values, 0.03) // 2 + 1))
    again *= sd / again.std(ddof=1)
    low, high = over_runs(list(again))["ci90"]
    assert (high - low) / 2 <= 0.03


def test_runs_needed_gives_up_and_says_so():
    assert runs_needed([-10.0, 0.0, 10.0], 0.001) is None
    for now, said in (([-0.9, 0.1, 0.9], "more than 1,000"), ([-0.05, 0.0, 0.05], "about ")):
        wild = over(now, [0.0, 0.0, 0.1])
        assert wild.claim == "undecided" and f"; {said}" in wild.sentence("x")


@pytest.mark.parametrize("runs", [3, 5])
def test_coverage(runs):
    """400 groups of runs whose limits scatter by 4 points about -0.15; 3.5 standard errors either way."""
    values = np.random.default_rng(runs).normal(-0.15, 0.04, (400, runs))
    limits = [over(list(v), list(v)).limit["ci95"] for v in values]
    covered = np.mean([low <= -0.15 <= high for low, high in limits])
    assert 0.912 < covered < 0.988
