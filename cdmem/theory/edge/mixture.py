"""The data, K Gaussians whose means lie on a sphere, and the variance-preserving process that noises them:
x_t = alpha_t x + sigma_t z with alpha = sqrt(1 - t^2), sigma = t."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cdmem.theory.settings import number


@dataclass(frozen=True)
class Sizes:
    """One (N, d, K) and s*^2.

    Attributes:
        n: training points N.
        d: dimension.
        k: components of the true mixture.
        variance: s*^2 of each, also of the sweep.
    """

    n: int = number(60, 4, 2000)
    d: int = number(50, 2, 1000)
    k: int = number(12, 1, 1000)
    variance: float = number(1.0, 1e-6, 1e6)

    def __str__(self) -> str:
        return f"N = {self.n}, d = {self.d}, K = {self.k}"

    def numbers(self) -> dict[str, int]:
        """For results.json."""
        return {"N": self.n, "d": self.d, "K": self.k}


T_MAX, T_MIN, TIMES = 0.999, 0.001, 26


def grid() -> Tensor:
    """The published times of training and sampling, .999 down to .001, float64 (26,)."""
    return torch.linspace(T_MAX, T_MIN, TIMES, dtype=torch.float64)


def alpha(t: Tensor) -> Tensor:
    """Share of the data at times t; (1 - t)(1 + t) keeps its digits near 1."""
    return ((1 - t) * (1 + t)).sqrt()


def psi(t: Tensor) -> Tensor:
    """Signal-to-noise ratio alpha^2 / sigma^2."""
    return (1 - t) * (1 + t) / t**2


def noisy(x: Tensor, t: Tensor, z: Tensor) -> Tensor:
    """x_t of data x (..., d) at times t, broadcast against x without its last axis, with noise z (..., d)."""
    t = torch.as_tensor(t, dtype=x.dtype)[..., None]
    return alpha(t) * x + t * z
