"""One stage of training on the meta device, and what it costs."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from cdmem.diffusion.losses import consistency_loss, denoising_loss
from cdmem.diffusion.preconditioning import Denoiser
from cdmem.errors import InputError
from cdmem.io.paths import usable_path
from cdmem.models.flops import (
    TrainingPass,
    build_on_meta,
    forward_flops,
    noisy,
    optimizer_bytes,
    product_flops,
    tensor_bytes,
    training_pass,
)
from cdmem.networks.config import label_rows
from cdmem.plan.build import Machine, PlanCLI
from cdmem.plan.frozen import Frozen, frozen, frozen_analytic, frozen_checkpoint
from cdmem.plan.images import Facts, facts
from cdmem.plan.work import Evaluations, Work, evaluations
from cdmem.training.student import Student
from cdmem.training.teacher import DiffusionTeacher

NEUTRAL_SIGMA_DATA = 0.5  # costs do not depend on it
SOLVER_NFE = {"heun": 2, "euler": 1}  # no step of the training grid ends at 0, where Heun would save one


@dataclass(frozen=True)
class StagePlan:
    """What one stage costs; FLOPs of all devices together, bytes of one device.

    Attributes:
        name: ``teacher``, ``student`` or a student's own name.
        config: the file.
        role: ``teacher`` or ``student``.
        images: facts of the data.
        machine: where it runs.
        parameters: part -> number; ``network`` is what is trained.
        evaluation: FLOPs of one network evaluation, one image.
        step: work of one optimizer step.
        steps: optimizer steps.
        batch: images of one optimizer step.
        micro_batch: images at once on one device.
        evaluations: what the callbacks ask for.
        extra: work beside the steps.
        memory: part -> bytes.
        notes: what the numbers leave out, one line each.
    """

    name: str
    config: str
    role: str
    images: Facts
    machine: Machine
    parameters: dict[str, int]
    evaluation: int
    step: list[Work]
    steps: int
    batch: int
    micro_batch: int
    evaluations: Evaluations
    extra: list[Work]
    memory: dict[str, int]
    notes: list[str]

    def work(self) -> list[Work]:
        """Everything, training as one piece per kind."""
        return [replace(w, flops=w.flops * self.steps) for w in self.step] + self.extra


class Stage:
    """A stage on the meta device.

    Args:
        name: what to call it.
        cli: from :func:`build_stage`.
        teacher: stage of a student's teacher; None takes what ``model.teacher`` names.
        devices: replaces those of the config.
    """

    def __init__(self, name: str, cli: PlanCLI, teacher: Stage | None = None, devices: int | None = None) -> None:
        self.name, self.cli, self.model = name, cli, cli.model
        self.machine = cli.machine if devices is None else replace(cli.machine, devices=devices)
        conditional = bool(getattr(self.model, "conditional", False))
        self.facts = facts(cli.datamodule, conditional)
        if cli.datamodule.batch_size % self.machine.devices:
            problem = f"{self.machine.devices} devices cannot share the global batch evenly"
            mend = f"use a multiple of {self.machine.devices}"
            raise InputError("data.batch_size", cli.datamodule.batch_size, problem, mend)
        self.frozen: Frozen | None = None
        if isinstance(self.model, DiffusionTeacher):
            self._assemble_teacher(self.model, conditional)
        else:
            self._assemble_student(self.model, teacher)

    def _about(self, num_classes: int, parameterization: str) -> dict[str, Any]:
        about = {"shape": list(self.facts.shape), "num_classes": num_classes, "parameterization": parameterization}
        sigma_min = self.model.sigma_range(parameterization)
        return about | {"sigma_data": NEUTRAL_SIGMA_DATA, "sigma_min": sigma_min, "training_set": ""}

    def _assemble_teacher(self, model: DiffusionTeacher, conditional: bool) -> None:
        if conditional and self.facts.num_classes == 0:
            raise InputError("model.conditional", True, "the data have no classes", "set it to false")
        classes = self.facts.num_classes if conditional else 0
        about = self._about(classes, model.parameterization) | ({"null_label": True} if model.label_dropout else {})
        network = build_on_meta(model.network_config, self.facts.shape, label_rows(about))
        model.assemble(about, network, Denoiser)

    def _assemble_student(self, model: Student, teacher: Stage | None) -> None:
        about, name = self._about(0, "edm"), model.teacher_name
        if name is not None and name.startswith("analytic:"):
            self.frozen = frozen_analytic(name, self.facts)
        elif teacher is not None:
            self.frozen = frozen(teacher.model, model.teacher_weights, teacher.forward)
        elif name is not None:
            if not usable_path("model.teacher", name).exists():
                mend = "add --teacher_config FILE, the teacher's config, or give a checkpoint"
                raise InputError("model.teacher", name, "is not there, and its network is part of the cost", mend)
            self.frozen = frozen_checkpoint(name, model.teacher_weights)
        if self.frozen is not None and self.frozen.about is not None:
            about, model.sigma_max = self.frozen.about, self.frozen.sigma_max
            if list(about["shape"]) != list(self.facts.shape):
                problem = f"makes images of shape {about['shape']}, the data have {list(self.facts.shape)}"
                raise InputError("model.teacher", name, problem, "use the data section of the teacher")
        if model.initialize == "scratch":
            network = build_on_meta(model.network_config, about["shape"], label_rows(about))
        else:
            network = copy.deepcopy(self.frozen.denoiser.network).train().requires_grad_(True)
        model.assemble_student(about, network)

    # ---- costs --------------------------------------------------------------------------------------------------

    @cached_property
    def forward(self) -> int:
        """FLOPs of one network evaluation per image."""
        m = self.model
        if isinstance(m, Student) and m.initialize == "teacher":
            return self.frozen.forward  # the same network
        return forward_flops(m.function(), m.shape, m.num_classes)

    @cached_property
    def product(self) -> int:
        """FLOPs of one backward pass to the image."""
        m = self.model
        return product_flops(m.function(), m.shape, m.num_classes)

    def loss(self, batch: int) -> Tensor:
        """The trained network's part of the loss of so many images, on the meta device."""
        m = self.model
        x, sigma, labels = noisy(m.shape, m.num_classes, batch)
        if isinstance(m, DiffusionTeacher):
            weight = m.raw.scaling.loss_weight(sigma)
            return denoising_loss(m.raw, x, sigma, x, weight, labels).mean()
        # The target runs without gradient: it keeps nothing and costs one plain evaluation.
        return consistency_loss(m.raw, lambda x, *_: x, x, x, sigma, sigma, m.distance, 1.0, labels).mean()

    def plan(self) -> StagePlan:
        """Count everything."""
        m, devices = self.model.train(), self.machine.devices
        accumulate, size = self.cli.trainer.accumulate_grad_batches, self.cli.datamodule.batch_size
        made = training_pass(self.loss, m)
        asked = evaluations(
            self.cli.trainer.callbacks, m, self.facts, self.cli.trainer.max_steps, self.frozen.nfe if self.frozen else 0
        )
        batch, micro = size * accumulate, size // devices
        return StagePlan(
            name=self.name,
            config=str(next(iter(self.cli.settings.get("config") or []), "")),
            role=m.role,
            images=self.facts,
            machine=self.machine,
            parameters=self._parameters(),
            evaluation=self.forward,
            step=self._step(made, batch),
            steps=self.cli.trainer.max_steps,
            batch=batch,
            micro_batch=micro,
            evaluations=asked,
            extra=self._extra(asked),
            memory=self._memory(made, micro),
            notes=self._notes(asked),
        )

    def _step(self, made: TrainingPass, batch: int) -> list[Work]:
        m, low = self.model, self.machine.low
        if isinstance(m, DiffusionTeacher):
            return [Work("forward and backward", made.flops * batch, low)]
        found = []
        if m.objective == "distillation":
            nfe = SOLVER_NFE[m.recipe.solver]
            # The teacher stays in float32 whatever precision the student trains in.
            found.append(Work(f"teacher's {m.recipe.solver} step, {nfe} forward", nfe * self.frozen.forward * batch))
        found.append(Work("target forward", self.forward * batch, low))
        return [*found, Work("student forward and backward", made.flops * batch, low)]

    def _extra(self, asked: Evaluations) -> list[Work]:
        m, found = self.model, []
        teacher = 0 if self.frozen is None else self.frozen.forward
        product = self.product if asked.products else 0
        shared = asked.model * self.forward + asked.teacher * teacher
        own = asked.model_everywhere * self.forward + asked.teacher_everywhere * teacher + asked.products * product
        # Evaluations run outside autocast.
        found += [Work("evaluations", shared)] if shared else []
        found += [Work("evaluations of every device", own, everywhere=True)] if own else []
        if isinstance(m, Student) and m.data_seen == "teacher_samples":
            pool = m.teacher_sample_count or self.facts.rows
            found.append(Work("teacher's samples to train on", pool * self.frozen.nfe * teacher, everywhere=True))
        return found

    def _parameters(self) -> dict[str, int]:
        m = self.model
        found = {"network": _numbers(m.raw.network), "averages": _numbers(m.ema)}
        if isinstance(m, Student):
            found |= {"target": _numbers(m.target) if m.target is not None else 0}
            found |= {"teacher": self.frozen.parameters if self.frozen else 0}
        return found

    def _memory(self, made: TrainingPass, micro: int) -> dict[str, int]:
        m, weights = self.model, list(self.model.raw.network.parameters())
        size = sum(p.numel() * p.element_size() for p in weights)
        found = {"weights": tensor_bytes(m.raw), "gradients": size}
        if self.machine.devices > 1:
            found["gradient buckets of DDP"] = size
        found["optimizer"] = optimizer_bytes(m.optimizer_factory, weights)
        found["averages"] = tensor_bytes(m.ema)
        if isinstance(m, Student):
            found["target"] = tensor_bytes(m.target) if m.target is not None else 0
            found["teacher"] = self.frozen.size if self.frozen else 0
        if self.machine.low:
            found["16-bit copies of the weights"] = size // 2
        found["activations"] = made.kept(micro)
        return found

    def _notes(self, asked: Evaluations) -> list[str]:
        notes = [f"{name}: taken to draw its samples once per moment, at the model's own NFE" for name in asked.assumed]
        if any(type(c).__name__ == "MemorizationStopping" for c in self.cli.trainer.callbacks):
            notes.append("MemorizationStopping may end it sooner")
        if isinstance(self.cli.trainer.val_check_interval, int):
            notes.append("validation passes during fit are not counted")
        return notes


def _numbers(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
