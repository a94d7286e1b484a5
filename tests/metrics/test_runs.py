"""Runs as units: Student's t over them, nothing left out, and how many would be enough."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

from cdmem.metrics.comparison.claims import LIMIT_MARGIN, MARGIN
from cdmem.metrics.comparison.runs import over_runs, run_level, runs_needed
from cdmem.report.run_level import verdicts_over_runs

BELOW = [-0.15, -0.17, -0.13, -0.16, -0.14]
SAME = [0.001, -0.002, 0.0, 0.002, -0.001]
STEPS = [30_000] * 5


def test_intervals_are_students():
    record = over_runs(BELOW)
    scatter = np.std(BELOW, ddof=1) / math.sqrt(5)
    for key, level in (("ci95", 0.975), ("ci90", 0.95)):
        half = stats.t.ppf(level, 4) * scatter
        assert record[key] == pytest.approx([-0.15 - half, -0.15 + half], rel=1e-12)


@pytest.mark.parametrize(
    ("now", "limits", "claim"),
    [
        (BELOW, BELOW, "reduced"),
        (BELOW, SAME, "transient"),
        (SAME, SAME, "unchanged"),
        ([-x for x in BELOW], [-x for x in BELOW], "amplified"),
        (BELOW, [-0.5, 0.5, 0.1, -0.2, 0.3], "undecided"),
        ([-0.5, 0.5, 0.1, -0.2, 0.3], BELOW, "undecided"),
    ],
)
def test_claims(now, limits, claim):
    verdict = run_level(now, limits, STEPS)
    assert verdict.claim == claim and bool(verdict.reason) == (claim == "undecided")
    json.dumps(verdict.record(), allow_nan=False)


def test_a_run_without_a_limit_is_never_left_out():
    verdict = run_level(BELOW, [*BELOW[:4], None], STEPS)
    assert verdict.claim == "undecided" and verdict.limit == "1 of 5 runs have none"
    assert "no limit (1 of 5 runs have none)" in verdict.sentence("student, 1 NFE")
    assert run_level(BELOW[:3], [None] * 3, STEPS[:3]).limit == "3 of 3 runs have none"


def test_too_few_runs_or_no_common_step():
    assert run_level(BELOW[:2], BELOW[:2], STEPS[:2]) == "2 runs are too few, 3 are needed"
    assert "no step in common (20,000 to 30,000)" in run_level(BELOW, BELOW, [*STEPS[:4], 20_000])
    assert not isinstance(run_level(BELOW[:3], BELOW[:3], STEPS[:3]), str)


def test_the_sentence():
    assert run_level(BELOW, BELOW, STEPS).sentence("student, 2 NFE") == (
        "over 5 runs: reduced by 15 points [13, 17], student, 2 NFE after 30,000 steps; "
        "in the limit -15.0 points [-17.0, -13.0]."
    )
    gone = run_level([-0.05, -0.06, -0.055], SAME[:3], STEPS[:3]).sentence("s")
    assert gone.startswith("over 3 runs: transient; -5.5 points [")
    assert (
        run_level([0.1, 0.11, 0.1], [0.1, 0.12, 0.11], STEPS[:3])
        .sentence("s")
        .startswith("over 3 runs: amplified by 10 points [")
    )
    for now, more in (([-0.9, 0.1, 0.9], "more than 1,000"), ([-0.05, 0.0, 0.05], "about ")):
        said = run_level(now, [0.0, 0.0, 0.1], STEPS[:3]).sentence("s")
        assert said.startswith("over 3 runs: undecided (") and f"; {more}" in said
        assert said.endswith("runs would tell it to 3 points.")


def test_runs_needed_are_the_fewest():
    k = runs_needed(BELOW, MARGIN)
    scatter = np.std(BELOW, ddof=1)

    def half(n: int) -> float:
        return stats.t.ppf(0.95, n - 1) * scatter / math.sqrt(n)

    assert half(k) <= MARGIN < half(k - 1)
    assert runs_needed([-5.0, 5.0], 1e-3) is None and runs_needed(SAME, MARGIN) == 2


def test_margins_of_now_and_of_the_limit_differ():
    """4 points are no equivalence now, and one in the limit."""
    four = [0.039, 0.041, 0.04, 0.0405, 0.0395]
    assert MARGIN < 0.04 < LIMIT_MARGIN
    assert run_level([-x for x in four], four, STEPS).claim == "transient"


def test_coverage_over_runs():
    """Of 2,000 sweeps of four runs the 95 % interval covers the mean of all runs in 95 %."""
    rng = np.random.default_rng(0)
    draws = rng.normal(-0.1, 0.04, (2000, 4))
    inside = sum(low <= -0.1 <= high for low, high in (over_runs(d.tolist())["ci95"] for d in draws))
    assert abs(inside / 2000 - 0.95) < 3.3 * math.sqrt(0.95 * 0.05 / 2000)


def study(value: float, limit: float | None, step: int = 300):
    verdict = {"limit": {"unavailable": "why"} if limit is None else {"value": limit}}
    student = {"name": "student", "role": "student", "method": "consistency", "nfe": 1, "step": step}
    student |= {"paired": {"difference": {"value": value}}, "verdict": verdict}
    return SimpleNamespace(models=[{"name": "teacher", "role": "teacher", "method": "heun", "nfe": 35}, student])


def test_students_of_a_sweep_are_grouped_by_setting():
    groups = {("8",): [study(x, x) for x in BELOW], ("16",): [study(x, None) for x in SAME]}
    rows = verdicts_over_runs(groups)
    assert [(setting, label) for setting, label, _ in rows] == [(("8",), "student, 1 NFE"), (("16",), "student, 1 NFE")]
    assert [verdict.claim for *_, verdict in rows] == ["reduced", "undecided"]
