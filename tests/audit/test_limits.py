"""The paired difference along a distillation: by hand, over seeds in any order, and what a slow phase changed."""

from __future__ import annotations

import json

import numpy as np
import pytest

from cdmem.metrics.statistics import newcombe_paired_difference

pytest.importorskip("cdmem.metrics.comparison.limit")

from cdmem.audit import limits


def flags(seeds, copied):
    return np.array(seeds), np.array(copied, dtype=bool)


TEACHER = flags([5, 1, 9, 3], [1, 1, 0, 0])
STUDENT = {
    20: flags([1, 3, 5, 9], [0, 0, 1, 1]),
    10: flags([9, 5, 3, 1, 7], [0, 0, 0, 0, 1]),
}


def test_differences_are_student_minus_teacher_by_seed():
    """Seeds in ascending order, those that an evaluation lacks left out: seeds 1, 3, 5, 9 of a teacher 1, 0, 1, 0."""
    steps, values = limits.differences(STUDENT, TEACHER)
    assert steps == [10, 20] and values.dtype == np.int8
    assert values.tolist() == [[-1, 0, -1, 0], [-1, 0, 0, 1]]
    assert limits.differences(STUDENT, flags([3, 5], [0, 1]))[1].tolist() == [[0, -1], [0, 0]]
    steps, none = limits.differences(STUDENT, flags([100], [1]))
    assert steps == [10, 20] and none.shape == (2, 0)


@pytest.fixture
def asked(monkeypatch):
    """What the fit was asked for."""
    found = {}

    def fit(steps, differences, least_spacing=0):
        found.update(steps=list(steps), differences=differences, spacing=least_spacing)
        return "asked"

    monkeypatch.setattr(limits, "fit_limit", fit)
    return found


CURVE = {step: flags(range(4), [0, 0, 1, 1]) for step in (0, 10, 20, 30, 40, 50)}
FOUR = flags(range(4), [1, 1, 1, 1])


def test_the_fit_sees_the_constant_phase_and_nothing_else(asked):
    """Not the start, which is no student, and not what came after the rate fell; three half-lives between looks."""
    assert limits.limit_record(CURVE, FOUR, (0, 40), half_life=7) == "asked"
    assert asked["steps"] == [10, 20, 30, 40] and asked["spacing"] == 21
    assert asked["differences"].tolist() == [[-1, -1, 0, 0]] * 4
    limits.limit_record(CURVE, FOUR, (20, 30), half_life=0)
    assert asked["steps"] == [20, 30] and asked["spacing"] == 0


def test_why_there_is_no_limit(asked):
    assert "annealed" in limits.limit_record(CURVE, FOUR, None, 1)
    assert "teacher's samples were not kept" in limits.limit_record(CURVE, None, (0, 40), 1)
    assert "no evaluations" in limits.limit_record(CURVE, FOUR, (41, 45), 1)
    assert asked == {}


def test_a_slow_phase_by_hand():
    """From the last evaluation of the constant phase to the end: the teacher copies 60 of 100 seeds, the student 30
    before and 40 after."""
    seeds = np.arange(100)
    teacher = flags(seeds, seeds < 60)
    curve = {step: flags(seeds[::-1], seeds[::-1] < hits) for step, hits in ((10, 5), (20, 30), (25, 35), (30, 40))}
    found = limits.slow_phase_record(curve, teacher, (0, 20))
    assert (found["from_step"], found["to_step"]) == (20, 30)
    for key, cells in {"change": (30, 10, 0, 60), "after": (40, 0, 20, 40)}.items():
        value, low, high = newcombe_paired_difference(*cells)
        assert found[key] == {"value": pytest.approx(value), "ci95": pytest.approx([low, high])}
    assert found["after"]["ci95"][1] < 0 < found["change"]["ci95"][0]
    assert json.loads(json.dumps(found)) == found


def test_a_slow_phase_that_closes_the_gap():
    seeds = np.arange(400)
    teacher = flags(seeds, seeds < 200)
    curve = {10: flags(seeds, seeds < 100), 20: flags(seeds, seeds < 199)}
    after = limits.slow_phase_record(curve, teacher, (0, 10))["after"]
    assert after["ci95"][0] < 0 <= after["ci95"][1]


def test_without_a_slow_phase():
    assert limits.slow_phase_record(CURVE, FOUR, None) is None
    assert limits.slow_phase_record(CURVE, None, (0, 40)) is None
    assert limits.slow_phase_record(CURVE, FOUR, (0, 50)) is None
    assert limits.slow_phase_record({0: CURVE[0], 50: CURVE[50]}, FOUR, (0, 40)) is None
    assert limits.slow_phase_record(CURVE, flags([77], [1]), (0, 40)) is None
