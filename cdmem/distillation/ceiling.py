"""The ceiling of a distillation: samples of the student that has learned its recipe perfectly.

That student gives the end of the teacher's ODE on the distillation's own grid, by its own solver. What it does not copy
no training of it can bring back; what a real student copies less is its own doing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cdmem.diffusion.noise import karras_sigmas
from cdmem.diffusion.preconditioning import DenoiserLike
from cdmem.diffusion.sampling import ConsistencySampler, sample_ode
from cdmem.diffusion.solvers import SOLVERS

SAME = 1e-6  # relative difference of two levels that are one in float32


@dataclass(frozen=True)
class PerfectStudent:
    """f(x, sigma): the end at sigma_min of the teacher's ODE from (x, sigma), down the grid points below sigma.

    Args:
        teacher: D(x; sigma).
        sigmas: the distillation's grid (N,), decreasing, both ends included.
        solver: ``heun`` or ``euler``.
    """

    teacher: DenoiserLike
    sigmas: Tensor
    solver: str

    def levels(self, sigma: float) -> Tensor:
        """What is walked down from ``sigma``: itself, or the grid point that it is, and the points below."""
        below = self.sigmas[self.sigmas < sigma * (1 - SAME)]
        at = self.sigmas[(self.sigmas / sigma - 1).abs() <= SAME]
        return torch.cat([at if len(at) else below.new_tensor([sigma]), below])

    def __call__(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        """x (B, C, H, W) and one level for all of them, (B,); float32.

        Raises:
            ValueError: levels that differ.
        """
        if bool((sigma != sigma[0]).any()):
            raise ValueError("all images must have one noise level")
        return sample_ode(self.teacher, x, self.levels(float(sigma[0])), SOLVERS[self.solver], labels)

    def evaluations(self, sigma: float) -> int:
        """Of the teacher, for an image at ``sigma``."""
        return (len(self.levels(sigma)) - 1) * (1 if self.solver == "euler" else 2)


@dataclass
class CeilingSampler(ConsistencySampler):
    """Seed -> image of the perfect student: noise, labels and levels of every seed are those of the student.

    ``nfe`` is the student's: what it would spend, not what this sampler does (:attr:`evaluations`).
    """

    consistency: PerfectStudent

    @classmethod
    def of(
        cls,
        teacher: DenoiserLike,
        points: int,
        solver: str,
        sigma_max: float,
        sigma_min: float,
        shape: tuple[int, ...],
        mid_sigmas: tuple[float, ...] = (),
        num_classes: int = 0,
    ) -> CeilingSampler:
        """Of a distillation on a Karras grid of ``points`` by ``solver``; the rest is the student's sampler's."""
        perfect = PerfectStudent(teacher, karras_sigmas(points, sigma_min, sigma_max), solver)
        return cls(perfect, sigma_max, sigma_min, shape, mid_sigmas, num_classes)

    @property
    def evaluations(self) -> int:
        """Of the teacher, a sample."""
        return sum(self.consistency.evaluations(level) for level in (self.sigma_max, *self.mid_sigmas))
