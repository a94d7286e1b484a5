"""Does distillation move M_pt? One-step maps of every trained model, measured as their teachers were."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cdmem.theory.edge.capacity import Learned
from cdmem.theory.edge.distil import Student, consistency, regression
from cdmem.theory.edge.numbers import shares
from cdmem.theory.edge.optimiser import Schedule
from cdmem.theory.edge.process import grid
from cdmem.theory.edge.sampling import Copies, copied, integrate, spread_ratio, tally
from cdmem.theory.edge.study import Problem
from cdmem.theory.edge.transition import transition

REGRESSION_RATE = 3e-2
VISIT = 12  # level of the second step, t near .52


@dataclass(frozen=True)
class Curve:
    """A sampler over the capacities.

    Attributes:
        name: in results.json.
        label: in figures.
        steps: evaluations of the network per sample.
        copies: memorisation ratio.
        spread: variance ratio to the true mixture.
        kept: share of the teacher's copies that are copies here too, from the same noise; None without any.
        error: root mean square distance to the teacher's sample over that sample's root mean square.
    """

    name: str
    label: str
    steps: int
    copies: list[Copies]
    spread: list[float]
    kept: list[float | None]
    error: list[float]


def schedule_of(steps: int, rate: float) -> Schedule:
    """Of a student: short memories, since every level is a small problem of its own."""
    return Schedule(steps, rate, 1e-4, 0.1, 0.5, 1e9, 0.95)


def compare(
    models: Sequence[Learned],
    problem: Problem,
    steps: Sequence[int],
    rate: float,
    draws: int,
    tick: Callable[[], None] = lambda: None,
) -> list[Curve]:
    """Teacher, its students, and the teacher at as few steps, on the same noise.

    Args:
        models: trained at ascending capacities.
        problem: their data.
        steps: lengths of the consistency distillation, optimiser steps per level; the longest counts as the student,
            the others show what its length does. Regression gets ten times the longest.
        rate: peak learning rate.
        draws: noises per training point and step.
        tick: called after every level.
    """
    z, times, seed = problem.noise, grid(), problem.seed
    lengths = sorted(steps)
    made_cm = [consistency(models, problem.data, schedule_of(k, rate), draws, seed + 1, tick) for k in lengths]
    cm = made_cm[-1]
    rows = draws * len(problem.data)
    direct = regression(models, schedule_of(10 * lengths[-1], REGRESSION_RATE), rows, seed + 2)

    def few(model: Learned, nfe: int) -> Tensor:
        return integrate(model, z, times[torch.linspace(0, len(times) - 1, nfe + 1).round().long()])

    def twice(student: Student) -> Tensor:
        return student.sample(z, [VISIT], torch.Generator().manual_seed(seed))

    ends = [integrate(model, z, times) for model in models]
    made = [
        ("teacher", "teacher, 25 steps", len(times) - 1, ends),
        ("consistency_1", "consistency, 1 step", 1, [s(z) for s in cm]),
        ("consistency_2", "consistency, 2 steps", 2, [twice(s) for s in cm]),
        ("regression_1", "regression, 1 step", 1, [s(z) for s in direct]),
        ("teacher_1", "teacher, 1 step", 1, [few(m, 1) for m in models]),
        ("teacher_2", "teacher, 2 steps", 2, [few(m, 2) for m in models]),
    ]
    for length, students in zip(lengths[:-1], made_cm):
        short = [student(z) for student in students]
        made.append((f"consistency_1_after_{length}", f"1 step, {length} per level", 1, short))
    return [_curve(name, label, nfe, samples, ends, problem) for name, label, nfe, samples in made]


def _curve(name: str, label: str, steps: int, samples: list[Tensor], ends: list[Tensor], problem: Problem) -> Curve:
    flags = [copied(s, problem.data) for s in samples]
    before = [copied(s, problem.data) for s in ends]
    kept = [float((a & b).sum() / b.sum()) if b.any() else None for a, b in zip(flags, before)]
    error = [float(((a - b) ** 2).mean() / (b**2).mean()) ** 0.5 for a, b in zip(samples, ends)]
    spread = [spread_ratio(s, problem.reference) for s in samples]
    return Curve(name, label, steps, [tally(f) for f in flags], spread, kept, error)


def curve_numbers(curves: Sequence[Curve], capacities: Sequence[int], n: int) -> dict[str, Any]:
    """For results.json: ratio, interval, variance ratio and M_pt of every sampler."""
    made: dict[str, Any] = {"capacity": list(capacities), "second_step_from_t": float(grid()[VISIT])}
    for c in curves:
        made[c.name] = {
            "steps": c.steps,
            "ratio": [x.ratio for x in c.copies],
            "ratio_low": [x.low for x in c.copies],
            "ratio_high": [x.high for x in c.copies],
            "samples": c.copies[0].samples,
            "variance_ratio": c.spread,
            "kept": c.kept,
            "error": c.error,
            "transition_over_n": shares(transition(list(capacities), c.copies), n),
        }
    return made
