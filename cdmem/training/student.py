"""The student: made from a frozen teacher by a distillation method, or (control) from the images alone."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor, nn

from cdmem.data.stream import Batch
from cdmem.data.subset import UNRECORDED, TrainingSet
from cdmem.diffusion.noise import SIGMA_MAX
from cdmem.diffusion.preconditioning import ConsistencyFunction, Denoiser, DenoiserLike
from cdmem.diffusion.sampling import ConsistencySampler, NoiseSource, OdeSampler
from cdmem.diffusion.step_noise import StepNoise, dropout_seed
from cdmem.distillation.base import CleanBatch, DistillationMethod, Progress, StudentFunctions
from cdmem.distillation.ceiling import CeilingSampler
from cdmem.distillation.consistency import ConsistencyDistillation, ConsistencyTraining
from cdmem.errors import InputError
from cdmem.images import to_uint8
from cdmem.io import own_code
from cdmem.networks.config import NetworkConfig
from cdmem.seeds import first_sample
from cdmem.training.ahead import Ahead
from cdmem.training.compile import compile_in_place
from cdmem.training.frozen_teacher import ANALYTIC, FrozenTeacher
from cdmem.training.module import DiffusionModule
from cdmem.training.record import ModelRecord
from cdmem.training.settings import Averaging, Optimization, Seeds

BLOCK = 256  # teacher samples made at once
POOL_OFFSET = 500_000  # of the pool's seeds from the evaluation seeds, which start at the same base


@dataclass(frozen=True)
class DistillationData:
    """What the distillation sees.

    Args:
        images: ``same`` as the teacher, ``heldout`` ones, or ``teacher_samples``.
        count: pool size of ``teacher_samples``; None takes as many as T has rows.
    """

    images: Literal["same", "heldout", "teacher_samples"] = "same"
    count: int | None = None


class Student(DiffusionModule):
    """A student. It is handed its teacher (:meth:`receive`) and loads nothing itself.

    Args:
        teacher: checkpoint, run folder or exported folder of a cdmem teacher; folder of a diffusers DDPM, DDIM or EDM
            model; or ``analytic:empirical``, ``analytic:gaussian``, ``analytic:partial:FRACTION``.
        method: how it learns, for example ``cdmem.distillation.ConsistencyDistillation``; or a file:
            ``configs/methods/small.yaml`` (stable at small batch; the defaults), ``configs/methods/cm.yaml`` (CIFAR-10
            of Song et al. 2023, with l2) or ``configs/methods/ict.yaml`` (Song & Dhariwal 2023, growing curriculum); or
            a control, ``configs/methods/regression.yaml`` or ``cdmem.distillation.ConsistencyTraining``.
        network: for a student from random weights; None starts from the teacher's network and weights.
        teacher_weights: which of the teacher's weights to distil; None is the teacher's own choice.
        teacher_parameterization: ``vp`` (DDPM, linear betas, epsilon) or ``edm``, of a diffusers network without a
            scheduler.
        data: what the distillation sees.
        mid_sigmas: noise levels of the second, third, ... sampling step. A distillation on few points trains these
            points only: take levels among them (``cdmem.diffusion.noise.karras_sigmas``).
        optimization: optimizer, learning-rate schedule and warm-up.
        averaging: averages of the weights, and which are evaluated.
        seeds: of training and of samples; None derives them from ``--seed``.
        compile: torch.compile of the networks in the loss; the same numbers up to rounding. Samples and measurements
            stay uncompiled.
    """

    role = "student"
    default_optimizer = torch.optim.RAdam

    def __init__(
        self,
        teacher: str | None = None,
        method: DistillationMethod = ConsistencyDistillation(),  # noqa: B008  (frozen)
        network: NetworkConfig | None = None,
        teacher_weights: str | None = None,
        data: DistillationData = DistillationData(),
        mid_sigmas: Sequence[float] = (0.8,),
        optimization: Optimization = Optimization(),  # noqa: B008
        averaging: Averaging = Averaging(),  # noqa: B008
        seeds: Seeds = Seeds(),  # noqa: B008
        compile: bool = False,
        teacher_parameterization: Literal["vp", "edm"] | None = None,
    ) -> None:
        super().__init__(network, optimization, averaging, seeds, compile)
        self.method, self.seen = method, data
        self.teacher_parameterization = teacher_parameterization
        self.teacher_name, self.teacher_weights = teacher, teacher_weights
        self.mid_sigmas = [float(s) for s in mid_sigmas]
        self.target: nn.Module | None = None
        # Outside the module tree on purpose: a frozen teacher is neither optimised, averaged, nor saved again.
        self._outside: dict[str, Any] = {}
        self._check_arguments()

    def _check_arguments(self) -> None:
        levels = [SIGMA_MAX, *self.mid_sigmas]
        if any(a <= b for a, b in pairwise(levels)) or levels[-1] <= 0:
            problem = f"must fall from below {SIGMA_MAX} to above 0"
            raise InputError("model.mid_sigmas", self.mid_sigmas, problem, "e.g. [0.8]")
        if self.method is None:  # null in a config
            raise InputError("model.method", None, "is no method", "e.g. cdmem.distillation.ConsistencyDistillation")
        name = self.teacher_name
        if name is None and self.method.needs_teacher:
            hint = "give the teacher's checkpoint or run folder"
            raise InputError("model.teacher", None, "distillation needs a teacher", hint)
        if self.network_config is None and (name is None or name.startswith(ANALYTIC)):
            problem = f"model.teacher={name} has no weights to start from"
            raise InputError("model.network", None, problem, "set model.network")
        if self.seen.images == "teacher_samples" and name is None:
            raise InputError("model.data.images", "teacher_samples", "there is no teacher", "set model.teacher")

    # ---- teacher and construction -------------------------------------------------------------------------------

    @property
    def teacher(self) -> FrozenTeacher | None:
        """The teacher as it was handed over."""
        return self._outside.get("teacher")

    @property
    def teacher_denoiser(self) -> DenoiserLike | None:
        """The frozen teacher's D(x; sigma), or None."""
        return self.teacher and self.teacher.denoiser

    @property
    def teacher_digest(self) -> str | None:
        """Which weights were, or are being, distilled."""
        return self.record.teacher_digest if self.record else None

    def teacher_sampler(self) -> OdeSampler | None:
        """The teacher's own full ODE sampler: what the student's endpoints are compared with."""
        return self.teacher and self.teacher.sampler

    def receive(self, teacher: FrozenTeacher) -> None:
        """Hand over the teacher, before :meth:`prepare`."""
        self._outside = {"teacher": teacher}

    def prepare(self, training_set: TrainingSet) -> None:
        teacher, own = self.teacher, self.new_record(training_set, sampler={})
        if teacher is None and self.teacher_name is not None:
            hint = "student.receive(load_teacher(...)) before fit"
            raise InputError("model.teacher", self.teacher_name, "was not handed over", hint)
        if teacher is not None:
            _check_teacher(teacher, training_set)
            inherited = ("num_classes", "null_label", "sigma_data", "sigma_min", "sigma_max", "parameterization")
            about = {name: getattr(teacher.record, name) for name in (*inherited, "scaling", "training_set_status")}
            own = replace(own, **about, teacher=teacher.name, teacher_digest=teacher.digest)
        sampler = {"solver": "consistency", "points": self.method.grid_points(), "mid_sigmas": self.mid_sigmas}
        own = replace(
            own,
            sampler=sampler | {"ode_solver": self.method.ode_solver},
            method=f"{type(self.method).__module__}.{type(self.method).__qualname__}",
            function=_function_path(self.method.function),
        )
        if self.network_config is not None:
            network = self.build_network(own)
        else:
            network = copy.deepcopy(teacher.denoiser.network).train().requires_grad_(True)
            own = replace(own, network=teacher.record.network)
        self.assemble_student(own, network)
        if self.method.keeps_target:
            self.target = copy.deepcopy(network).requires_grad_(False)

    def assemble_student(self, record: ModelRecord, network: nn.Module) -> None:
        """Preconditioning and averages."""
        levels = record.sampler["mid_sigmas"]
        if levels and not record.sigma_min < levels[-1] <= levels[0] < record.sigma_max:
            between = f"must lie between sigma_min={record.sigma_min} and sigma_max={record.sigma_max}"
            raise InputError("model.mid_sigmas", levels, between, "e.g. [0.8]")
        for part in network.modules():
            if isinstance(part, nn.Dropout):
                part.p = self.method.dropout
        self.assemble(record, network, _function(record.function))

    @classmethod
    def of(cls, record: ModelRecord, config: NetworkConfig) -> Student:
        """The module that a record describes, to sample from; :meth:`assemble_student` gives it its network."""
        seeds = Seeds(sampling=record.sampling_seed)
        return cls(method=ConsistencyTraining(), network=config, mid_sigmas=record.sampler["mid_sigmas"], seeds=seeds)

    def on_fit_start(self) -> None:
        self.move_teacher()
        here = self.trainer.world_size // self.trainer.num_nodes
        # torch.compile belongs to one thread; a loss of a subclass is asked whole.
        apart = type(self).loss is Student.loss and not (self.compiles and self.device.type == "cpu")
        if self.method.needs_teacher and apart and Ahead.pays(self.device, here):
            self._outside["ahead"] = Ahead(self.device)
        if self.seen.images == "heldout":
            self.data.train_on_held_out()
        elif self.seen.images == "teacher_samples":
            self.data.train_on_images(*self._teacher_images())

    def on_fit_end(self) -> None:
        if ahead := self._outside.pop("ahead", None):
            ahead.close()

    def compile_networks(self) -> None:
        super().compile_networks()
        if self.target is not None:
            compile_in_place(self.target)
        teacher = self.teacher_denoiser
        if isinstance(teacher, Denoiser):
            # A second top over the same weights: what measures the teacher keeps the uncompiled one.
            network = compile_in_place(copy.copy(teacher.network))
            self._outside["compiled"] = type(teacher)(network, teacher.scaling).eval()

    def move_teacher(self) -> None:
        """Bring the teacher to the student's device (Lightning does not know it)."""
        if self.teacher is not None:
            self.teacher.denoiser.to(self.device)

    def _teacher_images(self) -> tuple[Tensor, Tensor]:
        """Pool of teacher samples (uint8) and their labels; the same on every rank and on resume."""
        count = self.seen.count or self.data.training_set.rows
        start = first_sample(self.sampling_seed) + POOL_OFFSET
        seeds = list(range(start, start + count))
        images, labels = [], []
        for k in range(0, count, BLOCK):
            chunk = seeds[k : k + BLOCK]
            images.append(to_uint8(self.teacher.sampler(chunk, self.device)).cpu())
            drawn = NoiseSource(chunk, self.shape).labels(self.num_classes)
            labels.append(torch.zeros(len(chunk), dtype=torch.int64) if drawn is None else drawn)
        return torch.cat(images), torch.cat(labels)

    # ---- the loss -----------------------------------------------------------------------------------------------

    def progress(self, step: int) -> Progress:
        """What the method may know of where the run stands."""
        return Progress(step, self.trainer.max_steps, self.sigma_min, self.sigma_max, tuple(self.mid_sigmas))

    def loss(self, batch: Batch, noise: StepNoise) -> Tensor:
        return self.student_part(self.teacher_part(batch, noise, self.trainer.global_step), noise)

    def training_loss(self, batch: Batch, batch_idx: int) -> Tensor:
        ahead, step = self._outside.get("ahead"), self.trainer.global_step
        if ahead is None:
            return super().training_loss(batch, batch_idx)
        begun = ahead.take((step, batch_idx))
        part, noise = begun or self._teacher_half(batch, self.step_noise(len(batch.image), batch_idx), step)
        self._begin_next(ahead, len(batch.image), batch_idx + 1)
        return self.student_part(part, noise)

    def _begin_next(self, ahead: Ahead, local_batch: int, batch_idx: int) -> None:
        """Start the teacher's half of the next micro-batch, if there is one."""
        parts = self.trainer.accumulate_grad_batches
        step = self.trainer.global_step + (batch_idx % parts == 0)
        if step == self.trainer.max_steps:
            return
        noise = self.step_noise(local_batch, batch_idx, step)
        batch = self.data.stream.batch(step * parts + batch_idx % parts)

        def half() -> tuple[Any, StepNoise]:
            # Moved here: on CUDA memory belongs to the stream that took it.
            return self._teacher_half(Batch(*(part.to(self.device) for part in batch)), noise, step)

        ahead.begin((step, batch_idx), half)

    def _teacher_half(self, batch: Batch, noise: StepNoise, step: int) -> tuple[Any, StepNoise]:
        """Also the noise, of which the student's half draws the rest."""
        return self.teacher_part(batch, noise, step), noise

    def teacher_part(self, batch: Batch, noise: StepNoise, step: int) -> Any:
        """What of a step does not depend on the student."""
        clean = CleanBatch(self.images(batch), self.labels(batch))
        teacher = self._outside.get("compiled", self.teacher_denoiser)
        return self.method.teacher_part(teacher, clean, noise, self.progress(step))

    def student_part(self, part: Any, noise: StepNoise) -> Tensor:
        """Per-sample loss (B,) on what the teacher's half gave."""
        online = self.raw if self.training else self.function()
        target = online if self.target is None else type(self.raw)(self.target, self.raw.scaling)
        seed = noise.dropout_seed
        functions = StudentFunctions(self._seeded(online, seed), self._seeded(target, seed))
        return self.method.loss(functions, part, noise)

    def _seeded(self, function: Denoiser, seed: int) -> DenoiserLike:
        """Student and target drop the same units."""

        def call(x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
            with dropout_seed(self.device, seed):
                return function(x, sigma, labels)

        return call

    def after_optimizer_step(self, step: int) -> None:
        super().after_optimizer_step(step)
        if ahead := self._outside.get("ahead"):
            ahead.settle()  # callbacks may use the teacher
        if self.target is not None:
            self.method.update_target(self.target, self.raw.network, self.progress(step))

    # ---- sampling -----------------------------------------------------------------------------------------------

    @property
    def default_nfe(self) -> list[int]:
        return list(range(1, 2 + len(self.mid_sigmas)))

    def sampler(self, nfe: int | None = None, weights: str | None = None) -> ConsistencySampler:
        """One step from sigma_max (``nfe`` 1), or re-noised to the first ``nfe - 1`` of ``mid_sigmas``."""
        steps = 1 if nfe is None else nfe
        if not 1 <= steps <= 1 + len(self.mid_sigmas):
            problem = f"model.mid_sigmas has {len(self.mid_sigmas)} levels"
            hint = f"use 1 to {1 + len(self.mid_sigmas)} or give more mid_sigmas"
            raise InputError("nfe", nfe, problem, hint)
        return ConsistencySampler(
            self.function(weights),
            self.sigma_max,
            self.sigma_min,
            self.shape,
            self.mid_sigmas[: steps - 1],
            self.num_classes,
        )

    def ceiling(self, teacher: DenoiserLike, nfe: int | None = None) -> CeilingSampler | None:
        """What :meth:`sampler` would give if the student had learned its recipe perfectly from this teacher; None of a
        method that follows no ODE, and of students that were made before it was recorded."""
        recipe, sampler = self.record.sampler, self.sampler(nfe)
        if not recipe.get("ode_solver"):
            return None
        ends, mids = (self.sigma_max, self.sigma_min), tuple(sampler.mid_sigmas)
        return CeilingSampler.of(
            teacher, recipe["points"], recipe["ode_solver"], *ends, self.shape, mids, self.num_classes
        )


def _function_path(function: type[Denoiser]) -> str | None:
    """How a record names a method's parameterisation; one of the user's own is theirs to name.

    Raises:
        InputError: no such class in its module.
    """
    if function is ConsistencyFunction:
        return None
    path = f"{function.__module__}.{function.__qualname__}"
    try:
        own_code.named(path)
    except Exception as error:
        problem = f"is not found by that name ({own_code.reason(error)})"
        raise InputError("model.method.function", path, problem, "define it at the top level of a module") from None
    return path


def _function(path: str | None) -> type[Denoiser]:
    """The parameterisation that a record names.

    Raises:
        InputError: one that a file must not choose, or none.
    """
    if path is None:
        return ConsistencyFunction
    if path == f"{Denoiser.__module__}.{Denoiser.__qualname__}":
        return Denoiser
    function = own_code.recalled(path, "checkpoint.function")
    if not (isinstance(function, type) and issubclass(function, Denoiser)):
        raise InputError("checkpoint.function", path, "is no Denoiser", "use another file")
    return function


def _check_teacher(teacher: FrozenTeacher, training_set: TrainingSet) -> None:
    """Refuse a teacher of other data; of one that records none, take the data section for its training set.

    Raises:
        InputError: naming what does not fit.
    """
    record, wanted = teacher.record, list(training_set.shape)
    use = "use the data section that the teacher was trained with"
    if list(record.shape) != wanted:
        problem = f"was trained on images of shape {list(record.shape)}, the data have {wanted}"
        raise InputError("model.teacher", teacher.name, problem, use)
    if record.training_set == UNRECORDED:
        if record.num_classes and record.num_classes != training_set.num_classes:
            problem = f"has {record.num_classes} classes, the data have {training_set.num_classes}"
            raise InputError("model.teacher", teacher.name, problem, "use the data that the teacher was trained with")
        note = "does not record what it was trained on; the data section is taken for its training set"
        rank_zero_only(print)(f"note: {teacher.name} {note} ({training_set.hash[:12]})", flush=True)
        teacher.record = replace(record, training_set=training_set.hash, training_set_status="claimed")
    elif record.training_set != training_set.hash:
        problem = f"was trained on another training set ({record.training_set[:12]}, the data have "
        hint = "use the data section (n, subset_seed, duplication, ...) that the teacher was trained with"
        raise InputError("model.teacher", teacher.name, f"{problem}{training_set.hash[:12]})", hint)
