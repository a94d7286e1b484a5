"""Regression onto the ends of the teacher's trajectories: distillation without self-consistency, its control.

Luhman & Luhman 2021 (knowledge distillation of one step), here at every noise level of the trajectory.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from cdmem.diffusion.losses import Distance, PseudoHuber
from cdmem.diffusion.noise import karras_sigmas
from cdmem.diffusion.preconditioning import DenoiserLike
from cdmem.diffusion.sampling import ode_states
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

# Points of trajectories (B, C, H, W), their levels (B,), the ends of these trajectories, lambda (B,), labels.
Pair = tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]


@dataclass(frozen=True)
class TrajectoryRegression(DistillationMethod):
    r"""f(x_sigma, sigma) regresses onto the end of the trajectory that x_sigma lies on.

    .. math:: \lambda(\sigma)\, d\big(f(x_\sigma, \sigma),\, x_{\sigma_{min}}\big),\qquad
              x_{\sigma_{max}} = \sigma_{max}\,\epsilon

    where x falls along the teacher's probability-flow ODE on the Karras grid. The noise of every step is new, a
    function of seed and step: there is no pool of pairs to overfit. It belongs to the stream ``training``, all samples
    that are evaluated to the stream ``samples``: no seed of one is a seed of the other (:mod:`cdmem.seeds`). Of the
    batch only the classes are used, never the images.

    One trajectory costs as much as N - 1 solver steps of consistency distillation and gives a pair at every level, so
    ``reuse`` consecutive images of a batch share one. With all levels a pair costs what one of consistency distillation
    does: two evaluations of the teacher (``euler``: one), and there is no target network. The first of a group
    is trained at sigma_max, the others at different levels, drawn anew for every trajectory. The sampling levels
    ``model.mid_sigmas`` are levels too: one solver step from the grid point above leads there.

    A trajectory of a class-conditional student has the class of its first image; where processes or micro-batches cut a
    group in two, of the first image on each side.

    Args:
        points: grid points N.
        solver: ``heun`` or ``euler``.
        distance: ``cdmem.diffusion.PseudoHuber`` (on the whole image vector), ``L2`` or ``L1``.
        weighting: lambda = 1 (``uniform``), or 1 / (sigma - the next grid point below) (``inverse_gap``).
        reuse: pairs of one trajectory, 2 to N - 1; None takes all levels. Fewer give a batch more starts: at 2 a step
            costs N - 1 evaluations of the teacher an image (``heun``).
        dropout: probability in the student's network.
    """

    points: int = 18
    solver: SolverName = "heun"
    distance: Distance = field(default_factory=PseudoHuber)
    weighting: Weighting = "uniform"
    reuse: int | None = None
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check_method(self.points, self.distance, self.dropout)
        if self.reuse is not None and not 2 <= self.reuse < self.points:
            problem = f"must be 2 to {self.points - 1}, the levels of {self.points} points"
            raise InputError("model.method.reuse", self.reuse, problem, "leave it out to take all levels")

    @property
    def ode_solver(self) -> SolverName:
        return self.solver

    def grid_points(self) -> int:
        return self.points

    def group(self, at: Progress) -> int:
        return self.reuse or len(self.levels(at))

    def levels(self, at: Progress) -> Tensor:
        """Noise levels that are trained, (K,) float64: the grid without sigma_min, then what ``mid_sigmas`` add."""
        grid = karras_sigmas(self.points, at.sigma_min, at.sigma_max)
        known = grid.float().tolist()  # as the student is asked
        added = [s for s in dict.fromkeys(torch.tensor(at.mid_sigmas, dtype=torch.float32).tolist()) if s not in known]
        return torch.cat([grid[:-1], torch.tensor(added, dtype=torch.float64)])

    def teacher_part(self, teacher: DenoiserLike | None, batch: CleanBatch, noise: StepNoise, at: Progress) -> Pair:
        assert teacher is not None  # needs_teacher
        levels, size, device = self.levels(at), self.group(at), batch.x0.device
        eps = noise.group_normal(size, tuple(batch.x0.shape[1:]))
        others = noise.group_normal(size, (len(levels) - 1,)).argsort(1) + 1
        row, place = noise.groups(size)
        level = torch.cat([torch.zeros_like(others[:, :1]), others], 1)[row, place]
        starts = torch.arange(len(eps), device=device)
        labels = None if batch.labels is None else batch.labels[torch.searchsorted(row, starts)]
        # The teacher stays in float32 whatever precision the student trains in.
        with torch.autocast(device.type, enabled=False):
            states, ends = self.trajectories(teacher, at.sigma_max * eps, levels, at, labels)
        sigma = levels.to(device, torch.float32)[level]
        weight = self.weights(levels, at).to(device, torch.float32)[level]
        return states[level, row], sigma, ends[row], weight, None if labels is None else labels[row]

    def trajectories(
        self, teacher: DenoiserLike, x: Tensor, levels: Tensor, at: Progress, labels: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The teacher's ODE from x (G, C, H, W) at sigma_max down the grid: the states at the levels (K, G, C, H, W),
        and the end at sigma_min (G, C, H, W), float32."""
        grid, step = karras_sigmas(self.points, at.sigma_min, at.sigma_max), SOLVERS[self.solver]
        *states, end = ode_states(teacher, x, grid, step, labels)
        for level in levels[len(states) :]:
            k = int((grid > level).sum()) - 1
            *_, state = ode_states(teacher, states[k], torch.stack([grid[k], level]), step, labels)
            states.append(state)
        return torch.stack([state.float() for state in states]), end.float()

    def weights(self, levels: Tensor, at: Progress) -> Tensor:
        """lambda of every level, (K,) float64."""
        if self.weighting == "uniform":
            return torch.ones_like(levels)
        grid = karras_sigmas(self.points, at.sigma_min, at.sigma_max)
        below = grid[(grid[None] >= levels[:, None]).sum(1)]
        return 1 / (levels - below)

    def loss(self, student: StudentFunctions, part: Pair, noise: StepNoise) -> Tensor:
        x, sigma, goal, weight, labels = part
        return weight * self.distance(student.online(x, sigma, labels), goal)
