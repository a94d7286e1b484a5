"""The diffusion teacher: denoising score matching on a training set small enough to be memorised."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor

from cdmem.data.stream import Batch
from cdmem.data.subset import TrainingSet
from cdmem.diffusion.losses import denoising_loss
from cdmem.diffusion.noise import sampler_sigmas
from cdmem.diffusion.preconditioning import Denoiser
from cdmem.diffusion.sampling import OdeSampler
from cdmem.diffusion.solvers import SOLVERS, euler_step
from cdmem.diffusion.step_noise import StepNoise, dropout_seed
from cdmem.errors import InputError
from cdmem.networks.config import NetworkConfig, label_rows
from cdmem.training.module import CdmemModule, Parameterization, Schedule


class DiffusionTeacher(CdmemModule):
    """EDM (Karras et al. 2022) or DDPM (Ho et al. 2020) trained on T.

    Args:
        network: config of F, for example ``cdmem.networks.UNet``.
        parameterization: ``edm`` (ln sigma ~ N(p_mean, p_std^2), weight 1/c_out^2) or ``vp`` (uniform DDPM times, error
            of epsilon).
        sigma_data: std of the training pixels in [-1, 1]; None measures it on T.
        p_mean: mean of ln sigma in training (``edm``).
        p_std: standard deviation of ln sigma in training (``edm``).
        conditional: give the network class labels.
        label_dropout: share of training labels replaced by "no class", label number ``num_classes`` (Ho & Salimans
            2022: .1 or .2), so that guidance has an unconditional estimate; needs ``conditional``.
        sampler_points: N of the sampling grid; Heun spends 2 N - 1 evaluations.
        solver: of the sampler, ``heun`` or ``euler``.
        optimizer: e.g. ``torch.optim.Adam``.
        lr_schedule: ``cosine`` to 0 at ``trainer.max_steps``, or ``constant``.
        warmup_steps: linear ramp of the learning rate.
        ema_half_lives: of the averaged weights, in optimizer steps; several at once.
        ema_ramp: no half-life exceeds this share of the steps taken (EDM: 0.05).
        weights: evaluated weights, ``raw`` or ``ema_<half-life>``; None takes the first half-life.
        training_seed: initial weights and training noise; None derives it from ``--seed``.
        sampling_seed: first sample seed / 1,000,000; None derives it from ``--seed``.
        compile: torch.compile of the networks in the loss; the same numbers up to rounding. Samples and measurements
            stay uncompiled.
    """

    role = "teacher"

    def __init__(
        self,
        network: NetworkConfig,
        parameterization: Parameterization = "edm",
        sigma_data: float | None = None,
        p_mean: float = -1.2,
        p_std: float = 1.2,
        conditional: bool = False,
        label_dropout: float = 0.0,
        sampler_points: int = 18,
        solver: Literal["heun", "euler"] = "heun",
        optimizer: OptimizerCallable = torch.optim.Adam,
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
        if sampler_points < 2:
            raise InputError("model.sampler_points", sampler_points, "a grid needs 2 points", "use 18 or more")
        self.parameterization, self.sigma_data, self.conditional = parameterization, sigma_data, conditional
        if not 0 <= label_dropout < 1 or (label_dropout and not conditional):
            mend = "give a share below 1, and model.conditional: true"
            raise InputError("model.label_dropout", label_dropout, "cannot be dropped", mend)
        self.label_dropout = label_dropout
        self.p_mean, self.p_std = p_mean, p_std
        self.sampler_points, self.solver = sampler_points, solver

    def prepare(self, training_set: TrainingSet) -> None:
        if self.conditional and training_set.num_classes == 0:
            raise InputError("model.conditional", True, "the data have no classes", "set it to false")
        about = {
            "shape": list(training_set.shape),
            "num_classes": training_set.num_classes if self.conditional else 0,
            "sigma_data": self.sigma_data or training_set.sigma_data,
            "sigma_min": self.sigma_range(self.parameterization),
            "parameterization": self.parameterization,
            "training_set": training_set.hash,
        }
        self.assemble_teacher(about | ({"null_label": True} if self.label_dropout else {}))

    def assemble_teacher(self, about: dict[str, Any]) -> None:
        """Build the network for what ``about`` says of the data."""
        network = self.network_config.build(about["shape"], label_rows(about), self.training_seed)
        self.assemble(about, network, Denoiser)

    def sigma(self, noise: StepNoise) -> Tensor:
        """Training noise levels, (B,)."""
        normal = noise.normal()
        if self.parameterization == "edm":
            return (self.p_mean + self.p_std * normal).exp()
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
        """The ODE sampler; an odd ``nfe`` other than the default is met by Heun with fewer points (2 N - 1 = nfe)."""
        points = self.sampler_points
        step = SOLVERS[self.solver]
        if nfe is not None:
            points = nfe if step is euler_step else (nfe + 1) // 2
            if points < 2 or (step is not euler_step and nfe % 2 == 0):
                raise InputError("nfe", nfe, "this sampler cannot spend that many", "Heun: an odd number >= 3")
        sigmas = sampler_sigmas(points, self.sigma_min, self.sigma_max)
        return OdeSampler(self.function(weights), sigmas, step, self.shape, self.num_classes)

    def few_step_sampler(self, mid_sigmas: Sequence[float], weights: str | None = None) -> OdeSampler:
        """Euler steps at the student's own noise levels: the control 'teacher at the student's NFE'."""
        levels = torch.tensor([self.sigma_max, *mid_sigmas, 0.0], dtype=torch.float64)
        return OdeSampler(self.function(weights), levels, euler_step, self.shape, self.num_classes)

    def extra_record(self) -> dict[str, Any]:
        return {"sampler_points": self.sampler_points, "solver": self.solver}
