"""What a stage or a study costs, counted on the very objects that ``fit`` builds; nothing is read but configs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from cdmem.data.subset import TrainingSet
from cdmem.errors import InputError
from cdmem.models.flops import activations, forward_flops, memory, on_meta, parameters
from cdmem.models.load import load_teacher, load_trained
from cdmem.models.speed import StepCosts, measure, step_costs
from cdmem.study.config import StudyConfig, stage_arguments
from cdmem.study.stage import Stage, build
from cdmem.study.study import check_parts
from cdmem.training.engine import NAMES as PRECISION_NAMES
from cdmem.training.frozen_teacher import ANALYTIC
from cdmem.training.ladder import ladder_steps
from cdmem.training.student import DistillationData, Student
from cdmem.training.teacher import DiffusionTeacher

TERA_HOUR = 1e12 * 3600


@dataclass(frozen=True, kw_only=True)
class PlanSettings:
    """How to plan.

    Attributes:
        devices: in all; those of the config if null, where auto counts as one.
        tflops: TFLOP/s that one device sustains; measured here if null.
        seconds: that measuring may take, over all stages.
    """

    devices: int | None = None
    tflops: float | None = None
    seconds: float = 60.0

    def __post_init__(self) -> None:
        if self.devices is not None and self.devices < 1:
            raise InputError("devices", self.devices, "needs at least one", "e.g. 8")
        for name in ("tflops", "seconds"):
            if getattr(self, name) is not None and getattr(self, name) <= 0:
                raise InputError(name, getattr(self, name), "must be positive", "give a larger one")


class PlannedStage(Stage):
    """A stage as ``fit`` builds it, but with noise for images and on one device; ``asked`` is what the config says."""

    def before_instantiate_classes(self) -> None:
        self.check_sections()
        t, model = self.settings.trainer, self.settings.model.init_args
        devices = count_devices(t.devices) * t.num_nodes
        self.asked = {
            "devices": devices,
            "accelerator": str(t.accelerator),
            "precision": PRECISION_NAMES.get(str(t.precision), str(t.precision)),
        }
        # What only the other machine can do is not asked of this one; neither changes a count.
        t.precision = "bf16-mixed" if t.precision == "16-mixed" else t.precision
        if model.get("compile"):
            model.compile = False
        super().before_instantiate_classes()
        t.accelerator, t.devices, t.num_nodes, t.strategy, t.precision = "cpu", 1, 1, "auto", "32-true"
        t.logger, t.plugins, t.enable_progress_bar = False, None, False

    def _run_subcommand(self, subcommand: str) -> None:
        self.datamodule.stand_in(labels=bool(getattr(self.model, "conditional", False)))


def count_devices(devices: Any) -> int:
    """Devices of a node as Lightning reads ``trainer.devices``; all that there are (``auto``, -1) count as 1."""
    text = str(devices).strip("[] ")
    if text in ("auto", "-1", "None"):
        return 1
    numbers = [part.strip() for part in text.split(",") if part.strip()]
    listed = isinstance(devices, list | tuple) or len(numbers) > 1 or text != str(devices).strip()
    count = len(numbers) if listed or not text.isdigit() else int(text)
    if count < 1 or not all(part.isdigit() for part in numbers):
        raise InputError("trainer.devices", devices, "is no number of devices", "e.g. 8, [0, 1] or auto")
    return count


def build_stage(args: Sequence[str]) -> PlannedStage:
    """The stage of these arguments of ``fit``; InputError for whatever ``fit`` would refuse before it reads data."""
    return build("fit", args, PlannedStage)


def plan_stage(
    name: str, stage: PlannedStage, settings: PlanSettings, teacher: DiffusionTeacher | None = None
) -> dict[str, Any]:
    """The record of one stage, JSON types: FLOPs of all devices together, bytes of one.

    Args:
        name: what to call it.
        stage: of :func:`build_stage`.
        settings: how to plan.
        teacher: of a student whose teacher is not trained yet; None takes what ``model.teacher`` names.

    Raises:
        InputError: devices that cannot share the batch, a teacher that is not there or does not fit.
    """
    model, data, t = stage.model, stage.datamodule, stage.datamodule.training_set
    machine = stage.asked | ({"devices": settings.devices} if settings.devices else {})
    devices, steps = machine["devices"], stage.trainer.max_steps
    if data.batch_size % devices:
        problem = f"{devices} devices cannot share the global batch evenly"
        raise InputError("data.batch_size", data.batch_size, problem, f"use a multiple of {devices}")
    held = _receive(model, teacher, t) if isinstance(model, Student) else None
    model.prepare(t)
    meta, numbers = on_meta(model.raw.train()), parameters(model, held)
    micro, batch = data.batch_size // devices, data.batch_size * stage.trainer.accumulate_grad_batches
    kept = activations(meta, model.shape, model.num_classes, micro)
    evaluation = forward_flops(meta.eval(), model.shape, model.num_classes)
    evaluations = _evaluations(stage, evaluation, devices)
    if isinstance(model, Student):
        model.seen = DistillationData()  # a pool of the teacher's samples is counted above; T replaces it in real steps
    costs = step_costs(model, data)
    used = memory(model, devices, machine["precision"], costs.optimizer) | {"activations": kept}
    rates = _rates(stage, machine, settings, costs, evaluation)
    step = costs.flops(micro, batch // micro)
    training, extra = step * steps, sum(evaluations["flops"].values())
    hours = (training / rates["training"] + extra / rates["evaluation"]) / TERA_HOUR
    sizes = {"n": len(t.images), "rows": t.rows, "held_out": len(t.held_out_images)}
    return {
        "name": name,
        "config": str(next(iter(stage.settings.get("config") or []), "")),
        "role": model.role,
        "images": {"shape": list(t.shape), "num_classes": t.num_classes} | sizes,
        "machine": machine,
        "parameters": numbers,
        "parameters_total": sum(numbers.values()),
        "evaluation_flops": evaluation,
        "step_flops": step,
        "steps": steps,
        "batch": batch,
        "micro_batch": micro,
        "images_seen": batch * steps,
        "evaluations": evaluations,
        "memory": used,
        "memory_total": sum(used.values()),
        "rates": rates,
        "flops": training + extra,
        "hours": hours / devices,
        "device_hours": hours,
    }


def _receive(student: Student, teacher: DiffusionTeacher | None, training_set: TrainingSet) -> nn.Module | None:
    """Hand a student its teacher, one that is not trained yet or what ``model.teacher`` names; returns all of it."""
    name = student.teacher_name
    if name is None:
        return None
    if name.startswith(ANALYTIC):
        student.receive(load_teacher(name, training_set))
        return student.teacher.denoiser
    teacher = teacher or load_trained(name, parameterization=student.teacher_parameterization)
    frozen = teacher.frozen(name, student.teacher_weights)
    # What stands in for the images has a hash of its own.
    frozen.record = replace(frozen.record, training_set=training_set.hash)
    student.receive(frozen)
    return teacher


def _evaluations(stage: PlannedStage, each: int, devices: int) -> dict[str, Any]:
    """What the callbacks ask for, and a student's pool of teacher samples; ``each`` is FLOPs of one evaluation.

    Returns:
        ``moments``, ``count`` of network evaluations, and ``flops`` of all devices by purpose.
    """
    model, t = stage.model, stage.datamodule.training_set
    frozen, seen = getattr(model, "teacher", None), getattr(model, "seen", DistillationData())
    solver = of_teacher = 0
    if frozen is not None:
        solver, of_teacher = frozen.sampler.nfe, forward_flops(on_meta(frozen.denoiser), model.shape, model.num_classes)
    asked: dict[int, Counter[tuple[int, str]]] = {}
    endpoints = own = teacher = 0
    for callback in (c for c in stage.trainer.callbacks if hasattr(c, "planned")):
        wanted, steps = callback.planned(model, t), callback.planned_steps(stage.trainer.max_steps, model.role)
        for step in steps:
            asked[step] = asked.get(step, Counter()) | Counter(wanted.samples)  # the larger number: they are shared
        endpoints, own = max(endpoints, wanted.endpoints), own + wanted.own * len(steps)
        teacher += wanted.teacher
    samples = sum(nfe * count for moment in asked.values() for (nfe, _), count in moment.items())
    pool = seen.count or t.rows if seen.images == "teacher_samples" else 0
    flops = {
        "evaluations": samples * each + endpoints * solver * of_teacher,
        "evaluations of every device": devices * (own * each + teacher * of_teacher),
        "teacher's samples to train on": devices * pool * solver * of_teacher,
    }
    count = samples + endpoints * solver + devices * (own + teacher + pool * solver)
    return {"moments": len(asked), "count": count, "flops": {purpose: n for purpose, n in flops.items() if n}}


def _rates(
    stage: PlannedStage, machine: dict[str, Any], settings: PlanSettings, costs: StepCosts, evaluation: int
) -> dict[str, Any]:
    """TFLOP/s of one device, stated or of real steps on this machine; ``evaluation`` is FLOPs of one, per image."""
    if settings.tflops is not None:
        return {"training": settings.tflops, "evaluation": settings.tflops, "source": "stated, not measured"}
    cpu = machine["accelerator"] == "cpu" or not torch.accelerator.is_available()
    # 16 bit for another machine is no measure of this one.
    precision = "32-true" if cpu and machine["accelerator"] != "cpu" else machine["precision"]
    images, trainer = stage.datamodule.batch_size // machine["devices"], {"accelerator": "cpu" if cpu else "auto"}
    speed = measure(stage.model, stage.datamodule, images, settings.seconds, precision=precision, **trainer)
    source = f"measured here ({speed.device}) in {speed.steps} steps of {speed.images} images"
    source += "" if speed.images == images else f", scaled to {images}"
    step = costs.flops(speed.images) / speed.images
    rates = {"training": step / speed.step / 1e12, "evaluation": evaluation / speed.evaluation / 1e12}
    return rates | {"source": source}


def plan_study(config: StudyConfig, settings: PlanSettings) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Every stage, and the record of the audit: samples x NFE of every model, on one device.

    Raises:
        InputError: whatever the study itself would refuse before it reads data, and stages of different data.
    """
    stages = {name: build_stage(stage_arguments(config, name)) for name in config.stages}
    check_parts(stages)
    share = replace(settings, seconds=settings.seconds / len(stages))
    teacher: DiffusionTeacher = stages["teacher"].model
    run = stages["teacher"].trainer
    rungs = {step for c in run.callbacks for step in ladder_steps(run.max_steps, getattr(c, "keep_ladder", 0))}
    plans = {"teacher": plan_stage("teacher", stages.pop("teacher"), share)}
    plans |= {name: plan_stage(name, stage, share, teacher) for name, stage in stages.items()}
    samples, mids, nfes, ceilings = config.audit.samples, set(), {"teacher": [teacher.sampler().nfe]}, []
    for name, student in ((name, stage.model) for name, stage in stages.items()):
        nfes[name] = config.audit.nfe or student.default_nfe
        mids |= {tuple(student.sampler(nfe).mid_sigmas) for nfe in nfes[name]}
        ceilings += [student.ceiling(teacher.function(), nfe) for nfe in nfes[name]]
    # The teacher by Euler steps at every student's own levels, and down every student's own grid.
    nfes["teacher"] += [teacher.few_step_sampler(levels).nfe for levels in mids]
    nfes["teacher"] += [sampler.evaluations for sampler in ceilings if sampler is not None]
    nfes["teacher"] += [teacher.sampler().nfe] * len(rungs)
    work = {name: samples * sum(nfe) * plans[name]["evaluation_flops"] for name, nfe in nfes.items()}
    hours = sum(work[name] / plan["rates"]["evaluation"] for name, plan in plans.items()) / TERA_HOUR
    audit = {"samples": samples, "evaluations": samples * sum(map(sum, nfes.values())), "work": work}
    return list(plans.values()), audit | {"flops": sum(work.values()), "hours": hours, "device_hours": hours}
