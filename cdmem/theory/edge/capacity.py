"""The trained model: M means and one shared standard deviation, equal weights, all noise levels (capacity M).

Several capacities are trained side by side on the same noise; their parameters are padded to the largest M and the
padding is switched off. Each member's gradient is its own, so that it trains as it would alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cdmem.errors import InputError
from cdmem.theory.edge.denoisers import isotropic
from cdmem.theory.edge.optimiser import AveragedAdam, Schedule
from cdmem.theory.edge.process import grid, noisy, psi

INITIAL_VAR = 1e-6


@dataclass(frozen=True)
class Learned:
    """A trained model.

    Attributes:
        means: (M, d), float64.
        var: the shared variance s^2.
    """

    means: Tensor
    var: float

    def __call__(self, x: Tensor, t: float) -> Tensor:
        """Its denoiser."""
        return isotropic(x, t, self.means, self.var)


def padding(capacities: Sequence[int]) -> Tensor:
    """Log weights (E, max M): 0 for a member's own means, -inf for the padding."""
    used = torch.arange(max(capacities)) < torch.tensor(capacities)[:, None]
    return torch.zeros(used.shape).masked_fill(~used, -torch.inf)


def starts(count: int, capacity: int, seed: int) -> Tensor:
    """Which of ``count`` samples a model of some capacity starts from, (M,); the same alone or beside others."""
    return torch.from_numpy(np.random.default_rng([seed, capacity]).permutation(count)[:capacity])


def batch(data: Tensor, times: Tensor, draws: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """One published step's points: every sample at one random time of the grid, with ``draws`` noises.

    Returns:
        clean points (N draws, d), their times (N draws,), noisy points (N draws, d).
    """
    t = times[torch.randint(len(times), (len(data),), generator=generator)].repeat_interleave(draws)
    clean = data.repeat_interleave(draws, 0)
    return clean, t, noisy(clean, t, torch.randn(clean.shape, generator=generator))


def noise_loss(estimate: Tensor, clean: Tensor, t: Tensor) -> Tensor:
    """The published weight alpha^2 / sigma^2, which is the error of the predicted noise: mean over points, summed over
    members, for estimates (E, R, d) of clean points (R, d) at times (R,)."""
    return (psi(t) * ((estimate - clean) ** 2).sum(-1)).mean(-1).sum()


def train(
    data: Tensor,
    capacities: Sequence[int],
    schedule: Schedule,
    draws: int,
    seed: int,
    tick: Callable[[], None] = lambda: None,
) -> list[Learned]:
    """Minimise the noise-prediction loss, E_t[psi_t L_{N,t}], from random samples as means and s^2 = 1e-6.

    Args:
        data: (N, d), float64.
        capacities: M of each model.
        schedule: of the optimiser.
        draws: fresh noises per sample and step.
        seed: of starts and noise.
        tick: called after every 100 steps.

    Returns:
        one model per capacity; trained in float32.

    Raises:
        InputError: the training diverged.
    """
    generator = torch.Generator().manual_seed(seed)
    small, times, mask = data.float(), grid().float(), padding(capacities)
    means = torch.zeros(len(capacities), max(capacities), data.shape[1])
    for e, m in enumerate(capacities):
        means[e, :m] = small[starts(len(data), m, seed)]
    means.requires_grad_()
    std = torch.full((len(capacities),), INITIAL_VAR**0.5, requires_grad=True)
    optimiser = AveragedAdam([means, std], schedule)
    for step in range(schedule.steps):
        clean, t, x = batch(small, times, draws, generator)
        loss = noise_loss(isotropic(x, t, means, std**2, mask), clean, t)
        optimiser.step(torch.autograd.grad(loss, [means, std]))
        if (step + 1) % 100 == 0:
            tick()
    if not (torch.isfinite(means).all() and torch.isfinite(std).all()):
        raise InputError("peak_lr", schedule.peak, "made the training diverge", "give a smaller one")
    done, deviations = means.detach().double(), std.detach().double()
    return [Learned(done[e, :m], float(deviations[e]) ** 2) for e, m in enumerate(capacities)]
