"""Distillation of a trained mixture denoiser into one-step maps of the same family (a reconstruction of ours), and
whether it moves M_pt.

The student at time t_k is f_k(x) = g x + h sum_i mu_i softmax_i(exp(b) mu_i.x + c_i): the teacher's own form with the
teacher's own number M of means, but with free gains g, h, sharpness b and intercepts c. What it follows is **assumed**,
nothing is published for this model:

- ``consistency``: f_k(x_k) follows f_{k+1} at the teacher's one sampler step from x_k, a noised training point; f is
  the identity at the last time. The levels have parameters of their own and are trained one after the other from the
  last time to the first, each from the finished one below it, the very last from the teacher's denoiser: consistency
  distillation with a frozen target.
- ``regression``: f at the first time follows the ends of the teacher's whole trajectories from fresh noise; it starts
  from the teacher's denoiser.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from cdmem.errors import InputError
from cdmem.theory.edge.capacity_sweep import Problem
from cdmem.theory.edge.denoisers import isotropic
from cdmem.theory.edge.mixture import alpha, grid, noisy
from cdmem.theory.edge.sampling import Copies, advance, copied, integrate, ratio_numbers, spread_ratio, tally
from cdmem.theory.edge.training import AveragedAdam, Learned, Training, padding
from cdmem.theory.edge.transition import transition
from cdmem.theory.settings import each, number

POOL = 4000  # trajectories of the teachers for regression
REGRESSION_RATE = 3e-2
VISIT = 12  # level of the second step, t near .52


@dataclass(frozen=True)
class Distillation:
    """Consistency students.

    Attributes:
        steps: optimiser steps per noise level, the longest is the main one; an empty list leaves the distillation out.
        lr: peak learning rate.
    """

    steps: list[int] = field(default_factory=lambda: [15, 60], metadata=each(1, 2000, optional=True))
    lr: float = number(1e-2, 1e-9, 1)


@dataclass(frozen=True)
class Maps:
    """One-step maps of E members at one time.

    Attributes:
        means: (E, M, d).
        intercepts: (E, M), -inf for padding.
        scalars: (E, 3): g, h and b.
    """

    means: Tensor
    intercepts: Tensor
    scalars: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Points (R, d) or (E, R, d) to (E, R, d)."""
        g, h, b = (s[:, None, None] for s in self.scalars.unbind(-1))
        weights = torch.softmax(b.exp() * (x @ self.means.mT) + self.intercepts[:, None], -1)
        return g * x + h * (weights @ self.means)

    def member(self, e: int) -> Maps:
        """One member alone, in float64."""
        return Maps(*(p[e : e + 1].detach().double() for p in (self.means, self.intercepts, self.scalars)))


Student = list[Maps]  # of one teacher: of its k-th time, float64; regression knows the first only


def sample(student: Student, x: Tensor, visits: Sequence[int] = (), seed: int = 0) -> Tensor:
    """One step of points (R, d) from the first time, then for each visited level fresh noise and another step."""
    generator = torch.Generator().manual_seed(seed)
    clean = student[0](x)[0]
    for level in visits:
        z = torch.randn(clean.shape, generator=generator, dtype=clean.dtype)
        clean = student[level](noisy(clean, grid()[level], z))[0]
    return clean


@dataclass(frozen=True)
class Teachers:
    """Several trained models side by side, float32: means (E, M, d), variances (E,), log weights (E, M)."""

    means: Tensor
    var: Tensor
    mask: Tensor

    @classmethod
    def of(cls, models: Sequence[Learned]) -> Teachers:
        """Pad them to the largest M."""
        means = pad_sequence([m.means.float() for m in models], True)
        var = torch.tensor([m.var for m in models], dtype=torch.float32)
        return cls(means, var, padding([len(m.means) for m in models]))

    def step(self, x: Tensor, t: Tensor, later: Tensor) -> Tensor:
        """One sampler step of points (R, d) or (E, R, d)."""
        return advance(x, isotropic(x, t, self.means, self.var, self.mask), t, later)

    def maps(self, t: Tensor) -> Maps:
        """Their denoisers at a time, as maps."""
        a = alpha(t)
        v = a**2 * self.var + t**2
        intercepts = -(a**2) / (2 * v[:, None]) * (self.means**2).sum(-1) + self.mask
        return Maps(self.means, intercepts, torch.stack([a * self.var / v, t**2 / v, (a / v).log()], -1))


def consistency(
    models: Sequence[Learned], data: Tensor, training: Training, seed: int, tick: Callable[[], None] = lambda: None
) -> list[Student]:
    """One consistency student per model.

    Args:
        models: the teachers, of any capacities.
        data: (N, d) training points, noised for the student as for the teacher.
        training: of the optimiser, per level.
        seed: of the noise.
        tick: called after each level.

    Raises:
        InputError: the training diverged.
    """
    teachers, generator = Teachers.of(models), torch.Generator().manual_seed(seed)
    times, clean = grid().float(), data.float().repeat_interleave(training.draws, 0)
    done: list[Maps] = []
    for k in reversed(range(len(times) - 1)):
        t, later = times[k], times[k + 1]

        def pairs(t: Tensor = t, later: Tensor = later) -> tuple[Tensor, Tensor]:
            x = noisy(clean, t, torch.randn(clean.shape, generator=generator))
            after = teachers.step(x, t, later)
            return x, done[0](after) if done else after

        done.insert(0, _fit(done[0] if done else teachers.maps(t), pairs, training))
        tick()
    return [[m.member(e) for m in done] for e in range(len(models))]


