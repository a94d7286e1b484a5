"""Generators under audit, made from cdmem's own checkpoints: a stage, or the stages of a whole study."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from cdmem.errors import InputError
from cdmem.models.load import load_model
from cdmem.training.checkpoint import weights_digest
from cdmem.training.record import RECORDED, ModelRecord
from cdmem.training.student import Student
from cdmem.training.teacher import DiffusionTeacher

if TYPE_CHECKING:
    from cdmem.training.module import DiffusionModule


class Sampler(Protocol):
    """Seed -> image: ``nfe`` network evaluations each; float images (B, C, H, W) in [-1, 1], not clamped."""

    nfe: int

    def __call__(self, seeds: Sequence[int], device: torch.device | str = "cpu") -> Tensor: ...


@dataclass(frozen=True)
class Subject:
    """A generator under audit.

    Attributes:
        name: ``teacher``, ``student`` or the name of one of several students.
        role: ``teacher``, ``student``, ``generator`` (somebody else's) or ``images`` (made elsewhere).
        method: how it samples: ``heun``, ``euler``, ``consistency``, a diffusers scheduler, or ``given``.
        sampler: seed -> image.
        weights: ``raw``, ``ema_<half-life>`` or where they come from.
        step: optimizer steps of the checkpoint, or None.
        digest: of the weights, or of the images.
        module: the model itself, for metrics that look inside, or None.
    """

    name: str
    role: str
    method: str
    sampler: Sampler
    weights: str
    step: int | None
    digest: str = ""
    module: DiffusionModule | None = None

    @property
    def file_stem(self) -> str:
        return f"{self.name}_{self.method}_nfe={self.sampler.nfe}"


@dataclass
class GivenImages:
    """A sampler over images that exist: seed k is image k.

    Args:
        images: uint8 (m, C, H, W).
    """

    images: Tensor
    nfe: int = 0

    def __call__(self, seeds: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
        """The images themselves, uint8, so that no rounding touches them."""
        return self.images[list(seeds)].to(device)


def _digest(module: DiffusionModule) -> str:
    return weights_digest(module.function().network)


def _weights(module: DiffusionModule, weights: str | None) -> DiffusionModule:
    if weights is not None:
        module.select_weights(weights)
    return module


def teacher_subjects(module: DiffusionTeacher, nfe: Sequence[int] | None = None) -> list[Subject]:
    """The teacher at full cost, and at each further ``nfe``."""
    about = (module.weights, module.record.step, _digest(module), module)
    found = [Subject("teacher", "teacher", module.sampling.solver, module.sampler(), *about)]
    for k in nfe or ():
        sampler = module.sampler(k)
        if sampler.nfe != found[0].sampler.nfe:
            found.append(Subject("teacher", "teacher", module.sampling.solver, sampler, *about))
    return found


def student_subjects(name: str, module: Student, nfe: Sequence[int] | None = None) -> list[Subject]:
    """The student at every NFE asked for; all that its ``mid_sigmas`` allow without ``nfe``."""
    about = (module.weights, module.record.step, _digest(module), module)
    return [Subject(name, "student", "consistency", module.sampler(k), *about) for k in nfe or module.default_nfe]


def with_teacher(teacher: DiffusionTeacher, students: Sequence[Subject]) -> list[Subject]:
    """The teacher at full cost, the teacher by Euler steps at the students' own levels, then the students."""
    full = teacher_subjects(teacher)
    cheap: dict[tuple[float, ...], Subject] = {}
    for s in students:
        mids = tuple(s.sampler.mid_sigmas)  # type: ignore[attr-defined]
        if mids not in cheap:
            euler = teacher.few_step_sampler(mids)
            cheap[mids] = Subject(
                "teacher", "teacher", "euler", euler, full[0].weights, full[0].step, full[0].digest, teacher
            )
    return [*full, *cheap.values(), *students]


def study_subjects(
    folder: str | Path, students: Sequence[str], nfe: Sequence[int] | None, device: str, weights: str | None = None
) -> list[Subject]:
    """Everything that a study's folder holds: see :func:`with_teacher`."""
    teacher = load_model(f"{folder}/teacher")
    if not isinstance(teacher, DiffusionTeacher):
        raise InputError("generator", f"{folder}/teacher", f"is a {teacher.role}", "give the folder of a whole study")
    teacher.to(device)
    known, used = _weights_by_digest(teacher), set()
    found: list[Subject] = []
    for name in students:
        place = f"{folder}/{name}"
        student = _weights(load_model(place), weights)
        if not isinstance(student, Student):
            raise InputError("generator", place, f"is a {student.role}", "give the folder of a whole study")
        digest = student.record.teacher_digest
        if digest:
            # A pair of strangers would make numbers that look like a transfer.
            if digest not in known:
                problem = "was distilled from another teacher than the one beside it"
                raise InputError("generator", place, problem, "audit the student alone, with --teacher PATH")
            used.add(known[digest])
        student.to(device)
        found += student_subjects(name, student, nfe)
    if len(used) > 1:
        problem = f"its students were distilled from different weights of the teacher: {', '.join(sorted(used))}"
        raise InputError("generator", folder, problem, "audit one student's folder at a time")
    # The reference is what was distilled; another choice of weights is for the students.
    return with_teacher(_weights(teacher, next(iter(used), weights)), found)


def _weights_by_digest(teacher: DiffusionTeacher) -> dict[str, str]:
    # Young averages can be equal: the checkpoint's own choice comes last and names them.
    return {weights_digest(teacher.function(w).network): w for w in ("raw", *teacher.ema.names(), teacher.weights)}


def find_teacher(path: str | None, record: ModelRecord, places: Sequence[str | Path] = ()) -> DiffusionTeacher | None:
    """The teacher of a student: the one named, or one found that has the very weights it was distilled from.

    Args:
        path: what the user named, or None.
        record: the student's own.
        places: where to look without ``path``, besides the place that the record names.

    Raises:
        InputError: a named teacher that is not the one the student was distilled from.
    """
    if path is not None:
        module = _teacher_at(path, record)
        if module is None:
            raise InputError("teacher", path, "is not the teacher this student was distilled from", "give that teacher")
        return module
    named = record.teacher
    for place in [*places, *([] if named is None or named.startswith("analytic:") else [named])]:
        try:
            module = _teacher_at(place, record)
        except InputError:
            continue  # nobody asked for this one
        if module is not None:
            return module
    return None


def _teacher_at(path: str | Path, record: ModelRecord) -> DiffusionTeacher | None:
    """The teacher at a place, with the weights that were distilled; None if it has not got them."""
    module = load_model(path, key="teacher")
    if not isinstance(module, DiffusionTeacher):
        raise InputError("teacher", path, f"is a {module.role}", "give the teacher's checkpoint")
    digest, known = record.teacher_digest, _weights_by_digest(module)
    if digest and digest not in known:
        return None
    return _weights(module, known.get(digest or ""))


def stage_subjects(
    path: str | Path, nfe: Sequence[int] | None, device: str, weights: str | None, teacher: str | None
) -> tuple[list[Subject], list[str]]:
    """A single checkpoint or stage folder: a teacher, or a student beside its teacher where that is found.

    Returns:
        the subjects, and notes for people.
    """
    module = _weights(load_model(path, "generator"), weights)
    module.to(device)
    if isinstance(module, DiffusionTeacher):
        return teacher_subjects(module, nfe), []
    students = student_subjects("student", module, nfe)
    # In a study's folder the teacher lies beside the student, wherever the folder was moved.
    stage = Path(path) if Path(path).is_dir() else Path(path).resolve().parent.parent
    status = module.record.training_set_status
    notes = []
    if status != RECORDED:
        notes.append(f"the training set of the student's teacher is {status}, not recorded by who trained it")
    found = find_teacher(teacher, module.record, [stage.parent / "teacher"])
    if found is None:
        return students, [*notes, "the student's teacher was not found: no paired comparison (give --teacher PATH)"]
    found.to(device)
    return with_teacher(found, students), notes
