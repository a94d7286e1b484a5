"""Open what is under audit: a study, a stage, a pipeline of others, or images, as the path says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from cdmem.audit.distillation_curve import Copies, distillation_record, spent_error
from cdmem.audit.generators import Generator, student_generators, study_generators, teacher_generators, with_teacher
from cdmem.audit.given_images import open_images
from cdmem.audit.reference_sets import AS_STORED
from cdmem.audit.settings import AuditSettings
from cdmem.audit.teachers import find_teacher, with_weights
from cdmem.data.pixels import PixelOptions
from cdmem.data.subset import UNRECORDED, TrainingSet
from cdmem.errors import InputError
from cdmem.metrics.neighbors.tolerant import tolerant_search
from cdmem.models.load import is_foreign, is_model_folder, is_pipeline_of_others, load_model, load_record, load_trained
from cdmem.models.other_projects import refuse_other_project
from cdmem.models.pipelines import CONSISTENCY, load_pipeline, only_a_teacher
from cdmem.run.folder import CONFIG, RunFolder
from cdmem.training.record import RECORDED
from cdmem.training.teacher import DiffusionTeacher


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
    return open_images(path, training_set, teacher, options)


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
