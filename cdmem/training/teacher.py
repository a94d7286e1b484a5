"""The diffusion teacher: denoising score matching on a training set small enough to be memorised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from cdmem.data.stream import Batch
from cdmem.data.subset import TrainingSet
from cdmem.diffusion.ddpm import VPSchedule
from cdmem.diffusion.losses import denoising_loss
from cdmem.diffusion.noise import SIGMA_MIN, sampler_sigmas
from cdmem.diffusion.sampling import OdeSampler
from cdmem.diffusion.solvers import SOLVERS, euler_step
from cdmem.diffusion.step_noise import StepNoise, dropout_seed
from cdmem.errors import InputError
from cdmem.networks.config import NetworkConfig
from cdmem.training.checkpoint import weights_digest
from cdmem.training.frozen_teacher import FrozenTeacher
from cdmem.training.module import DiffusionModule, Parameterization
from cdmem.training.record import ModelRecord
from cdmem.training.settings import Averaging, Optimization, Seeds


@dataclass(frozen=True)
class TrainingNoise:
    """ln sigma ~ N(p_mean, p_std^2) in training (EDM, table 1); a DDPM teacher has uniform times instead."""

    p_mean: float = -1.2
    p_std: float = 1.2


@dataclass(frozen=True)
class Sampling:
    """The teacher's ODE sampler.

    Args:
        points: N of the sampling grid; Heun spends 2 N - 1 evaluations.
        solver: ``heun`` or ``euler``.
    """

    points: int = 18
    solver: Literal["heun", "euler"] = "heun"

    def __post_init__(self) -> None:
        if self.points < 2:
            raise InputError("model.sampling.points", self.points, "a grid needs 2 points", "use 18 or more")


class DiffusionTeacher(DiffusionModule):
    """EDM (Karras et al. 2022) or DDPM (Ho et al. 2020) trained on T.

    Args:
        network: config of F, for example ``cdmem.networks.UNet``.
        parameterization: ``edm`` (ln sigma ~ N(p_mean, p_std^2), weight 1/c_out^2) or ``vp`` (uniform DDPM times, error
            of epsilon).
        sigma_data: std of the training pixels in [-1, 1]; None measures it on T.
        noise: noise levels of training (``edm``).
        conditional: give the network class labels.
        label_dropout: share of training labels replaced by "no class", label number ``num_classes`` (Ho & Salimans
            2022: .1 or .2), so that guidance has an unconditional estimate; needs ``conditional``.
        sampling: the ODE sampler.
        optimization: optimizer, learning-rate schedule and warm-up.
        averaging: averages of the weights, and which are evaluated.
        seeds: of training and of samples; None derives them from ``--seed``.
        compile: torch.compile of the networks in the loss; the same numbers up to rounding. Samples and measurements
            stay uncompiled.
    """

    role = "teacher"
    default_optimizer = torch.optim.Adam

    def __init__(
        self,
        network: NetworkConfig,
        parameterization: Parameterization = "edm",
        sigma_data: float | None = None,
        noise: TrainingNoise = TrainingNoise(),
        conditional: bool = False,
        label_dropout: float = 0.0,
        sampling: Sampling = Sampling(),
        optimization: Optimization = Optimization(),  # noqa: B008
        averaging: Averaging = Averaging(),  # noqa: B008
        seeds: Seeds = Seeds(),  # noqa: B008
        compile: bool = False,
    ) -> None:
        super().__init__(network, optimization, averaging, seeds, compile)
        if not 0 <= label_dropout < 1 or (label_dropout and not conditional):
            hint = "give a share below 1, and model.conditional: true"
            raise InputError("model.label_dropout", label_dropout, "cannot be dropped", hint)
        self.parameterization, self.sigma_data = parameterization, sigma_data
        self.conditional, self.label_dropout = conditional, label_dropout
        self.noise, self.sampling = noise, sampling

    def prepare(self, training_set: TrainingSet) -> None:
        if self.conditional and training_set.num_classes == 0:
            raise InputError("model.conditional", True, "the data have no classes", "set it to false")
        record = self.new_record(
            training_set,
            num_classes=training_set.num_classes if self.conditional else 0,
            null_label=self.label_dropout > 0,
            sigma_data=self.sigma_data or training_set.sigma_data,
            sigma_min=SIGMA_MIN if self.parameterization == "edm" else round(VPSchedule().sigma_min, 6),
            parameterization=self.parameterization,
            sampler={"solver": self.sampling.solver, "points": self.sampling.points},
        )
        self.assemble(record, self.build_network(record))

    @classmethod
    def of(cls, record: ModelRecord, config: NetworkConfig) -> DiffusionTeacher:
        """The module that a record describes, for :meth:`assemble`."""
        sampling = Sampling(int(record.sampler["points"]), record.sampler["solver"])
        seeds = Seeds(sampling=record.sampling_seed)
        return cls(config, record.parameterization, sampling=sampling, seeds=seeds)

    def frozen(self, name: str, weights: str | None = None) -> FrozenTeacher:
        """This teacher as a student is handed it; its own weights are frozen.

        Args:
            name: as the user named it.
            weights: which to distil; None is the teacher's own choice.
        """
        self.eval().requires_grad_(False)
        denoiser = self.function(weights)
        digest = weights_digest(denoiser.network)
        return FrozenTeacher(name, denoiser, self.sampler(weights=weights), self.record, digest)

    def sigma(self, noise: StepNoise) -> Tensor:
        """Training noise levels, (B,)."""
        normal = noise.normal()
        if self.parameterization == "edm":
            return (self.noise.p_mean + self.noise.p_std * normal).exp()
        # Uniform DDPM times, from the Gaussian by its distribution function.
        uniform = torch.special.ndtr(normal)
        schedule = self.raw.scaling.schedule
        return schedule.sigma(uniform * (len(schedule.log_sigma) - 1))

    def loss(self, batch: Batch, noise: StepNoise) -> Tensor:
        sigma = self.sigma(noise)
        eps = noise.normal(self.shape)
        weight = self.raw.scaling.loss_weight(sigma)
        denoiser, labels = self.raw if self.training else self.function(), self.labels(batch)
        if self.training and self.label_dropout:
            # The last draw: without it the noise of a step is what it was.
            labels = torch.where(torch.special.ndtr(noise.normal()) < self.label_dropout, self.num_classes, labels)
        with dropout_seed(self.device, noise.dropout_seed):
            return denoising_loss(denoiser, self.images(batch), sigma, eps, weight, labels)

    @property
    def default_nfe(self) -> list[int]:
        return [self.sampler().nfe]

    def sampler(self, nfe: int | None = None, weights: str | None = None) -> OdeSampler:
        """The ODE sampler; another ``nfe`` than the default is met by another number of points N.

        Raises:
            InputError: Heun spends 2 N - 1 evaluations on N >= 2 points, Euler N: others cannot be spent.
        """
        points, step = self.sampling.points, SOLVERS[self.sampling.solver]
        if nfe is not None:
            points = nfe if step is euler_step else (nfe + 1) // 2
            if points < 2 or (step is not euler_step and nfe % 2 == 0):
                hint = "use 2 or more" if step is euler_step else "use an odd number, 3 or more"
                problem = f"the teacher's solver, {self.sampling.solver}, cannot spend that many"
                raise InputError("nfe", nfe, problem, hint)
        sigmas = sampler_sigmas(points, self.sigma_min, self.sigma_max)
        return OdeSampler(self.function(weights), sigmas, step, self.shape, self.num_classes)

    def few_step_sampler(self, mid_sigmas: Sequence[float], weights: str | None = None) -> OdeSampler:
        """Euler steps at the student's own noise levels: the control 'teacher at the student's NFE'."""
        levels = torch.tensor([self.sigma_max, *mid_sigmas, 0.0], dtype=torch.float64)
        return OdeSampler(self.function(weights), levels, euler_step, self.shape, self.num_classes)
