"""Settings that teacher and student share, as objects: optimisation, averaging, seeds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
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
        end: where a cosine reaches 0, a constant rate or a cooldown ends.
        kind: ``cosine``, ``constant``, ``cooldown``, or ``hold``: the last rate before ``start``.
    """

    start: int
    end: int
    kind: str


def constant_phase(phases: Sequence[Phase]) -> tuple[int, int] | None:
    """Steps (from, to) between which the rate is the full one throughout, warm-up aside: the last such phase."""
    found = [(phase.start, phase.end) for phase in phases if phase.kind == "constant" and phase.end > phase.start]
    return found[-1] if found else None


def read_phases(plain: Iterable[Sequence[Any]]) -> list[Phase]:
    """The schedule that a checkpoint holds.

    Raises:
        TypeError, ValueError: no schedule.
    """
    return [Phase(int(start), int(end), str(kind)) for start, end, kind in plain]


@dataclass(frozen=True)
class Optimization:
    """How weights move.

    Args:
        optimizer: e.g. ``torch.optim.Adam`` with ``init_args: {lr: 1.0e-3}``; None takes Adam for a teacher and RAdam
            for a student.
        schedule: of the learning rate: ``cosine`` to 0 at ``trainer.max_steps``, or ``constant``.
        warmup_steps: linear ramp of the learning rate.
        longer: what a cosine, or a cooldown that has begun, does when a run goes on with another ``trainer.max_steps``:
            ``restart`` from the full rate towards the new end, or ``constant_at_end``, the rate it had come to.
        cooldown_steps: the last steps of a constant schedule, at a smaller rate.
        cooldown_to: that rate as a share of the full one: 0.1 is a tenth throughout; 0 falls to 0 in a straight line.
    """

    optimizer: OptimizerCallable | None = None
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup_steps: int = 0
    longer: Literal["restart", "constant_at_end"] | None = None
    cooldown_steps: int = 0
    cooldown_to: float = 0.1

    def __post_init__(self) -> None:
        key = "model.optimization"
        if self.cooldown_steps < 0:
            hint = "0 for none"
            raise InputError(f"{key}.cooldown_steps", self.cooldown_steps, "must not be negative", hint)
        if self.cooldown_steps and self.schedule != "constant":
            hint = f"add --{key}.schedule constant, or leave it out"
            raise InputError(f"{key}.cooldown_steps", self.cooldown_steps, "a cosine has an end of its own", hint)
        if not 0 <= self.cooldown_to < 1:
            raise InputError(f"{key}.cooldown_to", self.cooldown_to, "must be in [0, 1)", "0.1 is a tenth of the rate")

    def constant_until(self, total_steps: int) -> int:
        """Steps after which the constant rate of a run of this length ends; 0 for a cosine."""
        return total_steps - self.cooldown_steps if self.schedule == "constant" else 0

    def phases(self, total_steps: int) -> list[Phase]:
        """The schedule of a run that is never changed.

        Raises:
            InputError: no length; a cooldown that is longer than the run.
        """
        if total_steps < 1:
            raise InputError("trainer.max_steps", total_steps, "the stream of images never ends", "set a number")
        return self._phases_from(0, 0, total_steps)

    def _phases_from(self, start: int, step: int, total_steps: int) -> list[Phase]:
        """These settings' schedule from ``start`` on, in a run that has come to ``step``."""
        if self.schedule == "cosine":
            return [Phase(start, total_steps, "cosine")]
        begins = total_steps - self.cooldown_steps
        if not self.cooldown_steps:
            return [Phase(start, total_steps, "constant")]
        if begins < step:
            problem = f"only {total_steps - step} of {total_steps} steps are left at step {step}"
            hint = "use fewer, or raise trainer.max_steps"
            raise InputError("model.optimization.cooldown_steps", self.cooldown_steps, problem, hint)
        return [Phase(start, begins, "constant"), Phase(begins, total_steps, "cooldown")]

    def continued(self, phases: Sequence[Phase], step: int, total_steps: int) -> list[Phase]:
        """The schedule of a run that goes on from ``step`` with these settings.

        A constant rate goes on at any length, and a cooldown that has not begun moves to the new end.

        Raises:
            InputError: a cosine or a begun cooldown whose end has moved, and no word of ``longer``; a cooldown that is
                longer than what is left.
        """
        phases = list(phases)
        if phases[-1].kind == "cooldown" and step <= phases[-1].start:
            phases.pop()
        last, entered = phases[-1], next((p for p in reversed(phases) if p.kind != "hold"), phases[-1])
        if entered.kind == self.schedule == "constant":
            return [*phases[:-1], *self._phases_from(last.start, step, total_steps)]
        if entered.kind != ("cooldown" if self.cooldown_steps else self.schedule):
            return [*phases, *self._phases_from(step, step, total_steps)]
        if last.end == total_steps and (last.kind != "cooldown" or last.end - last.start == self.cooldown_steps):
            return phases
        if self.longer is None:
            key, value = "trainer.max_steps", total_steps
            problem = f"the learning rate was to reach 0 at step {entered.end}"
            if entered.kind == "cooldown":
                problem = f"the cooldown began at step {entered.start}"
                if last.end == total_steps:
                    key, value = "model.optimization.cooldown_steps", self.cooldown_steps
            raise InputError(key, value, problem, "add --model.optimization.longer restart (or constant_at_end)")
        if self.longer == "constant_at_end":
            return [*phases, Phase(step, total_steps, "hold")]
        return [*phases, *self._phases_from(step, step, total_steps)]

    def factor(self, step: int, phases: Sequence[Phase]) -> float:
        """Share of the learning rate at an optimizer step, counted from 0."""
        index = max(k for k, phase in enumerate(phases) if k == 0 or phase.start <= step)
        start, end, kind = phases[index]
        if kind == "hold":
            return self.factor(start - 1, phases[:index])
        warm = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        gone = min((step - start) / (end - start), 1.0) if end > start else 1.0
        if kind == "cosine":
            return warm * 0.5 * (1 + math.cos(math.pi * gone))
        return warm * (1.0 if kind == "constant" else self.cooldown_to or 1 - gone)

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

    @property
    def half_life(self) -> int:
        """Of the evaluated average, in steps; 0 for raw weights."""
        return 0 if self.evaluated == RAW else int(self.evaluated.removeprefix("ema_"))


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
