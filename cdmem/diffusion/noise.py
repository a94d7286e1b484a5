"""Noise levels: the Karras grid and training distributions of sigma.

Notation (EDM, Karras et al. 2022, arXiv 2206.00364): ``x = x0 + sigma * eps``; the consistency papers' time t equals
sigma here. A grid of N *points* has N - 1 *intervals*; it decreases from ``sigma_max`` to ``sigma_min``.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

SIGMA_MIN, SIGMA_MAX, RHO = 0.002, 80.0, 7.0

IntervalDistribution = Literal["uniform", "lognormal"]


def expand(sigma: Tensor, x: Tensor) -> Tensor:
    """Shape (B,) to (B, 1, ..., 1) so that it multiplies x of shape (B, ...) per sample."""
    return sigma.reshape(-1, *([1] * (x.ndim - 1)))


def karras_sigmas(points: int, sigma_min: float = SIGMA_MIN, sigma_max: float = SIGMA_MAX, rho: float = RHO) -> Tensor:
    """Grid of EDM eq. 5 in float64, shape (points,), strictly decreasing, both ends exact.

    The ends are overwritten: the formula returns them only to rounding, and the consistency function is the identity
    at exactly ``sigma_min``.
    """
    if points < 2:
        raise ValueError(f"a grid needs at least 2 points, got {points}")
    ramp = torch.linspace(0, 1, points, dtype=torch.float64)
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    sigmas = (high + ramp * (low - high)) ** rho
    sigmas[0], sigmas[-1] = sigma_max, sigma_min
    return sigmas


def sampler_sigmas(points: int, sigma_min: float = SIGMA_MIN, sigma_max: float = SIGMA_MAX, rho: float = RHO) -> Tensor:
    """Karras grid followed by 0: (points + 1,), what an ODE sampler walks down."""
    return torch.cat([karras_sigmas(points, sigma_min, sigma_max, rho), torch.zeros(1, dtype=torch.float64)])


def interval_probabilities(
    sigmas: Tensor, distribution: IntervalDistribution, p_mean: float = -1.1, p_std: float = 2.0
) -> Tensor:
    """Probability of each of the N - 1 intervals of a decreasing grid, float64, sums to 1.

    ``uniform`` is Song et al. 2023; ``lognormal`` the discretised log-normal of Song & Dhariwal 2023 (iCT), eq. 10:
    the mass of N(p_mean, p_std^2) between the logarithms of both ends.
    """
    if distribution == "uniform":
        return torch.full((len(sigmas) - 1,), 1.0 / (len(sigmas) - 1), dtype=torch.float64)
    cdf = torch.erf((sigmas.double().log() - p_mean) / (math.sqrt(2.0) * p_std))
    mass = cdf[:-1] - cdf[1:]
    return mass / mass.sum()
