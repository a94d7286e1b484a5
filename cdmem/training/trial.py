"""What cannot work is found before training: a model is asked, once, for what its run will ask of it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

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
    own = {key: own_code.class_path(part) for key, part in parts.items() if own_code.is_own(part)}
    if not own:
        return
    x0 = to_float(training_set.images[:IMAGES])
    for key in own.keys() & distances.keys():
        _one_a_sample(key, own[key], "distance", _given(key, own[key], distances[key], x0, x0.flip(0)), len(x0))
    key, name = next(iter(own.items()))
    labels = training_set.labels[:IMAGES] if student.num_classes else None
    at = Progress(0, total_steps, student.sigma_min, student.sigma_max, tuple(student.mid_sigmas))
    noise = StepNoise(student.training_seed, 0, len(x0))
    online = copy.deepcopy(student.raw).eval()  # what counts its calls is left alone
    functions = StudentFunctions(online, copy.deepcopy(online) if method.keeps_target else online)
    seen = _given(key, name, method.teacher_part, student.teacher_denoiser, CleanBatch(x0, labels), noise, at)
    loss = _given(key, name, method.loss, functions, seen, noise)
    _one_a_sample(key, name, "loss", loss, len(x0))
    if not loss.requires_grad:
        raise InputError(key, name, "its loss does not depend on the student", "call student.online in it")


def _given(key: str, name: str, function: Callable[..., Any], *args: Any) -> Any:
    """What code of the user's own returns."""
    try:
        return function(*args)
    except InputError:
        raise
    except Exception as error:
        problem = f"gives no loss ({own_code.reason(error)})"
        raise InputError(key, name, problem, "see CONTRIBUTING.md, a distillation method") from None


def _one_a_sample(key: str, name: str, what: str, value: object, count: int) -> None:
    if not isinstance(value, Tensor) or value.shape != torch.Size([count]):
        given = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise InputError(key, name, f"its {what} of {count} images is {given}", "return one number a sample, (B,)")
