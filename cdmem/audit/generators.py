"""Generators under audit: what maps seeds to images, of a teacher, its students and what stands beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from cdmem.audit.teachers import weights_by_digest, with_weights
from cdmem.errors import InputError
from cdmem.models.load import load_model, load_trained
from cdmem.training.checkpoint import weights_digest
from cdmem.training.ladder import read_rungs
from cdmem.training.student import Student
from cdmem.training.teacher import DiffusionTeacher

if TYPE_CHECKING:
    from cdmem.training.module import DiffusionModule


class Sampler(Protocol):
    """Seed -> image of ``shape``: ``nfe`` network evaluations each; float (B, C, H, W) in [-1, 1], not clamped."""

    nfe: int
    shape: tuple[int, ...]

    def __call__(self, seeds: Sequence[int], device: torch.device | str = "cpu") -> Tensor: ...


@dataclass(frozen=True)
class Generator:
    """A generator under audit.

    Attributes:
        name: ``teacher``, ``student`` or the name of one of several students, or ``ceiling of`` one.
        role: ``teacher``, ``teacher_ladder`` (the teacher stopped early, :mod:`cdmem.training.ladder`), ``student``,
            ``ceiling`` (of a student, :mod:`cdmem.distillation.ceiling`), ``generator`` (somebody else's) or ``images``
            (made elsewhere).
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


def _about(module: DiffusionModule) -> tuple[str, int | None, str, DiffusionModule]:
    """Weights, step, digest and the module: the end of its generators' fields."""
    return module.weights, module.record.step, weights_digest(module.function().network), module


def teacher_generators(module: DiffusionTeacher, nfe: Sequence[int] | None = None) -> list[Generator]:
    """The teacher at full cost, and at each further ``nfe``."""
    full = Generator("teacher", "teacher", module.sampling.solver, module.sampler(), *_about(module))
    further = [replace(full, sampler=module.sampler(k)) for k in nfe or ()]
    return [full, *(g for g in further if g.sampler.nfe != full.sampler.nfe)]


def student_generators(name: str, module: Student, nfe: Sequence[int] | None = None) -> list[Generator]:
    """The student at every NFE asked for; all that its ``mid_sigmas`` allow without ``nfe``."""
    about = _about(module)
    return [Generator(name, "student", "consistency", module.sampler(k), *about) for k in nfe or module.default_nfe]


def ceiling_generators(teacher: DiffusionTeacher, students: Sequence[Generator]) -> list[Generator]:
    """Of every student with a ceiling, at every NFE: what it would give if it had learned its recipe perfectly."""
    weights, step, digest, _ = _about(teacher)
    found = []
    for g in students:
        sampler = g.module.ceiling(teacher.function(), g.sampler.nfe) if isinstance(g.module, Student) else None
        if sampler is not None:
            method = sampler.consistency.solver
            found.append(Generator(f"ceiling of {g.name}", "ceiling", method, sampler, weights, step, digest))
    return found


def ladder_generators(folder: str | Path, device: torch.device | str) -> list[Generator]:
    """The teacher of a study at every step of the ladder that its run kept, if it did, by its full sampler."""
    found = []
    for file in read_rungs(Path(folder) / "teacher/checkpoints"):
        module = load_trained(str(file), "generator")
        module.to(device)
        (full,) = teacher_generators(module)
        found.append(replace(full, name=f"teacher at step {full.step}", role="teacher_ladder", module=None))
    return found


def with_teacher(teacher: DiffusionTeacher, students: Sequence[Generator]) -> list[Generator]:
    """The teacher at full cost and by Euler steps at the students' own levels, the students, and their ceilings."""
    (full,) = teacher_generators(teacher)
    levels = dict.fromkeys(tuple(s.sampler.mid_sigmas) for s in students)  # type: ignore[attr-defined]
    # A student from elsewhere may start above its teacher: then those steps do not exist.
    levels = [mids for mids in levels if not mids or mids[0] < teacher.sigma_max]
    cheap = [replace(full, method="euler", sampler=teacher.few_step_sampler(mids)) for mids in levels]
    return [full, *cheap, *students, *ceiling_generators(teacher, students)]


def study_generators(
    folder: str | Path,
    students: Sequence[str],
    nfe: Sequence[int] | None,
    device: torch.device | str,
    weights: str | None = None,
) -> list[Generator]:
    """Everything that a study's folder holds: see :func:`with_teacher`."""
    teacher = load_model(f"{folder}/teacher")
    if not isinstance(teacher, DiffusionTeacher):
        raise InputError("generator", f"{folder}/teacher", f"is a {teacher.role}", "give the folder of a whole study")
    teacher.to(device)
    known, used = weights_by_digest(teacher), set()
    audited: list[Generator] = []
    for name in students:
        place = f"{folder}/{name}"
        student = with_weights(load_model(place), weights)
        if not isinstance(student, Student):
            raise InputError("generator", place, f"is a {student.role}", "give the folder of a whole study")
        digest = student.record.teacher_digest
        if digest:
            # A pair that does not belong together makes numbers that look like a transfer.
            if digest not in known:
                problem = "was distilled from another teacher than the one beside it"
                raise InputError("generator", place, problem, "audit the student alone, with --teacher PATH")
            used.add(known[digest])
        student.to(device)
        audited += student_generators(name, student, nfe)
    if len(used) > 1:
        problem = f"its students were distilled from different weights of the teacher: {', '.join(sorted(used))}"
        raise InputError("generator", folder, problem, "audit one student's folder at a time")
    # The reference is what was distilled; another choice of weights is for the students.
    made = with_teacher(with_weights(teacher, next(iter(used), weights)), audited)
    return [*made, *ladder_generators(folder, device)]
