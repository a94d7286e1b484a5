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
from torch.nn.utils.rnn import pad_sequence

from cdmem.errors import InputError
from cdmem.theory.edge.denoisers import isotropic
from cdmem.theory.edge.mixture import grid, noisy, psi
from cdmem.theory.settings import number

INITIAL_VAR = 1e-6


@dataclass(frozen=True)
class Training:
    """Steps of the optimiser; the defaults here are the published ones.

    Attributes:
        steps: optimiser steps; published 50,000, of images 100,000.
        peak_lr: learning rate at the end of the warm-up; published 1e-3, of images 1e-4.
        last_lr: learning rate at the end, reached linearly; published 1e-6, of images 1e-8.
        warm_up: share of the steps in which the rate rises linearly from 0; published .1, of images .05.
        average: decay of the exponential average of Adam's updates; published .99, of images .1.
        memory: decay of Adam's second moment; published .999. The first gradients, at s = 1e-3, are 1e5 times those
            that follow; with .999 it takes the published 50,000 steps to forget them.
        clip: largest norm of a model's gradient; published 1e9, of images 1e3.
        draws: noises per sample and step; published 100.
    """

    steps: int = number(50_000, 10, 10**7)
    peak_lr: float = number(1e-3, 1e-9, 1)
    last_lr: float = number(1e-6, 0, 1)
    warm_up: float = number(0.1, 0, 0.9)
    average: float = number(0.99, 0, 0.99999)
    memory: float = number(0.999, 0, 0.99999)
    clip: float = number(1e9, 1e-6, 1e12)
    draws: int = number(100, 1, 1000)

    def rate(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""
        warm = int(self.steps * self.warm_up)
        if step < warm:
            return self.peak_lr * step / warm
        return self.peak_lr + (self.last_lr - self.peak_lr) * (step - warm) / max(1, self.steps - warm)


class AveragedAdam:
    """Adam (.9, .999) whose updates are averaged, for tensors whose first axis counts independent members."""

    def __init__(self, parameters: Sequence[Tensor], training: Training) -> None:
        self.parameters, self.training, self.step_count = list(parameters), training, 0
        self.first = [torch.zeros_like(p) for p in self.parameters]
        self.second = [torch.zeros_like(p) for p in self.parameters]
        self.mean = [torch.zeros_like(p) for p in self.parameters]

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor]) -> None:
        """One update of every member from its gradients."""
        s, rate = self.training, self.training.rate(self.step_count)
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


@dataclass(frozen=True)
class Learned:
    """A trained model.

    Attributes:
        means: (M, ...), float64.
        var: the shared variance s^2.
    """

    means: Tensor
    var: float

    def __call__(self, x: Tensor, t: float) -> Tensor:
        """Its denoiser."""
        return isotropic(x, t, self.means, self.var)


def padding(capacities: Sequence[int]) -> Tensor:
    """Log weights (E, max M): 0 for a member's own means, -inf for the padding."""
    return pad_sequence([torch.zeros(m) for m in capacities], True, -torch.inf)


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


def minimise(
    estimate: Callable[[Tensor, Tensor], Tensor],
    parameters: Sequence[Tensor],
    data: Tensor,
    training: Training,
    seed: int,
    key: str,
) -> None:
    """Minimise the noise-prediction loss, E_t[psi_t L_{N,t}], over parameters whose first axis counts members.

    Args:
        estimate: clean points (E, R, d) of noisy ones (R, d) at times (R,), a function of the parameters.
        parameters: changed in place.
        data: (N, ...) training points.
        training: of the optimiser.
        seed: of the noise.
        key: setting of the learning rate.

    Raises:
        InputError: the training diverged.
    """
    generator, optimiser = torch.Generator().manual_seed(seed), AveragedAdam(parameters, training)
    small, times = data.float().flatten(1), grid().float()
    for _ in range(training.steps):
        clean, t, x = batch(small, times, training.draws, generator)
        loss = noise_loss(estimate(x, t), clean, t)
        optimiser.step(torch.autograd.grad(loss, parameters))
    if not all(torch.isfinite(p).all() for p in parameters):
        raise InputError(key, training.peak_lr, "made the training diverge", "give a smaller one")


def train(data: Tensor, capacities: Sequence[int], training: Training, seed: int) -> list[Learned]:
    """Models that start from random samples as means and s^2 = 1e-6, trained in float32.

    Args:
        data: (N, d), float64.
        capacities: M of each model.
        training: of the optimiser.
        seed: of starts and noise.

    Returns:
        one model per capacity.

    Raises:
        InputError: the training diverged.
    """
    small, mask = data.float(), padding(capacities)
    means = pad_sequence([small[starts(len(data), m, seed)] for m in capacities], True)
    std = torch.full((len(capacities),), INITIAL_VAR**0.5)
    parameters = [means.requires_grad_(), std.requires_grad_()]
    minimise(lambda x, t: isotropic(x, t, means, std**2, mask), parameters, data, training, seed, "training.peak_lr")
    done, deviations = means.detach().double(), std.detach().double()
    return [Learned(done[e, :m], float(deviations[e]) ** 2) for e, m in enumerate(capacities)]
