"""The frozen teacher that a student is handed: a trained network, or an analytic denoiser of the training set."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from cdmem.data.subset import TrainingSet
from cdmem.diffusion.analytic import build_analytic
from cdmem.diffusion.noise import SIGMA_MAX, SIGMA_MIN, sampler_sigmas
from cdmem.diffusion.sampling import OdeSampler
from cdmem.diffusion.solvers import heun_step
from cdmem.images import to_float
from cdmem.training.record import ModelRecord

ANALYTIC = "analytic:"


@dataclass
class FrozenTeacher:
    """A teacher that is neither optimised, averaged, nor saved again.

    Attributes:
        name: as the user named it.
        denoiser: D(x; sigma), without gradients, in eval mode.
        sampler: the teacher's own full ODE sampler.
        record: what the student inherits.
        digest: which weights these are, wherever their file lies.
    """

    name: str
    denoiser: nn.Module
    sampler: OdeSampler
    record: ModelRecord
    digest: str


def analytic_teacher(name: str, training_set: TrainingSet) -> FrozenTeacher:
    """``analytic:empirical``, ``analytic:gaussian`` or ``analytic:partial:FRACTION`` on a training set.

    Raises:
        InputError: no such analytic teacher.
    """
    denoiser = build_analytic(name, to_float(training_set.images), training_set.multiplicities)
    denoiser = denoiser.eval().requires_grad_(False)
    sampler = OdeSampler(denoiser, sampler_sigmas(18, SIGMA_MIN, SIGMA_MAX), heun_step, training_set.shape)
    record = ModelRecord(
        role="teacher",
        shape=training_set.shape,
        num_classes=0,
        sigma_data=training_set.sigma_data,
        sigma_min=SIGMA_MIN,
        sigma_max=SIGMA_MAX,
        parameterization="edm",
        network={},
        sampler={"solver": "heun", "points": 18},
        weights="raw",
        training_set=training_set.hash,
    )
    return FrozenTeacher(name, denoiser, sampler, record, digest=name)
