"""Generators under audit: a study, a stage, a diffusers pipeline, or images that exist."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from cdmem.audit.distillation_curve import Copies, distillation_record, spent_error
from cdmem.audit.reference_sets import AS_STORED, read_images, read_seeds
from cdmem.audit.settings import AuditSettings
from cdmem.audit.teachers import find_teacher, weights_by_digest, with_weights
from cdmem.data.pixels import PixelOptions
from cdmem.data.subset import UNRECORDED, TrainingSet
from cdmem.errors import InputError
from cdmem.metrics.neighbors.tolerant import tolerant_search
from cdmem.models.load import is_foreign, is_model_folder, is_pipeline_of_others, load_model, load_record, load_trained
from cdmem.models.other_projects import refuse_other_project
from cdmem.models.pipelines import CONSISTENCY, load_pipeline, only_a_teacher
from cdmem.run.folder import CONFIG, RunFolder
from cdmem.training.checkpoint import weights_digest
from cdmem.training.ladder import read_rungs
from cdmem.training.record import RECORDED
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


@dataclass
class GivenImages:
    """A sampler over images that exist.

    Attributes:
        images: uint8 (m, C, H, W).
        seeds: that they were made from; their numbers where nobody says.
    """

    images: Tensor
    seeds: list[int]
    nfe: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W)."""
        return tuple(self.images.shape[1:])

    def __call__(self, seeds: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
        """The images themselves, uint8, so that no rounding touches them."""
        place = {seed: k for k, seed in enumerate(self.seeds)}
        return self.images[[place[seed] for seed in seeds]].to(device)


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


def stage_generators(
    path: str | Path,
    nfe: Sequence[int] | None,
    device: torch.device | str,
    weights: str | None,
    teacher: str | None,
    parameterization: str | None = None,
) -> tuple[list[Generator], list[str]]:
    """A single checkpoint or stage folder: a teacher, or a student beside its teacher where that is found.

    ``parameterization`` is of the teacher, or of the model itself if it is one.

    Returns:
        the generators, and notes for people.
    """
    own = parameterization if is_foreign(path) else None
    module = with_weights(load_model(path, "generator", own), weights)
    module.to(device)
    if isinstance(module, DiffusionTeacher):
        if parameterization is not None and own is None:
            _refuse_needless("a model that says it itself", parameterization=parameterization)
        return teacher_generators(module, nfe), []
    students = student_generators("student", module, nfe)
    # In a study's folder the teacher lies beside the student, wherever the folder was moved.
    stage = Path(path) if Path(path).is_dir() else Path(path).resolve().parent.parent
    status = module.record.training_set_status
    note = f"the training set of the student's teacher is {status}, not recorded by who trained it"
    notes = [] if status == RECORDED else [note]
    original, refusals = find_teacher(teacher, module.record, [stage.parent / "teacher"], parameterization)
    if original is None:
        why = f" ({refusals[0]})" if refusals else " (give --teacher PATH)"
        return students, [*notes, f"the student's teacher was not found: no paired comparison{why}"]
    original.to(device)
    return with_teacher(original, students), notes


def open_generators(
    path: str | Path,
    training_set: TrainingSet,
    settings: AuditSettings,
    weights: str | None = None,
    teacher: str | None = None,
    options: PixelOptions = AS_STORED,
    parameterization: str | None = None,
) -> tuple[list[Generator], dict[str, Any], list[str]]:
    """Everything to audit at a path: a checkpoint, a run or study folder, a pipeline folder, images.

    Args:
        path: what the user named.
        training_set: that the audit is against.
        settings: number of evaluations, device, threshold.
        weights: ``raw`` or ``ema_<half-life>``; None is the checkpoint's choice.
        teacher: of a lone student; None looks for it.
        options: what is done to images that exist.
        parameterization: of a network without a scheduler, see :func:`~cdmem.models.load.load_model`.

    Returns:
        the generators, by student the record of its distillation, and notes for people.

    Raises:
        InputError: nothing usable there, an option that it would ignore, or images of another shape than those of T.
    """
    opened = _open(Path(path).expanduser(), training_set, settings, weights, teacher, options, parameterization)
    # Teachers last: one that fits its student is not to blame.
    for g in sorted(opened[0], key=lambda g: g.role == "teacher"):
        if tuple(g.sampler.shape) != tuple(training_set.shape):
            key, value = ("teacher", teacher) if g.role == "teacher" and teacher else ("generator", path)
            problem = f"makes images of shape {list(g.sampler.shape)}, T has {list(training_set.shape)}"
            raise InputError(key, value, problem, "give the training set of this generator")
    return opened


def _open(
    path: Path,
    training_set: TrainingSet,
    settings: AuditSettings,
    weights: str | None,
    teacher: str | None,
    options: PixelOptions,
    parameterization: str | None,
) -> tuple[list[Generator], dict[str, Any], list[str]]:
    if not path.exists():
        raise InputError("generator", path, "no such file or folder", "give a checkpoint, run, pipeline or images")
    refuse_other_project(path, "generator")
    if is_pipeline_of_others(path) and not only_a_teacher(path):
        _refuse_needless("a pipeline", weights=weights, parameterization=parameterization)
        return _open_pipeline(path, training_set, settings, teacher)
    if (path / "teacher/checkpoints/last.ckpt").is_file():
        _refuse_needless("a study, which has its own teacher", teacher=teacher, parameterization=parameterization)
        students = students_of(path)
        generators = study_generators(path, students, settings.nfe, settings.torch_device, weights)
        notes = _training_set_notes(generators, training_set)
        folders = {name: path / name for name in students}
        return (
            generators,
            {} if notes else _records(generators, copies_of(settings, training_set), weights, folders),
            notes,
        )
    stage = (path / "checkpoints").is_dir() or (path / "last.ckpt").is_file()
    if path.suffix == ".ckpt" or stage or is_model_folder(path):
        return _open_stage(path, training_set, settings, weights, teacher, parameterization)
    _refuse_needless("images, made already", nfe=settings.nfe, weights=weights, parameterization=parameterization)
    return _open_images(path, training_set, teacher, options)


def _open_images(
    path: Path, training_set: TrainingSet, teacher: str | None, options: PixelOptions
) -> tuple[list[Generator], dict[str, Any], list[str]]:
    """Images that exist, alone or beside the images of their teacher: by their seeds, or row by row."""
    notes: list[str] = []
    unknown = "images of unknown training: convergence is unknown"
    given = _given_images(path, "generator", training_set, options, notes)
    if teacher is None:
        return [given], {}, [*notes, unknown]
    original = _given_images(Path(teacher).expanduser(), "teacher", training_set, options, notes)
    ours, theirs = (g.sampler.seeds for g in (given, original))  # type: ignore[attr-defined]
    if len(ours) != len(theirs):
        problem = f"holds {len(theirs)} images, the generator {len(ours)}"
        raise InputError("teacher", teacher, problem, "give one image of each for every seed")
    if set(ours) != set(theirs):
        other = min(set(theirs) - set(ours))
        problem = f"is of other seeds than the generator (such as {other})"
        raise InputError(
            "teacher", teacher, problem, "make both from the same seeds, or leave `seeds` out of both files"
        )
    pair = [replace(original, name="teacher", role="teacher"), replace(given, name="student", role="student")]
    return pair, {}, [*notes, unknown]


def _open_pipeline(
    path: Path, training_set: TrainingSet, settings: AuditSettings, teacher: str | None
) -> tuple[list[Generator], dict[str, Any], list[str]]:
    """A pipeline of others by its own scheduler; a consistency model is paired with the teacher that is named.

    Both start every seed from the same noise and draw its class from the same stream.
    """
    samplers, method, digest = load_pipeline(path, settings.nfe)
    said = [f"{path}: {note}" for note in samplers[0].notes]
    made = [Generator(path.name, "generator", method, s, "pipeline", None, digest) for s in samplers]
    if teacher is None:
        return made, {}, said
    if method != CONSISTENCY:
        problem = f"the generator samples by {method}: it is no student, and nothing pairs it with a teacher"
        raise InputError("teacher", teacher, problem, "leave --teacher out")
    original = load_trained(teacher, "teacher")
    if original.num_classes != samplers[0].num_classes:
        problem = f"has {original.num_classes} classes, the generator {samplers[0].num_classes}"
        raise InputError("teacher", teacher, problem, "give the teacher it was distilled from")
    original.to(settings.torch_device)
    generators = with_teacher(original, [replace(g, role="student") for g in made])
    notes = [*said, "the folder does not record its teacher: the one that --teacher names is taken for it"]
    notes.append("no evaluations along the distillation: convergence is unknown")
    start = float(samplers[0].scheduler.init_noise_sigma)
    if start != original.sigma_max:
        notes.append(f"the generator starts at sigma {start:g}, the teacher at {original.sigma_max:g}, from one noise")
    if "inside" in settings.metrics:
        notes.append("the white-box part (inside) is of the teacher alone: the pipeline's network is not looked into")
    return generators, {}, notes + _training_set_notes(generators[:1], training_set)


def students_of(folder: Path) -> list[str]:
    """Names of a study's students: the stages beside its teacher."""
    names = (file.parent.parent.name for file in folder.glob("*/checkpoints/last.ckpt"))
    return sorted(name for name in names if name != "teacher")


def _open_stage(
    path: Path,
    training_set: TrainingSet,
    settings: AuditSettings,
    weights: str | None,
    teacher: str | None,
    said: str | None = None,
) -> tuple[list[Generator], dict[str, Any], list[str]]:
    generators, notes = stage_generators(path, settings.nfe, settings.torch_device, weights, teacher, said)
    other = _training_set_notes(generators, training_set)
    folder, records = path if path.is_dir() else path.parent.parent, {}
    if _has_student(generators) and not other:
        if (folder / CONFIG).is_file() and (folder / "evaluations").is_dir():
            records = _records(generators, copies_of(settings, training_set), weights, {"student": folder})
        else:
            notes.append("no evaluations along the distillation: convergence is unknown")
    return generators, records, notes + other


def _given_images(
    path: Path, key: str, training_set: TrainingSet, options: PixelOptions, notes: list[str]
) -> Generator:
    if not path.exists():
        raise InputError(key, path, "no such file or folder", "give images: a folder or an .npz")
    images = read_images(path, key, options, notes, training_set.shape)
    if len(images) < 2:
        raise InputError(key, path, f"holds {len(images)} image", "an audit needs at least 2")
    digest = hashlib.sha256(images.numpy().tobytes()).hexdigest()
    sampler = GivenImages(images, read_seeds(path, key, len(images)))
    return Generator("images", "images", "given", sampler, "given", None, digest)


def _training_set_notes(generators: Sequence[Generator], training_set: TrainingSet) -> list[str]:
    """A note where the last model was trained on another set: then its evaluations were of that set as well."""
    known = [g.module for g in generators if g.module is not None][-1].record.training_set
    if known == training_set.hash:
        return []
    if known == UNRECORDED:
        return ["the model does not record what it was trained on"]
    note = f"the checkpoint names another training set ({known[:12]}) than the one audited against"
    return [f"{note}: convergence is unknown" if _has_student(generators) else note]


def _has_student(generators: Sequence[Generator]) -> bool:
    return any(g.role == "student" for g in generators)


def copies_of(settings: AuditSettings, training_set: TrainingSet) -> Copies:
    """What counts as a copy of this training set."""
    return Copies(settings.threshold, tolerant_search(training_set, settings.near_duplicates).threshold)


def _records(
    generators: Sequence[Generator], copies: Copies, weights: str | None, folders: Mapping[str, Path]
) -> dict[str, Any]:
    """What the folders tell of every student's distillation: of the weights and up to the step that are audited."""
    students = {g.name: g for g in generators if g.role == "student"}
    return {
        name: distillation_record(RunFolder(folders[name]), copies, g.step, spent_error(RunFolder(folders[name])))
        for name, g in students.items()
        if not weights or g.weights == load_record(folders[name]).weights
    }


def _refuse_needless(what: str, **given: object) -> None:
    """An option that would be ignored is refused: its user expects another number."""
    for name, value in given.items():
        if value is not None:
            raise InputError(name, value, f"the generator is {what}", f"leave --{name} out")
