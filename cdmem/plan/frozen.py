"""The teacher of a student, on the meta device: a stage's, a checkpoint's, or a closed form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from cdmem.diffusion.analytic import build_analytic
from cdmem.diffusion.noise import SIGMA_MAX, SIGMA_MIN, sampler_sigmas
from cdmem.diffusion.preconditioning import DenoiserLike
from cdmem.diffusion.sampling import OdeSampler
from cdmem.diffusion.solvers import heun_step
from cdmem.errors import InputError
from cdmem.models.flops import META, forward_flops, tensor_bytes
from cdmem.models.load import load_model
from cdmem.plan.images import Facts
from cdmem.training.teacher import DiffusionTeacher


@dataclass(frozen=True)
class Frozen:
    """A teacher as its student sees it.

    Attributes:
        denoiser: D on the meta device.
        forward: FLOPs of one evaluation per image.
        nfe: of its full sampler.
        parameters: of everything that is held of it: its raw weights and all averages.
        size: the same in bytes, buffers included.
        sigma_max: where its noise begins.
        about: what a student inherits; None for closed forms.
    """

    denoiser: DenoiserLike
    forward: int
    nfe: int
    parameters: int
    size: int
    sigma_max: float = SIGMA_MAX
    about: dict[str, Any] | None = None


def frozen(teacher: DiffusionTeacher, weights: str | None, forward: int | None = None) -> Frozen:
    """An assembled teacher on the meta device, with the weights that are distilled; ``forward`` if already counted."""
    denoiser, nfe = teacher.function(weights), teacher.sampler(weights=weights).nfe
    forward = forward or forward_flops(denoiser, teacher.shape, teacher.num_classes)
    held = sum(p.numel() for p in teacher.parameters())
    return Frozen(denoiser, forward, nfe, held, tensor_bytes(teacher), teacher.sigma_max, dict(teacher.about))


def frozen_analytic(name: str, known: Facts) -> Frozen:
    """A closed-form teacher of a training set of this size."""
    with META:
        denoiser = build_analytic(name, torch.zeros(known.n, *known.shape), torch.ones(known.n))
    grid = sampler_sigmas(18, SIGMA_MIN, SIGMA_MAX)  # as Student.prepare builds it
    nfe = OdeSampler(denoiser, grid, heun_step, known.shape).nfe
    return Frozen(denoiser, forward_flops(denoiser, known.shape), nfe, 0, tensor_bytes(denoiser))


def frozen_checkpoint(path: str, weights: str | None) -> Frozen:
    """The teacher of a checkpoint or run folder; its weights are dropped after reading.

    Raises:
        InputError: no readable teacher there.
    """
    module = load_model(path, "model.teacher")
    if not isinstance(module, DiffusionTeacher):
        raise InputError("model.teacher", path, f"is a {module.role}", "give a teacher's checkpoint")
    return frozen(module.to("meta"), weights)
