"""A trained teacher and its student as maps from noisy to clean images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cdmem.audit.generators import study_generators
from cdmem.audit.opening import students_of
from cdmem.audit.reference_sets import from_record, is_record, load_references
from cdmem.data.subset import UNRECORDED, TrainingSet
from cdmem.diffusion.noise import sampler_sigmas
from cdmem.diffusion.preconditioning import Denoiser
from cdmem.diffusion.sampling import NoiseSource, sample_ode
from cdmem.diffusion.solvers import heun_step
from cdmem.errors import InputError
from cdmem.images import to_float
from cdmem.io.paths import usable_path
from cdmem.models.load import load_model
from cdmem.training.module import DiffusionModule
from cdmem.training.teacher import DiffusionTeacher

BATCH = 256


@dataclass(frozen=True)
class Pair:
    """Teacher, student and T.

    Attributes:
        teacher: D(x; sigma), EMA weights.
        student: f(x; sigma), EMA weights; None if there is none.
        images: T, float (n, C, H, W) in [-1, 1], distinct.
        multiplicities: copies of each (n,).
        labels: (n,) or None.
        sigma_min: smallest noise level above 0.
        sigma_max: largest noise level.
        points: grid points of the teacher's ODE from sigma_max.
        num_classes: 0 without classes.
        mid_sigmas: levels of the student's further steps.
        null_label: the label that means "no class", for guidance; None of a teacher without label dropout.
    """

    teacher: Denoiser
    student: Denoiser | None
    images: Tensor
    multiplicities: Tensor
    labels: Tensor | None
    sigma_min: float
    sigma_max: float
    points: int = 18
    num_classes: int = 0
    mid_sigmas: tuple[float, ...] = ()
    null_label: int | None = None

    def endpoint(self, x: Tensor, sigma: float, labels: Tensor | None) -> Tensor:
        """Where the teacher's ODE leads from x (B, C, H, W) at ``sigma``: what the student was trained to return."""
        grid = sampler_sigmas(self.points, self.sigma_min, sigma)
        return torch.cat([sample_ode(self.teacher, part, grid, heun_step, own) for part, own in _batches(x, labels)])

    @torch.no_grad()
    def jump(self, x: Tensor, sigma: float, labels: Tensor | None) -> Tensor:
        """The student's one step from ``sigma``."""
        assert self.student is not None
        steps = [self.student(part, torch.full((len(part),), sigma), own) for part, own in _batches(x, labels)]
        return torch.cat(steps)

    def start(self, seeds: Sequence[int]) -> tuple[Tensor, Tensor | None]:
        """The noise of audit seeds at sigma_max, and their labels."""
        noise = NoiseSource(seeds, tuple(self.images.shape[1:]), "cpu")
        x = noise.next() * self.sigma_max
        return x, noise.labels(self.num_classes)


def _batches(x: Tensor, labels: Tensor | None) -> Iterator[tuple[Tensor, Tensor | None]]:
    for k in range(0, len(x), BATCH):
        yield x[k : k + BATCH], None if labels is None else labels[k : k + BATCH]


def load_pair(run: str, student: str | None, alone: bool = False) -> tuple[Pair, str | None]:
    """Both models and T from a study's folder.

    Args:
        run: the folder.
        student: a stage's name; None takes the one called student, or the first.
        alone: do with a teacher that has no student.

    Raises:
        InputError: no study there, no such student, or files that cannot be trusted.
    """
    folder = usable_path("run", run)
    if not folder.is_dir():
        raise InputError("run", repr(run), "is no folder", "give the folder of a study, e.g. runs/quickstart")
    if not (folder / "teacher").is_dir() or not is_record(folder):
        raise InputError("run", run, "holds no study (teacher/ and training_set.json)", "give a study's folder")
    names = students_of(folder)
    name = student or ("student" if "student" in names else names[0] if names else None)
    if name not in names and not (name is None and alone):
        there = ", ".join(names) or "none"
        raise InputError("student", name, f"is no student of {run} (there: {there})", "distil one first, or name it")
    first, *others = study_generators(folder, [name] if name else [], None, "cpu")
    assert first.module is not None
    last = next((s for s in reversed(others) if s.role == "student"), None)
    function = last.module.function().eval() if last is not None and last.module is not None else None
    levels = tuple(last.sampler.mid_sigmas) if last is not None else ()  # type: ignore[attr-defined]
    return _pair(first.module, first.sampler, from_record(folder, key="run"), function, levels), name


def load_teacher(path: str, training_set: str | None = None) -> Pair:
    """A teacher without a student, from whatever :func:`~cdmem.models.load.load_model` reads.

    Args:
        path: checkpoint, folder of a stage, or exported folder.
        training_set: what an audit takes for one; None takes the record beside the teacher.

    Raises:
        InputError: no teacher there, no such training set, or another one than it was trained on.
    """
    module = load_model(usable_path("teacher", path), "teacher")
    if not isinstance(module, DiffusionTeacher):
        raise InputError("teacher", path, f"is a {module.role}", "give a teacher's checkpoint or folder")
    near = Path(path) if Path(path).is_dir() else Path(path).resolve().parent.parent
    if training_set is None and not is_record(near):
        raise InputError("training_set", None, f"there is no training_set.json in {near}", "give --training_set")
    training = load_references(training_set or str(near), None, False)[0]
    known = module.record.training_set
    if known not in (UNRECORDED, training.hash):
        problem = f"is not what {path} was trained on ({known[:12]}, not {training.hash[:12]})"
        raise InputError("training_set", training_set or near, problem, "give that one")
    if list(training.shape) != list(module.shape) or module.num_classes not in (0, training.num_classes):
        has = f"has shape {list(training.shape)} and {training.num_classes} classes"
        problem = f"{has}, {path} {list(module.shape)} and {module.num_classes}"
        raise InputError("training_set", training_set or near, problem, "give the teacher's own")
    return _pair(module, module.sampler(), training, None, ())


def _pair(
    teacher: DiffusionModule, sampler: Any, training: TrainingSet, student: Denoiser | None, levels: tuple[float, ...]
) -> Pair:
    """What both have in common; nothing of it can be trained."""
    pair = Pair(
        teacher.function().eval(),
        student,
        to_float(training.images),
        training.multiplicities,
        training.labels if teacher.num_classes else None,
        float(sampler.sigmas[-2]),
        float(sampler.sigmas[0]),
        len(sampler.sigmas) - 1,
        teacher.num_classes,
        levels,
        teacher.num_classes if teacher.record.null_label else None,
    )
    for model in (pair.teacher, pair.student):
        for parameter in model.parameters() if model is not None else ():
            parameter.requires_grad_(False)
    return pair
