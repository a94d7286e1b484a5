"""Settings that teacher and student share, as objects: optimisation, averaging, seeds."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import nn

from cdmem.errors import InputError
from cdmem.seeds import first_sample

RAW = "raw"


class Phase(NamedTuple):
    """A stretch of the learning-rate schedule.

    Attributes:
        start: optimizer step of its first rate.
        end: where a cosine reaches 0.
        kind: ``cosine``, ``constant``, or ``hold``: the last rate before ``start``.
    """

    start: int
    end: int
    kind: str


@dataclass(frozen=True)
class Optimization:
    """How weights move.

    Args:
        optimizer: e.g. ``torch.optim.Adam`` with ``init_args: {lr: 1.0e-3}``; None takes Adam for a teacher and RAdam
            for a student.
        schedule: of the learning rate: ``cosine`` to 0 at ``trainer.max_steps``, or ``constant``.
        warmup_steps: linear ramp of the learning rate.
        longer: what a cosine does when a run goes on with another ``trainer.max_steps``: ``restart`` from the full rate
            towards the new end, or ``constant_at_end``, the rate it had come to.
    """

    optimizer: OptimizerCallable | None = None
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup_steps: int = 0
    longer: Literal["restart", "constant_at_end"] | None = None

    def phases(self, total_steps: int) -> list[Phase]:
        """The schedule of a run that is never changed."""
        return [Phase(0, total_steps, self.schedule)]

    def continued(self, phases: Sequence[Phase], step: int, total_steps: int) -> list[Phase]:
        """The schedule of a run that goes on from ``step`` with these settings.

        Raises:
            InputError: a cosine whose end has moved, and no word of ``longer``.
        """
        last = phases[-1]
        if self.schedule == "constant":
            return list(phases) if last.kind == "constant" else [*phases, Phase(step, total_steps, "constant")]
        if last.kind != "constant" and last.end == total_steps:
            return list(phases)
        if last.kind != "constant" and self.longer is None:
            raise InputError(
                "trainer.max_steps",
                total_steps,
                f"the learning rate was to reach 0 at step {last.end}",
                "add --model.optimization.longer restart (or constant_at_end)",
            )
        kind = "hold" if self.longer == "constant_at_end" and last.kind != "constant" else "cosine"
        return [*phases, Phase(step, total_steps, kind)]

    def factor(self, step: int, phases: Sequence[Phase]) -> float:
        """Share of the learning rate at an optimizer step, counted from 0."""
        index = max(k for k, phase in enumerate(phases) if k == 0 or phase.start <= step)
        start, end, kind = phases[index]
        if kind == "hold":
            return self.factor(start - 1, phases[:index])
        warm = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        cosine = 0.5 * (1 + math.cos(math.pi * min((step - start) / (end - start), 1.0))) if end > start else 0.0
        return warm * (cosine if kind == "cosine" else 1.0)

    def configure(
        self, parameters: Iterator[nn.Parameter], phases: Sequence[Phase], default: OptimizerCallable
    ) -> dict[str, Any]:
        """Optimizer and schedule as Lightning takes them."""
        optimizer = (self.optimizer or default)(parameters)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: self.factor(step, phases))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def apply_hyperparameters(optimizer: torch.optim.Optimizer, schedule: torch.optim.lr_scheduler.LambdaLR) -> None:
    """What the settings say, over what a checkpoint restored: its rates and moments' decay were those of its run.

    Restored state that agrees with the settings stays as it is, to the bit.
    """
    settings = {k: v for k, v in optimizer.defaults.items() if k != "lr"}
    rate = optimizer.defaults["lr"]
    for group in optimizer.param_groups:
        group.update(settings)
        group["initial_lr"] = rate
        group["lr"] = rate * schedule.lr_lambdas[0](schedule.last_epoch)
    schedule.base_lrs = [rate for _ in optimizer.param_groups]
    schedule._last_lr = [group["lr"] for group in optimizer.param_groups]


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
