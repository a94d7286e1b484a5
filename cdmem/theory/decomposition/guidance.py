"""Classifier-free guidance with the exact denoisers of a training set whose classes are known."""

from __future__ import annotations

import torch
from torch import Tensor

from cdmem.diffusion.analytic import EmpiricalDenoiser
from cdmem.diffusion.preconditioning import DenoiserLike


class Guided:
    """D_u + g (D_c - D_u); g = 1 is the conditional model, g = 0 the unconditional one.

    Args:
        unconditional: D of the whole training law.
        conditional: D of one class, labels ignored, or of all classes by label.
        scale: g.
    """

    def __init__(self, unconditional: DenoiserLike, conditional: DenoiserLike, scale: float) -> None:
        self.unconditional, self.conditional, self.scale = unconditional, conditional, scale

    def __call__(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        u = self.unconditional(x, sigma, None).double()
        return u + self.scale * (self.conditional(x, sigma, labels).double() - u)


def exact_guided(images: Tensor, weights: Tensor, members: Tensor, scale: float) -> Guided:
    """Exact denoisers of T (n, C, H, W) with multiplicities (n,), and of the class of the images ``members`` (k,)."""
    return Guided(EmpiricalDenoiser(images, weights), EmpiricalDenoiser(images[members], weights[members]), scale)


def first_overestimate(images: Tensor, weights: Tensor, target: int, scale: float, x: Tensor, sigma: float) -> Tensor:
    """a (B,) of the guided estimate at x (B, C, H, W), against the exact unconditional estimate instead of the mean:
    with a class of one image the estimate is D_u + g (x* - D_u), so that this is g exactly."""
    level = torch.full((len(x),), sigma, dtype=torch.float64)
    guided = exact_guided(images, weights, torch.tensor([target]), scale)
    base = guided.unconditional(x, level, None).double().flatten(1)
    goal = images[target].double().flatten() - base
    return ((guided(x, level).flatten(1) - base) * goal).sum(1) / (goal**2).sum(1)
