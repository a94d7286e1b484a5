"""What cannot work in a study is found before its teacher trains: every student is built and tried at once."""

from __future__ import annotations

import copy
from collections.abc import Mapping

from cdmem.audit.settings import AuditSettings
from cdmem.audit.suite import try_own_metrics
from cdmem.errors import InputError
from cdmem.study.stage import Stage
from cdmem.training.frozen_teacher import FrozenTeacher
from cdmem.training.teacher import DiffusionTeacher
from cdmem.training.trial import try_model


def try_study(stages: Mapping[str, Stage], audit: AuditSettings) -> None:
    """Hand every student the untrained teacher, before hours are spent on it.

    Args:
        stages: the teacher, which is built, and its students.
        audit: what will be measured of them.

    Raises:
        InputError: whatever a stage or the audit would refuse when its turn comes.
    """
    (_, first), *others = stages.items()
    teacher, training_set, place = first.model, first.datamodule.training_set, first.settings.run_dir
    try_own_metrics(audit, training_set)
    try_model(teacher, first.trainer, training_set)
    for name, stage in others:
        if stage.model.teacher_name not in (None, place):
            problem = f"a study distils its own teacher, {place}, and compares with it"
            hint = "leave it out, or distil this one with fit and audit it alone"
            raise InputError(f"{name}.model.teacher", stage.model.teacher_name, problem, hint)
        student = copy.deepcopy(stage.model)  # the real one is built when its teacher is there
        try:
            if place == student.teacher_name:
                student.receive(_untrained(teacher, place, student.teacher_weights))
            student.prepare(training_set)
            try_model(student, stage.trainer, training_set)
        except InputError as error:
            raise InputError(f"{name}.{error.key}", error.value, error.problem, error.hint) from None
        for nfe in audit.nfe or ():
            try:
                student.sampler(nfe)
            except InputError as error:
                raise InputError("audit.nfe", nfe, f"{name}: {error.problem}", error.hint) from None


def _untrained(teacher: DiffusionTeacher, name: str, weights: str | None) -> FrozenTeacher:
    """The teacher as a student would be handed it, not frozen."""
    try:
        return FrozenTeacher(name, teacher.function(weights), teacher.sampler(weights=weights), teacher.record, "")
    except InputError as error:
        raise InputError("model.teacher_weights", weights, error.problem, error.hint) from None
