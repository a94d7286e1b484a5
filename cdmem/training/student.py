"""The consistency student: distilled from a frozen teacher, or (control) trained without one."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor, nn

from cdmem.data.stream import Batch
from cdmem.data.subset import UNRECORDED, TrainingSet
from cdmem.diffusion.analytic import build_analytic
from cdmem.diffusion.curriculum import Curriculum, adaptive_mu, num_points
from cdmem.diffusion.losses import consistency_loss, training_step_solver
from cdmem.diffusion.noise import IntervalDistribution, interval_probabilities, karras_sigmas, sampler_sigmas
from cdmem.diffusion.preconditioning import ConsistencyFunction, Denoiser, DenoiserLike
from cdmem.diffusion.sampling import ConsistencySampler, NoiseSource, OdeSampler, first_seed, renoise
from cdmem.diffusion.solvers import SOLVERS, heun_step
from cdmem.diffusion.step_noise import StepNoise, dropout_seed
from cdmem.distillation.recipes import DistanceName, Preset, SolverName, Weighting, make_recipe
from cdmem.errors import InputError
from cdmem.images import to_float, to_uint8
from cdmem.networks.config import NetworkConfig, label_rows
from cdmem.training.checkpoint import load_module, weights_digest
from cdmem.training.compile import compile_in_place
from cdmem.training.module import CdmemModule, Schedule
from cdmem.training.teacher import DiffusionTeacher


class ConsistencyStudent(CdmemModule):
    """Consistency distillation (Song et al. 2023, alg. 2) with every choice open; ``preset`` names good combinations.

    Args:
        teacher: checkpoint, run folder or exported folder of a cdmem teacher; folder of a diffusers DDPM, DDIM or EDM
            model; or ``analytic:empirical``, ``analytic:gaussian``, ``analytic:partial:FRACTION``.
        objective: ``distillation`` follows the teacher's ODE; ``training`` (control) needs no teacher.
        initialize: start from the ``teacher``'s EMA weights, or from ``scratch`` (needs ``network``).
        network: only for ``initialize: scratch``.
        teacher_weights: which of the teacher's weights to distil; None is the teacher's own choice.
        preset: ``small``, ``cm`` or ``ict``; the following choices override it one by one.
        points: grid points N (last value of a curriculum).
        start_points: first value of a growing curriculum.
        curriculum: ``fixed``, ``doubling`` or ``sqrt``.
        solver: ``heun`` or ``euler`` step of the teacher.
        distance: ``l1``, ``l2`` or ``pseudo_huber`` (on the whole image vector).
        huber_c: constant of the pseudo-Huber distance.
        weighting: ``uniform`` or ``inverse_gap``.
        intervals: ``uniform`` or ``lognormal``.
        mu: target rate in [0, 1), or ``adaptive``.
        mu_start: mu_0 of the adaptive rate.
        data: what the distillation sees: ``same`` images as the teacher, ``heldout`` ones, or ``teacher_samples``.
        teacher_sample_count: pool size for ``teacher_samples``; None takes as many as T has rows.
        dropout: probability in the student's network, shared with the target.
        mid_sigmas: noise levels of the second, third, ... sampling step.
        optimizer: e.g. ``torch.optim.RAdam``.
        lr_schedule: ``cosine`` to 0 at ``trainer.max_steps``, or ``constant``.
        warmup_steps: linear ramp of the learning rate.
        ema_half_lives: of the averaged weights, in optimizer steps; several at once.
        ema_ramp: no half-life exceeds this share of the steps taken.
        weights: evaluated weights; None takes the first half-life.
        training_seed: noise of the distillation; None derives it from ``--seed``.
        sampling_seed: first sample seed / 1,000,000; None derives it from ``--seed``.
        compile: torch.compile of the networks in the loss; the same numbers up to rounding. Samples and measurements
            stay uncompiled.
    """

    role = "student"

    def __init__(
        self,
        teacher: str | None = None,
        objective: Literal["distillation", "training"] = "distillation",
        initialize: Literal["teacher", "scratch"] = "teacher",
        network: NetworkConfig | None = None,
        teacher_weights: str | None = None,
        preset: Preset = "small",
        points: int | None = None,
        start_points: int | None = None,
        curriculum: Curriculum | None = None,
        solver: SolverName | None = None,
        distance: DistanceName | None = None,
        huber_c: float | None = None,
        weighting: Weighting | None = None,
        intervals: IntervalDistribution | None = None,
        mu: float | Literal["adaptive"] | None = None,
        mu_start: float | None = None,
        data: Literal["same", "heldout", "teacher_samples"] = "same",
        teacher_sample_count: int | None = None,
        dropout: float = 0.0,
        mid_sigmas: Sequence[float] = (0.8,),
        optimizer: OptimizerCallable = torch.optim.RAdam,
        lr_schedule: Schedule = "cosine",
        warmup_steps: int = 0,
        ema_half_lives: Sequence[int] = (200,),
        ema_ramp: float = 0.05,
        weights: str | None = None,
        training_seed: int | None = None,
        sampling_seed: int | None = None,
        compile: bool = False,
    ) -> None:
        super().__init__(
            network,
            optimizer,
            lr_schedule,
            warmup_steps,
            ema_half_lives,
            ema_ramp,
            weights,
            training_seed,
            sampling_seed,
            compile=compile,
        )
        self.recipe = make_recipe(
            preset,
            points=points,
            start_points=start_points,
            curriculum=curriculum,
            solver=solver,
            distance=distance,
            huber_c=huber_c,
            weighting=weighting,
            intervals=intervals,
            mu=mu,
            mu_start=mu_start,
        )
        self.teacher_name, self.teacher_weights = teacher, teacher_weights
        self.objective, self.initialize = objective, initialize
        self.data_seen, self.teacher_sample_count = data, teacher_sample_count
        self.dropout, self.mid_sigmas = dropout, [float(s) for s in mid_sigmas]
        self.distance = self.recipe.distance_function()
        self.target: nn.Module | None = None
        # Outside the module tree on purpose: a frozen teacher is neither optimised, averaged, nor saved again.
        self._frozen: dict[str, Any] = {}
        self.teacher_digest: str | None = teacher if (teacher or "").startswith("analytic:") else None
        self._check_arguments()

    def _check_arguments(self) -> None:
        levels = [self.sigma_max, *self.mid_sigmas]
        if any(a <= b for a, b in pairwise(levels)) or levels[-1] <= 0:
            raise InputError(
                "model.mid_sigmas", self.mid_sigmas, f"must fall from below {self.sigma_max} to above 0", "e.g. [0.8]"
            )
        analytic = (self.teacher_name or "").startswith("analytic:")
        if self.objective == "distillation" and self.teacher_name is None:
            raise InputError(
                "model.teacher", None, "distillation needs a teacher", "give the teacher's checkpoint or run folder"
            )
        if self.initialize == "teacher" and (self.teacher_name is None or analytic):
            raise InputError(
                "model.initialize",
                "teacher",
                f"model.teacher={self.teacher_name} has no weights to start from",
                "set model.initialize: scratch and model.network",
            )
        if self.initialize == "scratch" and self.network_config is None:
            raise InputError("model.network", None, "a student from scratch needs a network", "set model.network")
        if self.data_seen == "teacher_samples" and self.teacher_name is None:
            raise InputError("model.data", "teacher_samples", "there is no teacher", "set model.teacher")

    # ---- teacher and construction -------------------------------------------------------------------------------

    @property
    def teacher_denoiser(self) -> DenoiserLike | None:
        """The frozen teacher's D(x; sigma), or None."""
        return self._frozen.get("denoiser")

    def teacher_sampler(self) -> OdeSampler | None:
        """The teacher's own full ODE sampler: what the student's endpoints are compared with."""
        return self._frozen.get("sampler")

    def teacher_few_step_sampler(self, mid_sigmas: Sequence[float]) -> OdeSampler | None:
        """The teacher walked by Euler steps at the student's levels, or None without a network teacher."""
        module = self._frozen.get("module")
        return None if module is None else module.few_step_sampler(mid_sigmas, self.teacher_weights)

    def prepare(self, training_set: TrainingSet) -> None:
        about = {
            "shape": list(training_set.shape),
            "num_classes": 0,
            "sigma_data": training_set.sigma_data,
            "sigma_min": self.sigma_range("edm"),
            "parameterization": "edm",
            "training_set": training_set.hash,
        }
        name = self.teacher_name
        if name is not None and name.startswith("analytic:"):
            denoiser = build_analytic(name, to_float(training_set.images), training_set.multiplicities)
            sigmas = sampler_sigmas(18, about["sigma_min"], self.sigma_max)
            sampler = OdeSampler(denoiser, sigmas, heun_step, training_set.shape)
            self._frozen = {"denoiser": denoiser.eval().requires_grad_(False), "sampler": sampler}
        elif name is not None:
            about = self._load_teacher(name, about, training_set.num_classes)
        if self.initialize == "scratch":
            network = self.network_config.build(about["shape"], label_rows(about), self.training_seed)
        else:
            network = copy.deepcopy(self._frozen["denoiser"].network).train().requires_grad_(True)
        self.assemble_student(about, network)

    def _load_teacher(self, path: str, wanted: dict[str, Any], num_classes: int) -> dict[str, Any]:
        """Load the frozen teacher, refuse one of other data, and return what the student inherits from it."""
        module = load_module(path, key="model.teacher")
        if not isinstance(module, DiffusionTeacher):
            raise InputError("model.teacher", path, f"is a {module.role}", "give a teacher's checkpoint")
        if list(module.shape) != wanted["shape"]:
            raise InputError(
                "model.teacher",
                path,
                f"was trained on images of shape {list(module.shape)}, the data have {wanted['shape']}",
                "use the data section that the teacher was trained with",
            )
        if module.about["training_set"] == UNRECORDED:
            self._claim_training_set(module, path, wanted["training_set"], num_classes)
        elif module.about["training_set"] != wanted["training_set"]:
            raise InputError(
                "model.teacher",
                path,
                f"was trained on another training set ({module.about['training_set'][:12]}, "
                f"the data have {wanted['training_set'][:12]})",
                "use the data section (n, subset_seed, duplication, ...) that the teacher was trained with",
            )
        module.eval().requires_grad_(False)
        denoiser = module.function(self.teacher_weights)
        self.sigma_max = module.sigma_max
        self.teacher_digest = weights_digest(denoiser.network)
        self._frozen = {"module": module, "denoiser": denoiser, "sampler": module.sampler(weights=self.teacher_weights)}
        if self.initialize == "teacher":
            if self.network_config is not None and self.network_config != module.network_config:
                raise InputError(
                    "model.network",
                    self.network_config,
                    "differs from the teacher's network, whose weights the student starts from",
                    "leave model.network out or set model.initialize: scratch",
                )
            self.network_config = module.network_config
        return dict(module.about)

    @staticmethod
    def _claim_training_set(teacher: DiffusionTeacher, path: str, claimed: str, num_classes: int) -> None:
        """Take the data section for the training set of a teacher that has no record of its own, and say so."""
        if teacher.num_classes and teacher.num_classes != num_classes:
            problem = f"has {teacher.num_classes} classes, the data have {num_classes}"
            raise InputError("model.teacher", path, problem, "use the data that the teacher was trained with")
        note = "does not record what it was trained on; the data section is taken for its training set"
        rank_zero_only(print)(f"note: {path} {note} ({claimed[:12]})", flush=True)
        teacher.about |= {"training_set": claimed, "training_set_status": "claimed"}

    def assemble_student(self, about: dict[str, Any], network: nn.Module) -> None:
        """Preconditioning, averages and, when mu is not 0, the target copy."""
        if self.mid_sigmas and not about["sigma_min"] < self.mid_sigmas[-1] <= self.mid_sigmas[0] < self.sigma_max:
            between = f"must lie between sigma_min={about['sigma_min']} and sigma_max={self.sigma_max}"
            raise InputError("model.mid_sigmas", self.mid_sigmas, between, "e.g. [0.8]")
        for part in network.modules():
            if isinstance(part, nn.Dropout):
                part.p = self.dropout
        self.assemble(about, network, ConsistencyFunction)
        if self.recipe.mu != 0:
            self.target = copy.deepcopy(network).requires_grad_(False)

    def on_fit_start(self) -> None:
        self.move_teacher()
        if self.data_seen == "heldout":
            self.data.train_on_held_out()
        elif self.data_seen == "teacher_samples":
            self.data.train_on_images(*self._teacher_images())

    def compile_networks(self) -> None:
        super().compile_networks()
        if self.target is not None:
            compile_in_place(self.target)
        teacher = self.teacher_denoiser
        if isinstance(teacher, Denoiser):
            # A second top over the same weights: what measures the teacher keeps the uncompiled one.
            network = compile_in_place(copy.copy(teacher.network))
            self._frozen["solver"] = type(teacher)(network, teacher.scaling).eval()

    def move_teacher(self) -> None:
        """Bring the teacher to the student's device (Lightning does not know it)."""
        for part in self._frozen.values():
            if isinstance(part, nn.Module):
                part.to(self.device)

    def _teacher_images(self) -> tuple[Tensor, Tensor]:
        """Pool of teacher samples (uint8) and their labels; the same on every rank and on resume."""
        count = self.teacher_sample_count or self.data.training_set.rows
        # Apart from the evaluation seeds, which start at the same base.
        start = first_seed(self.sampling_seed) + 500_000
        seeds = list(range(start, start + count))
        sampler = self._frozen["sampler"]
        images, labels = [], []
        for k in range(0, count, 256):
            chunk = seeds[k : k + 256]
            images.append(to_uint8(sampler(chunk, self.device)).cpu())
            drawn = NoiseSource(chunk, self.shape).labels(self.num_classes)
            labels.append(torch.zeros(len(chunk), dtype=torch.int64) if drawn is None else drawn)
        return torch.cat(images), torch.cat(labels)

    # ---- the loss -----------------------------------------------------------------------------------------------

    def points_at(self, step: int) -> int:
        """Grid points N at an optimizer step."""
        r = self.recipe
        return num_points(step, self.trainer.max_steps, r.curriculum, r.start_points, r.points)

    def solver_step(self, x0: Tensor, x_hi: Tensor, hi: Tensor, lo: Tensor, labels: Tensor | None) -> Tensor:
        """From sigma_hi down to sigma_lo: along the teacher's ODE, or towards x0 for consistency training."""
        if self.objective == "training":
            return training_step_solver(x0, x_hi, hi, lo)
        # The teacher stays in float32 whatever precision the student trains in.
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            teacher = self._frozen.get("solver", self.teacher_denoiser)
            return SOLVERS[self.recipe.solver](teacher, x_hi, hi, lo, labels).float()

    def loss(self, batch: Batch, noise: StepNoise) -> Tensor:
        r = self.recipe
        sigmas = karras_sigmas(self.points_at(self.trainer.global_step), self.sigma_min, self.sigma_max)
        interval = noise.choice(interval_probabilities(sigmas, r.intervals, r.p_mean, r.p_std))
        grid = sigmas.to(self.device, torch.float32)
        hi, lo = grid[interval], grid[interval + 1]
        eps, x0, labels = noise.normal(self.shape), self.images(batch), self.labels(batch)
        x_hi = renoise(x0, hi, eps)
        x_lo = self.solver_step(x0, x_hi, hi, lo, labels)
        weight = 1 / (hi - lo) if r.weighting == "inverse_gap" else 1.0
        online = self.raw if self.training else self.function()
        target = online if self.target is None else ConsistencyFunction(self.target, self.raw.scaling)
        seed = noise.dropout_seed
        return consistency_loss(
            self._seeded(online, seed), self._seeded(target, seed), x_hi, x_lo, hi, lo, self.distance, weight, labels
        )

    def _seeded(self, function: Denoiser, seed: int) -> DenoiserLike:
        """Student and target drop the same units."""

        def call(x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
            with dropout_seed(self.device, seed):
                return function(x, sigma, labels)

        return call

    def after_optimizer_step(self, step: int) -> None:
        super().after_optimizer_step(step)
        if self.target is None:
            return
        mu = self.recipe.mu
        if mu == "adaptive":
            mu = adaptive_mu(self.points_at(step - 1), self.recipe.start_points, self.recipe.mu_start)
        with torch.no_grad():
            source = [p.detach() for p in self.raw.network.parameters()]
            torch._foreach_lerp_([p.data for p in self.target.parameters()], source, 1 - mu)

    # ---- sampling and record ------------------------------------------------------------------------------------

    @property
    def default_nfe(self) -> list[int]:
        return list(range(1, 2 + len(self.mid_sigmas)))

    def sampler(self, nfe: int | None = None, weights: str | None = None) -> ConsistencySampler:
        """One step from sigma_max (``nfe`` 1), or re-noised to the first ``nfe - 1`` of ``mid_sigmas``."""
        steps = 1 if nfe is None else nfe
        if not 1 <= steps <= 1 + len(self.mid_sigmas):
            raise InputError(
                "nfe",
                nfe,
                f"model.mid_sigmas has {len(self.mid_sigmas)} levels",
                f"use 1 to {1 + len(self.mid_sigmas)} or give more mid_sigmas",
            )
        return ConsistencySampler(
            self.function(weights),
            self.sigma_max,
            self.sigma_min,
            self.shape,
            self.mid_sigmas[: steps - 1],
            self.num_classes,
        )

    def extra_record(self) -> dict[str, Any]:
        return {
            "mid_sigmas": self.mid_sigmas,
            "grid_points": self.recipe.points + (self.recipe.curriculum != "fixed"),
            "has_target": self.target is not None,
            "teacher": str(self.teacher_name),
            "teacher_digest": self.teacher_digest,
            "objective": self.objective,
        }