def regression(models: Sequence[Learned], training: Training, rows: int, seed: int) -> list[Student]:
    """One student per model that follows the ends of trajectories; ``rows`` of them per step.

    Raises:
        InputError: the training diverged.
    """
    teachers, generator = Teachers.of(models), torch.Generator().manual_seed(seed)
    times = grid().float()
    start = torch.randn(POOL, teachers.means.shape[2], generator=generator)
    with torch.no_grad():
        end = start.expand(len(models), -1, -1)
        for t, later in pairwise(times):
            end = teachers.step(end, t, later)

    def pairs() -> tuple[Tensor, Tensor]:
        pick = torch.randint(POOL, (rows,), generator=generator)
        return start[pick], end[:, pick]

    maps = _fit(teachers.maps(times[0]), pairs, training)
    return [[maps.member(e)] for e in range(len(models))]


def _fit(start: Maps, pairs: Callable[[], tuple[Tensor, Tensor]], training: Training) -> Maps:
    """Least squares from a start on fresh pairs of points (R, d) and targets (E, R, d)."""
    parameters = [p.clone().requires_grad_() for p in (start.means, start.intercepts, start.scalars)]
    maps, optimiser = Maps(*parameters), AveragedAdam(parameters, training)
    padded = torch.isinf(start.intercepts)
    for _ in range(training.steps):
        with torch.no_grad():
            x, target = pairs()
        loss = ((maps(x) - target) ** 2).sum(-1).mean(-1).sum()
        gradients = torch.autograd.grad(loss, parameters)
        gradients[1].masked_fill_(padded, 0.0)
        optimiser.step(gradients)
    if not all(torch.isfinite(p).all() for p in (maps.means, maps.scalars)):
        raise InputError("distillation.lr", training.peak_lr, "made the distillation diverge", "give a smaller one")
    return Maps(*(p.detach() for p in parameters))


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


def training_of(steps: int, rate: float, draws: int = 1) -> Training:
    """Of a student: short memories, since every level is a small problem of its own."""
    return Training(steps, rate, 1e-4, 0.1, 0.5, 0.95, draws=draws)


def compare(
    models: Sequence[Learned], problem: Problem, settings: Distillation, draws: int, tick: Callable[[], None]
) -> list[Curve]:
    """Teacher, its students, and the teacher at as few steps, on the same noise.

    Args:
        models: trained at ascending capacities.
        problem: their data.
        settings: lengths of the consistency distillation; the longest counts as the student, the others show what its
            length does. Regression gets ten times the longest.
        draws: noises per training point and step.
        tick: called after every level.
    """
    z, times, seed = problem.noise, grid(), problem.seed
    lengths = sorted(settings.steps)
    by_length = [consistency(models, problem.data, training_of(k, settings.lr, draws), seed + 1, tick) for k in lengths]
    students = by_length[-1]
    rows = draws * len(problem.data)
    direct = regression(models, training_of(10 * lengths[-1], REGRESSION_RATE), rows, seed + 2)

    def few(model: Learned, nfe: int) -> Tensor:
        return integrate(model, z, times[torch.linspace(0, len(times) - 1, nfe + 1).round().long()])

    ends = [integrate(model, z, times) for model in models]
    samples = [
        ("teacher", "teacher, 25 steps", len(times) - 1, ends),
        ("consistency_1", "consistency, 1 step", 1, [sample(s, z) for s in students]),
        ("consistency_2", "consistency, 2 steps", 2, [sample(s, z, [VISIT], seed) for s in students]),
        ("regression_1", "regression, 1 step", 1, [sample(s, z) for s in direct]),
        ("teacher_1", "teacher, 1 step", 1, [few(m, 1) for m in models]),
        ("teacher_2", "teacher, 2 steps", 2, [few(m, 2) for m in models]),
    ]
    for length, short in zip(lengths[:-1], by_length):
        made = [sample(s, z) for s in short]
        samples.append((f"consistency_1_after_{length}", f"1 step, {length} per level", 1, made))
    return [_curve(name, label, nfe, of, ends, problem) for name, label, nfe, of in samples]


def _curve(name: str, label: str, steps: int, samples: list[Tensor], ends: list[Tensor], problem: Problem) -> Curve:
    flags, before = ([copied(s, problem.data) for s in of] for of in (samples, ends))
    kept = [float((a & b).sum() / b.sum()) if b.any() else None for a, b in zip(flags, before)]
    error = [float(((a - b) ** 2).mean() / (b**2).mean()) ** 0.5 for a, b in zip(samples, ends)]
    spread = [spread_ratio(s, problem.reference) for s in samples]
    return Curve(name, label, steps, [tally(f) for f in flags], spread, kept, error)


def curve_numbers(curves: Sequence[Curve], capacities: Sequence[int], n: int) -> dict[str, Any]:
    """For results.json: ratio, interval, variance ratio and M_pt of every sampler."""
    rows = {
        c.name: {
            "steps": c.steps,
            **ratio_numbers(c.copies),
            "variance_ratio": c.spread,
            "kept": c.kept,
            "error": c.error,
            "transition_over_n": transition(list(capacities), c.copies).shares(n),
        }
        for c in curves
    }
    return {"capacity": list(capacities), "second_step_from_t": float(grid()[VISIT]), **rows}
