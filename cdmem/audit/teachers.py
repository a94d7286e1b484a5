"""The teacher of a student under audit: the one that is named, or one that has the weights it was distilled from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cdmem.errors import InputError
from cdmem.models.load import is_foreign, load_model
from cdmem.training.checkpoint import weights_digest
from cdmem.training.module import DiffusionModule
from cdmem.training.record import ModelRecord
from cdmem.training.teacher import DiffusionTeacher


def with_weights(module: DiffusionModule, weights: str | None) -> DiffusionModule:
    """The model with the named weights chosen; None leaves its own choice."""
    if weights is not None:
        module.select_weights(weights)
    return module


def weights_by_digest(teacher: DiffusionTeacher) -> dict[str, str]:
    """Names of all weights that a teacher's file holds, by their digest."""
    # Young averages can be equal: the checkpoint's own choice comes last and names them.
    return {weights_digest(teacher.function(w).network): w for w in ("raw", *teacher.ema.names(), teacher.weights)}


def find_teacher(
    path: str | None,
    record: ModelRecord,
    places: Sequence[str | Path] = (),
    parameterization: str | None = None,
) -> tuple[DiffusionTeacher | None, list[str]]:
    """The teacher of a student: the one named, or one found that has the very weights it was distilled from.

    Args:
        path: what the user named, or None.
        record: the student's own.
        places: where to look without ``path``, besides the place that the record names.
        parameterization: of a network without a scheduler.

    Returns:
        the teacher or None, and why what lies at those places cannot be read.

    Raises:
        InputError: a named teacher that is not the one the student was distilled from.
    """
    if path is not None:
        module = _teacher_at(path, record, parameterization)
        if module is None:
            raise InputError("teacher", path, "is not the teacher this student was distilled from", "give that teacher")
        return module, []
    named = [record.teacher] if record.teacher and not record.teacher.startswith("analytic:") else []
    refusals = []
    for place in (place for place in (*places, *named) if Path(place).exists()):
        try:
            module = _teacher_at(place, record, parameterization)
        except InputError as error:  # nobody asked for this one
            refusals.append(str(error))
            continue
        if module is not None:
            return module, []
    return None, refusals


def _teacher_at(path: str | Path, record: ModelRecord, parameterization: str | None = None) -> DiffusionTeacher | None:
    """The teacher at a place, with the weights that were distilled; None if it has not got them."""
    module = load_model(path, "teacher", parameterization if is_foreign(path) else None)
    if not isinstance(module, DiffusionTeacher):
        raise InputError("teacher", path, f"is a {module.role}", "give the teacher's checkpoint")
    digest, known = record.teacher_digest, weights_by_digest(module)
    return None if digest and digest not in known else with_weights(module, known.get(digest or ""))
