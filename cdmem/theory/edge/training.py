"""The trained model: M means and one shared standard deviation, equal weights, all noise levels (capacity M); and its
optimiser, Adam with a linear warm-up and decay and an average over the *updates*.

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
from cdmem.theory.edge.mixture import grid, noisy, psi


@dataclass(frozen=True)
class Schedule:
    """Published values: 50,000 steps, 1e-3 to 1e-6, warm-up .1, average .99, clip 1e9.

    Attributes:
        steps: optimiser steps.
        peak: learning rate at the end of the warm-up.
        last: learning rate at the end, reached linearly.
        warm_up: share of the steps in which the rate rises linearly from 0.
        average: decay of the exponential average of Adam's updates.
        clip: largest norm of a member's gradient.
        memory: decay of Adam's second moment. The first gradients, at s = 1e-3, are 1e5 times those that follow; with
            .999 it takes the published 50,000 steps to forget them.
    """

    steps: int = 50_000
    peak: float = 1e-3
    last: float = 1e-6
    warm_up: float = 0.1
    average: float = 0.99
    clip: float = 1e9
    memory: float = 0.999

    def rate(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""
        warm = int(self.steps * self.warm_up)
        if step < warm:
            return self.peak * step / warm
        return self.peak + (self.last - self.peak) * (step - warm) / max(1, self.steps - warm)


class AveragedAdam:
    """Adam (.9, .999) whose updates are averaged, for tensors whose first axis counts independent members."""

    def __init__(self, parameters: Sequence[Tensor], schedule: Schedule) -> None:
        self.parameters, self.schedule, self.step_count = list(parameters), schedule, 0
        self.first = [torch.zeros_like(p) for p in self.parameters]
        self.second = [torch.zeros_like(p) for p in self.parameters]
        self.mean = [torch.zeros_like(p) for p in self.parameters]

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor]) -> None:
        """One update of every member from its gradients."""
        s, rate = self.schedule, self.schedule.rate(self.step_count)
        self.step_count += 1
        k = self.step_count
        norms = torch.stack([g.reshape(len(g), -1).square().sum(1) for g in gradients]).sum(0).sqrt()
        scale = (s.clip / norms.clamp_min(1e-30)).clamp_max(1.0)
        for p, g, m, v, e in zip(self.parameters, gradients, self.first, self.second, self.mean):
            g = g * scale.view(-1, *[1] * (g.dim() - 1))
            m.lerp_(g, 0.1)
            v.mul_(s.memory).addcmul_(g, g, value=1 - s.memory)
            update = m * (rate / (1 - 0.9**k)) / ((v / (1 - s.memory**k)).sqrt() + 1e-8)
            e.lerp_(update, 1 - s.average)
            p.sub_(e / (1 - s.average**k))


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
