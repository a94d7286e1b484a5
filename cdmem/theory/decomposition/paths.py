"""Sampling paths with every state and estimate, in the variance-preserving frame that the decomposition is written in,
and classifier-free guidance with exact denoisers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cdmem.diffusion.analytic import EmpiricalDenoiser
from cdmem.diffusion.preconditioning import DenoiserLike
from cdmem.diffusion.sampling import NoiseSource


@dataclass(frozen=True)
class Path:
    """Euler's walk of the probability-flow ODE (DDIM with eta = 0): decreasing levels (K + 1,), the last 0; x at each,
    variance-exploding frame (x_0 + sigma noise), (K + 1, B, size), float64; D(x; sigma) at the first K, (K, B, size).
    """

    sigmas: Tensor
    states: Tensor
    clean: Tensor

    @property
    def alphas(self) -> Tensor:
        """alpha = 1 / sqrt(1 + sigma^2) of each level: alpha times a state is the variance-preserving x_t."""
        return 1 / (1 + self.sigmas**2).sqrt()


def noise_of(seed: int, count: int, images: Tensor) -> NoiseSource:
    """The noise of ``count`` paths of a seed, in the shape of the images (n, C, H, W)."""
    return NoiseSource(range(seed * 10**6, seed * 10**6 + count), tuple(images.shape[1:]), "cpu")


@torch.no_grad()
def walk(denoiser: DenoiserLike, start: Tensor, sigmas: Tensor, labels: Tensor | None = None) -> Path:
    """From noise ``start`` (B, C, H, W) at sigmas[0] down to 0, one evaluation a level."""
    x = start.double()
    states, clean = [x.flatten(1)], []
    for sigma, after in zip(sigmas[:-1].tolist(), sigmas[1:].tolist()):
        level = torch.full((len(x),), sigma, dtype=torch.float64)
        D = denoiser(x, level, labels).double()
        x = D + (after / sigma) * (x - D)
        states.append(x.flatten(1))
        clean.append(D.flatten(1))
    return Path(sigmas.double(), torch.stack(states), torch.stack(clean))


def exact_schedule(sigmas: Tensor) -> tuple[Tensor, Tensor]:
    """w_0 and w_T (K,) of a sampler whose estimate is the target at every step, in the variance-preserving frame.

    w_0 = alpha_t - alpha_T s_t / s_T and w_T = s_t / s_T with s = sqrt(1 - alpha^2): the exact form, which at alpha_T >
    0 differs from the usual (alpha_t, s_t).
    """
    alphas = 1 / (1 + sigmas**2).sqrt()
    spread = sigmas * alphas
    return alphas - alphas[0] * spread / spread[0], spread / spread[0]


class Guided:
    """D_u + g (D_c - D_u); g = 1 is the conditional model, g = 0 the unconditional one, D of the whole training law.
    D_c is D of one class, labels ignored, or of all classes by label."""

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
