"""Sampling paths with everything on them kept, in the variance-preserving frame that the decomposition is written
in."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cdmem.diffusion.preconditioning import DenoiserLike


@dataclass(frozen=True)
class Path:
    """Euler's walk of the probability-flow ODE (DDIM with eta = 0).

    Attributes:
        sigmas: (K + 1,), decreasing, the last 0.
        states: x at each of the K + 1 levels, variance-exploding frame (x_0 + sigma noise), (K + 1, B, size), float64.
        clean: D(x; sigma) at the first K levels, (K, B, size).
    """

    sigmas: Tensor
    states: Tensor
    clean: Tensor

    @property
    def alphas(self) -> Tensor:
        """alpha = 1 / sqrt(1 + sigma^2) of each level: alpha times a state is the variance-preserving x_t."""
        return 1 / (1 + self.sigmas**2).sqrt()


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
