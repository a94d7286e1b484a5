"""What cannot work is found before training: a model is asked, once, for what its run will ask of it."""

from __future__ import annotations

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from cdmem.data.subset import TrainingSet
from cdmem.diffusion.losses import Distance
from cdmem.diffusion.step_noise import StepNoise
from cdmem.distillation.base import CleanBatch, Progress, StudentFunctions
from cdmem.errors import InputError
from cdmem.images import to_float
from cdmem.io import own_code
from cdmem.training.module import DiffusionModule
from cdmem.training.student import Student

IMAGES = 2


def try_model(model: DiffusionModule, trainer: Trainer, training_set: TrainingSet) -> None:
    """Ask a model that is built for a loss of a method of the user's own, and for every evaluation along training.

    Raises:
        InputError: one that it cannot give.
    """
    if isinstance(model, Student):
        try_method(model, training_set, trainer.max_steps)
    for callback in (c for c in trainer.callbacks if hasattr(c, "planned")):
        try:
            callback.planned(model, training_set)
        except InputError as error:
            raise InputError(f"{type(callback).__name__}.{error.key}", error.value, error.problem, error.hint) from None


def try_method(student: Student, training_set: TrainingSet, total_steps: int) -> None:
    """Ask a method of the user's own for one loss of a student that is built.

    Raises:
        InputError: the class, and how it fails; a loss or distance that is not one number a sample.
    """
    method = student.method
    distances = {f"model.method.{name}": v for name, v in vars(method).items() if isinstance(v, Distance)}
    parts = {"model.method": method, **distances}
    own = {key: part for key, part in parts.items() if not type(part).__module__.startswith("cdmem.")}
    if not own:
        return
    key, part = next(reversed(own.items()))  # the innermost
    name = f"{type(part).__module__}.{type(part).__qualname__}"
    x0 = to_float(training_set.images[:IMAGES])
    labels = training_set.labels[:IMAGES] if student.num_classes else None
    at = Progress(0, total_steps, student.sigma_min, student.sigma_max)
    noise = StepNoise(student.training_seed, 0, len(x0))
    target = student.raw if student.target is None else type(student.raw)(student.target, student.raw.scaling)
    try:
        for distance in distances.values():
            _check(name, key, "distance", distance(x0, x0.flip(0)), len(x0))
        seen = method.teacher_part(student.teacher_denoiser, CleanBatch(x0, labels), noise, at)
        loss = method.loss(StudentFunctions(student.raw, target), seen, noise)
    except InputError:
        raise
    except Exception as error:  # whatever the user's class raises
        problem = f"gives no loss ({own_code.reason(error)})"
        raise InputError(key, name, problem, "see CONTRIBUTING.md, a distillation method") from None
    _check(name, key, "loss", loss, len(x0))
    if not loss.requires_grad:
        raise InputError(key, name, "its loss does not depend on the student", "call student.online in it")


def _check(name: str, key: str, what: str, value: object, count: int) -> None:
    if not isinstance(value, Tensor) or value.shape != torch.Size([count]):
        given = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise InputError(key, name, f"its {what} of {count} images is {given}", "return one number a sample, (B,)")
