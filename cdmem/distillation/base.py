"""What a distillation method is: how a student learns from a frozen teacher, or (control) from the images alone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from cdmem.diffusion.losses import Distance
from cdmem.diffusion.preconditioning import ConsistencyFunction, Denoiser, DenoiserLike
from cdmem.diffusion.step_noise import StepNoise
from cdmem.errors import InputError

SolverName = Literal["heun", "euler"]
Weighting = Literal["uniform", "inverse_gap"]


@dataclass(frozen=True)
class Progress:
    """Where the distillation stands.

    Attributes:
        step: optimizer steps taken.
        total_steps: of the whole run.
        sigma_min: the student's smallest noise level.
        sigma_max: the noise level that its samples start from.
        mid_sigmas: the noise levels of its second, third, ... sampling step.
    """

    step: int
    total_steps: int
    sigma_min: float
    sigma_max: float
    mid_sigmas: tuple[float, ...] = ()


@dataclass(frozen=True)
class CleanBatch:
    """What the distillation sees.

    Attributes:
        x0: images in [-1, 1], (B, C, H, W).
        labels: classes (B,), or None for an unconditional student.
    """

    x0: Tensor
    labels: Tensor | None


@dataclass(frozen=True)
class StudentFunctions:
    """The student as a loss sees it; both drop the same units in one step.

    Attributes:
        online: the trained function.
        target: the method's copy, or the online function where it keeps none. Call it without gradient.
    """

    online: DenoiserLike
    target: DenoiserLike


class DistillationMethod(ABC):
    """A way to make a student: settings only, so that a config can name it by class path.

    The teacher's half of a step, :meth:`teacher_part`, never sees the student, and can be computed ahead. Random draws
    are made there first, then in :meth:`loss`, from one :class:`~cdmem.diffusion.step_noise.StepNoise`.

    Attributes:
        function: parameterisation of the student; ``ConsistencyFunction`` has f(x, sigma_min) = x.
        needs_teacher: whether :meth:`teacher_part` calls the teacher.
        dropout: probability in the student's network.
    """

    function: ClassVar[type[Denoiser]] = ConsistencyFunction
    needs_teacher: ClassVar[bool] = True
    dropout: float = 0.0

    @property
    def follows_length(self) -> bool:
        """Whether a step depends on the run's length, as in a growing curriculum: such a run cannot be lengthened."""
        return False

    @abstractmethod
    def teacher_part(self, teacher: DenoiserLike | None, batch: CleanBatch, noise: StepNoise, at: Progress) -> Any:
        """Everything of a step that does not depend on the student; tensors on the batch's device."""

    @abstractmethod
    def loss(self, student: StudentFunctions, part: Any, noise: StepNoise) -> Tensor:
        """Per-sample loss (B,) on what :meth:`teacher_part` returned."""

    @property
    def keeps_target(self) -> bool:
        """Whether a copy of the student's network is kept beside it, moved by :meth:`update_target`."""
        return False

    def update_target(self, target: nn.Module, network: nn.Module, at: Progress) -> None:  # noqa: B027
        """Move the copy after an optimizer step; ``at.step`` counts that step."""

    def grid_points(self) -> int:
        """Points of the Karras grid at the end of the distillation, and of a pipeline that samples the student in
        several steps."""
        return 18

    @property
    def ode_solver(self) -> SolverName | None:
        """Solver of the teacher's ODE that the student aims at, on :meth:`grid_points` points; None where it aims at
        something else, and so has no :mod:`ceiling <cdmem.distillation.ceiling>`."""
        return None

    def group(self, at: Progress) -> int:
        """How many consecutive images of a batch share what the teacher does; 1: each image has its own."""
        return 1


def check_method(points: int, distance: object, dropout: float) -> None:
    """Refuse settings that no method can work with.

    Raises:
        InputError: naming the first.
    """
    key = "model.method"
    if points < 2:
        raise InputError(f"{key}.points", points, "a grid needs at least 2 points", "18 is usual")
    if not isinstance(distance, Distance):  # the parser passes a bare class path on as text
        hint = "write {class_path: cdmem.diffusion.L2}, or the path of a Distance of yours"
        raise InputError(f"{key}.distance", distance, "is no distance", hint)
    if not 0 <= dropout < 1:
        raise InputError(f"{key}.dropout", dropout, "must be in [0, 1)", "0 is usual")
