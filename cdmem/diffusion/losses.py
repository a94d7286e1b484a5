r"""Training objectives: the denoising loss of the teacher and the consistency loss of the student."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from cdmem.diffusion.noise import expand
from cdmem.diffusion.preconditioning import DenoiserLike
from cdmem.errors import InputError


class Distance(ABC):
    """How far two batches of images are apart: (B, ...), (B, ...) -> (B,)."""

    @abstractmethod
    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        """One distance per image."""


@dataclass(frozen=True)
class L2(Distance):
    """Mean squared difference over the pixels of each image."""

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        return (a - b).flatten(1).square().mean(1)


@dataclass(frozen=True)
class L1(Distance):
    """Mean absolute difference over the pixels of each image."""

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        return (a - b).flatten(1).abs().mean(1)


@dataclass(frozen=True)
class PseudoHuber(Distance):
    """sqrt(||a - b||^2 + c^2) - c on the *whole image vector* (Song & Dhariwal 2023, eq. 8).

    Args:
        c: None takes the paper's 0.00054 sqrt(d), d = pixels x channels. Applying that c per pixel, as some ports do,
            turns the distance into plain l2; 0 is the norm itself, whose gradient at a = b is 0.

    Raises:
        InputError: a negative c.
    """

    c: float | None = None

    def __post_init__(self) -> None:
        if self.c is not None and not self.c >= 0:
            raise InputError("model.method.distance.c", self.c, "must not be negative", "leave it out for the paper's")

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        delta = (a - b).flatten(1)
        if self.c == 0:
            return torch.linalg.vector_norm(delta, dim=1)
        c = self.c if self.c is not None else 0.00054 * math.sqrt(delta.shape[1])
        return (delta.square().sum(1) + c**2).sqrt() - c


def denoising_loss(
    denoiser: DenoiserLike,
    x0: Tensor,
    sigma: Tensor,
    eps: Tensor,
    weight: Tensor | float = 1.0,
    labels: Tensor | None = None,
) -> Tensor:
    """lambda(sigma) mean_pixels (D(x0 + sigma eps; sigma) - x0)^2, per sample (B,) (EDM eq. 2, mean instead of sum).

    Args:
        x0: clean images in [-1, 1], (B, C, H, W).
        sigma: noise levels (B,).
        eps: unit Gaussian noise like x0.
        weight: lambda(sigma), (B,) or a number.
    """
    x = x0 + expand(sigma, x0) * eps
    return weight * L2()(denoiser(x, sigma, labels), x0)


def consistency_loss(
    student: DenoiserLike,
    target: DenoiserLike,
    x_hi: Tensor,
    x_lo: Tensor,
    sigma_hi: Tensor,
    sigma_lo: Tensor,
    distance: Distance,
    weight: Tensor | float = 1.0,
    labels: Tensor | None = None,
) -> Tensor:
    """lambda d(f_student(x_hi; sigma_hi), stopgrad f_target(x_lo; sigma_lo)), (B,) (Song et al. 2023, eq. 7).

    Args:
        x_hi: noisy images x0 + sigma_hi eps.
        x_lo: the same points moved *down* to sigma_lo by one solver step of the teacher, or towards x0.
        weight: lambda(sigma), (B,) or a number.

    Neither output is clamped: clamping inside the loss kills gradients.
    """
    with torch.no_grad():
        goal = target(x_lo, sigma_lo, labels)
    return weight * distance(student(x_hi, sigma_hi, labels), goal.detach())
