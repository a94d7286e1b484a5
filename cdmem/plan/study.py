"""A whole study: its stages, the teacher's network shared, and its audit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cdmem.errors import InputError
from cdmem.plan.build import Machine, build_stage
from cdmem.plan.stage import Stage, StagePlan
from cdmem.plan.work import Work, inside
from cdmem.study.config import StudyConfig, stage_arguments
from cdmem.training.student import ConsistencyStudent
from cdmem.training.teacher import DiffusionTeacher


@dataclass(frozen=True)
class AuditPlan:
    """What the audit costs; it runs in one process, on one device.

    Attributes:
        samples: of every model.
        evaluations: images times network evaluations, and backward passes to the image.
        work: by model.
        machine: one device of the kind that the teacher trains on.
    """

    samples: int
    evaluations: int
    work: list[Work]
    machine: Machine


def plan_study(config: StudyConfig, devices: int | None = None) -> tuple[list[StagePlan], AuditPlan]:
    """Every stage and the audit.

    Args:
        config: from `cdmem.study.config.read_study`.
        devices: replaces those of the stages.

    Raises:
        InputError: whatever the study itself would refuse before it reads data, and stages of different data.
    """
    stages: dict[str, Stage] = {}
    for name in config.stages:
        teacher = stages.get("teacher")
        cli = build_stage(stage_arguments(config, name))
        if isinstance(cli.model, DiffusionTeacher) != (teacher is None):
            wanted = "DiffusionTeacher" if teacher is None else "ConsistencyStudent"
            raise InputError(name, type(cli.model).__name__, "has the wrong part in a study", f"use {wanted}")
        stages[name] = Stage(name, cli, teacher, devices)
        if stages[name].facts != stages["teacher"].facts:
            mend = "share one data file between stages"
            raise InputError(f"{name}.data", "...", "differs from the teacher's training set", mend)
    return [stage.plan() for stage in stages.values()], _audit(config, stages)


def _audit(config: StudyConfig, stages: dict[str, Stage]) -> AuditPlan:
    a, teacher = config.audit, stages["teacher"]
    mids: set[tuple[float, ...]] = set()
    nfes: dict[str, Sequence[int]] = {"teacher": [teacher.model.sampler().nfe]}
    for name, stage in stages.items():
        if isinstance(stage.model, ConsistencyStudent):
            nfes[name] = a.nfe or stage.model.default_nfe
            mids |= {tuple(stage.model.sampler(nfe).mid_sigmas) for nfe in nfes[name]}
    # The teacher by Euler steps at every student's own levels: one evaluation a level.
    nfes["teacher"] = [*nfes["teacher"], *(1 + len(m) for m in mids)]
    flops = {name: a.samples * sum(nfes[name]) * stage.forward for name, stage in stages.items()}
    passes = sum(a.samples * sum(nfe) for nfe in nfes.values())
    for name, stage in stages.items() if "inside" in a.metrics else ():
        looked = inside(stage.model, stage.facts, a.samples)
        flops[name] += looked.model * stage.forward + looked.products * stage.product
        flops["teacher"] += looked.teacher * teacher.forward
        passes += looked.model + looked.teacher + looked.products
    machine = Machine(1, teacher.machine.accelerator, "32-true")
    return AuditPlan(a.samples, passes, [Work(name, f) for name, f in flops.items()], machine)
