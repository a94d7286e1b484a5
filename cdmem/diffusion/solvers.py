r"""One step of the probability-flow ODE dx/dsigma = (x - D(x; sigma)) / sigma, with one sigma per sample.

The student's teacher step and the teacher's sampler call the same functions.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from cdmem.diffusion.noise import expand
from cdmem.diffusion.preconditioning import DenoiserLike

SolverStep = Callable[[DenoiserLike, Tensor, Tensor, Tensor, Tensor | None], Tensor]


def slope(denoiser: DenoiserLike, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
    """(x - D(x; sigma)) / sigma in the dtype of x; sigma (B,) must be positive."""
    return (x - denoiser(x, sigma, labels).to(x.dtype)) / expand(sigma.to(x.dtype), x)


def euler_step(
    denoiser: DenoiserLike, x: Tensor, sigma: Tensor, sigma_next: Tensor, labels: Tensor | None = None
) -> Tensor:
    """First order: x + (sigma_next - sigma) d. One evaluation of the denoiser."""
    d = slope(denoiser, x, sigma, labels)
    return x + expand((sigma_next - sigma).to(x.dtype), x) * d


def heun_step(
    denoiser: DenoiserLike, x: Tensor, sigma: Tensor, sigma_next: Tensor, labels: Tensor | None = None
) -> Tensor:
    """Second order (EDM alg. 1): the mean slope of both ends. Two evaluations; samples whose ``sigma_next`` is 0 keep
    the Euler step, and if all are 0 the second evaluation is skipped."""
    h = expand((sigma_next - sigma).to(x.dtype), x)
    d = slope(denoiser, x, sigma, labels)
    euler = x + h * d
    last = sigma_next <= 0
    if bool(last.all()):
        return euler
    safe_next = torch.where(last, sigma, sigma_next)
    d_next = slope(denoiser, euler, safe_next, labels)
    heun = x + h * (d + d_next) / 2
    return torch.where(expand(last, x), euler, heun)


SOLVERS: dict[str, SolverStep] = {"heun": heun_step, "euler": euler_step}
