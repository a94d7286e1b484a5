"""The published optimiser: Adam, a linear warm-up and decay, and an average over the *updates*."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


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
