"""Consistency distillation (Song et al. 2023, alg. 2), and consistency training (alg. 3) as its control."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from cdmem.diffusion.curriculum import Curriculum, adaptive_mu, num_points
from cdmem.diffusion.losses import Distance, PseudoHuber, consistency_loss
from cdmem.diffusion.noise import IntervalDistribution, expand, interval_probabilities, karras_sigmas
from cdmem.diffusion.preconditioning import DenoiserLike
from cdmem.diffusion.sampling import renoise
from cdmem.diffusion.solvers import SOLVERS
from cdmem.diffusion.step_noise import StepNoise
from cdmem.distillation.base import (
    CleanBatch,
    DistillationMethod,
    Progress,
    SolverName,
    StudentFunctions,
    Weighting,
    check_method,
)
from cdmem.errors import InputError
from cdmem.networks.parameters import move_towards

# Neighbouring points of a trajectory: x0 + sigma_hi eps, one solver step further down, both levels (B,), labels.
Pair = tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]


@dataclass(frozen=True)
class ConsistencyTraining(DistillationMethod):
    """Control: consistency training steps towards the image itself and needs no teacher.

    The defaults are stable at small batch (chosen by trajectory rmse over seeds, ``benchmarks/student_recipes.py``);
    ``configs/methods/`` has the published choices.

    Args:
        points: grid points N; the last value of a growing curriculum (s1).
        start_points: first value of a growing curriculum (s0).
        curriculum: ``fixed``, ``doubling`` (iCT) or ``sqrt`` (Song et al.).
        distance: ``cdmem.diffusion.PseudoHuber`` (on the whole image vector), ``L2`` or ``L1``.
        weighting: lambda = 1 (``uniform``), or 1 / (sigma_hi - sigma_lo) (``inverse_gap``).
        intervals: which interval of the grid a sample trains: ``uniform`` or ``lognormal``.
        p_mean: mean of ln sigma of log-normal intervals.
        p_std: standard deviation of ln sigma of log-normal intervals.
        mu: target rate in [0, 1): 0 is the student itself without gradient; ``adaptive`` follows N.
        mu_start: mu_0 of the adaptive rate.
        dropout: probability in the student's network, shared with the target.
    """

    points: int = 18
    start_points: int = 2
    curriculum: Curriculum = "fixed"
    distance: Distance = field(default_factory=PseudoHuber)
    weighting: Weighting = "uniform"
    intervals: IntervalDistribution = "lognormal"
    p_mean: float = -1.1
    p_std: float = 2.0
    mu: float | Literal["adaptive"] = 0.95
    mu_start: float = 0.95
    dropout: float = 0.0

    needs_teacher: ClassVar[bool] = False

    def __post_init__(self) -> None:
        key = "model.method"
        check_method(self.points, self.distance, self.dropout)
        if not 1 <= self.start_points <= self.points:
            problem = f"must be 1..{key}.points={self.points}"
            raise InputError(f"{key}.start_points", self.start_points, problem, "lower it")
        if self.mu != "adaptive" and not 0 <= self.mu < 1:
            hint = "0 for no target network, 0.95 for small runs"
            raise InputError(f"{key}.mu", self.mu, "must be in [0, 1)", hint)

    @property
    def follows_length(self) -> bool:
        return self.curriculum != "fixed"

    def points_at(self, step: int, total_steps: int) -> int:
        """Grid points N at an optimizer step."""
        return num_points(step, total_steps, self.curriculum, self.start_points, self.points)

    def grid_points(self) -> int:
        return self.points + (self.curriculum != "fixed")

    def teacher_part(self, teacher: DenoiserLike | None, batch: CleanBatch, noise: StepNoise, at: Progress) -> Pair:
        sigmas = karras_sigmas(self.points_at(at.step, at.total_steps), at.sigma_min, at.sigma_max)
        interval = noise.choice(interval_probabilities(sigmas, self.intervals, self.p_mean, self.p_std))
        grid = sigmas.to(batch.x0.device, torch.float32)
        hi, lo = grid[interval], grid[interval + 1]
        x_hi = renoise(batch.x0, hi, noise.normal(tuple(batch.x0.shape[1:])))
        return x_hi, self.step_down(teacher, batch, x_hi, hi, lo), hi, lo, batch.labels

    def step_down(
        self, teacher: DenoiserLike | None, batch: CleanBatch, x_hi: Tensor, hi: Tensor, lo: Tensor
    ) -> Tensor:
        """From sigma_hi to sigma_lo, without a teacher towards the image itself: x0 + (lo / hi) (x - x0)."""
        return batch.x0 + expand(lo / hi, x_hi) * (x_hi - batch.x0)

    def loss(self, student: StudentFunctions, part: Pair, noise: StepNoise) -> Tensor:
        x_hi, x_lo, hi, lo, labels = part
        weight = 1 / (hi - lo) if self.weighting == "inverse_gap" else 1.0
        return consistency_loss(student.online, student.target, x_hi, x_lo, hi, lo, self.distance, weight, labels)

    @property
    def keeps_target(self) -> bool:
        return self.mu != 0

    def update_target(self, target: nn.Module, network: nn.Module, at: Progress) -> None:
        mu = self.mu
        if mu == "adaptive":
            mu = adaptive_mu(self.points_at(at.step - 1, at.total_steps), self.start_points, self.mu_start)
        move_towards(target, network, 1 - mu)


@dataclass(frozen=True)
class ConsistencyDistillation(ConsistencyTraining):
    """Consistency distillation: neighbouring points lie on the teacher's probability-flow ODE.

    Args:
        solver: ``heun`` or ``euler`` step of the teacher; the others are those of consistency training.
    """

    solver: SolverName = "heun"

    needs_teacher: ClassVar[bool] = True

    @property
    def ode_solver(self) -> SolverName:
        return self.solver

    def step_down(
        self, teacher: DenoiserLike | None, batch: CleanBatch, x_hi: Tensor, hi: Tensor, lo: Tensor
    ) -> Tensor:
        assert teacher is not None  # needs_teacher
        # The teacher stays in float32 whatever precision the student trains in.
        with torch.no_grad(), torch.autocast(x_hi.device.type, enabled=False):
            return SOLVERS[self.solver](teacher, x_hi, hi, lo, batch.labels).float()
