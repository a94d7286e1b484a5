"""The variance-preserving process x_t = alpha_t x + sigma_t z, alpha = sqrt(1 - t^2), sigma = t."""

from __future__ import annotations

import torch
from torch import Tensor

T_MAX, T_MIN, TIMES = 0.999, 0.001, 26


def grid(count: int = TIMES) -> Tensor:
    """The published times of training and sampling, .999 down to .001, float64 (count,)."""
    return torch.linspace(T_MAX, T_MIN, count, dtype=torch.float64)


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
