"""Settings that teacher and student share, as objects: optimisation, averaging, seeds."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import nn

from cdmem.errors import InputError
from cdmem.seeds import first_sample

RAW = "raw"


@dataclass(frozen=True)
class Optimization:
    """How weights move.

    Args:
        optimizer: e.g. ``torch.optim.Adam`` with ``init_args: {lr: 1.0e-3}``; None takes Adam for a teacher and RAdam
            for a student.
        schedule: of the learning rate: ``cosine`` to 0 at ``trainer.max_steps``, or ``constant``.
        warmup_steps: linear ramp of the learning rate.
    """

    optimizer: OptimizerCallable | None = None
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup_steps: int = 0

    def factor(self, step: int, total_steps: int) -> float:
        """Share of the learning rate at an optimizer step, counted from 0."""
        warm = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        cosine = 0.5 * (1 + math.cos(math.pi * min(step / total_steps, 1.0)))
        return warm * (cosine if self.schedule == "cosine" else 1.0)

    def configure(
        self, parameters: Iterator[nn.Parameter], total_steps: int, default: OptimizerCallable
    ) -> dict[str, Any]:
        """Optimizer and schedule as Lightning takes them."""
        optimizer = (self.optimizer or default)(parameters)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: self.factor(step, total_steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


@dataclass(frozen=True)
class Averaging:
    """Averages of the weights, and which weights are evaluated.

    Args:
        half_lives: of the averages, in optimizer steps; several at once.
        ramp: no half-life exceeds this share of the steps taken (EDM: 0.05).
        weights: evaluated weights, ``raw`` or ``ema_<half-life>``; None takes the first half-life.
    """

    half_lives: Sequence[int] = (200,)
    ramp: float = 0.05
    weights: str | None = None

    def __post_init__(self) -> None:
        if not self.half_lives or min(self.half_lives) < 1:
            problem = "needs half-lives of 1 step or more"
            raise InputError("model.averaging.half_lives", list(self.half_lives), problem, "e.g. [200]")
        names = [RAW, *(f"ema_{h}" for h in self.half_lives)]
        if self.weights is not None and self.weights not in names:
            raise InputError("model.averaging.weights", self.weights, "no such weights", f"choose one of {names}")

    @property
    def evaluated(self) -> str:
        """Name of the evaluated weights."""
        return self.weights or f"ema_{self.half_lives[0]}"


@dataclass(frozen=True)
class Seeds:
    """Where random numbers come from; None derives a seed from ``--seed``.

    Args:
        training: initial weights and training noise.
        sampling: of the samples; the noise of two sampling seeds has nothing in common.
    """

    training: int | None = None
    sampling: int | None = None

    def __post_init__(self) -> None:
        first_sample(self.sampling or 0)
