r"""Noise levels: the Karras grid, training distributions of sigma, discretisation curricula.

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
Curriculum = Literal["fixed", "doubling", "sqrt"]


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


def lognormal_sigma(
    count: int, p_mean: float, p_std: float, generator: torch.Generator, device: torch.device | None = None
) -> Tensor:
    """Training noise levels ln sigma ~ N(p_mean, p_std^2) (EDM table 1), shape (count,), float32."""
    normal = torch.randn(count, generator=generator, device=device)
    return (p_mean + p_std * normal).exp()


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


def num_points(step: int, total_steps: int, curriculum: Curriculum, start: int, end: int) -> int:
    """Grid points N at an optimizer step: a pure function of the step, so a resumed run and all ranks agree.

    Args:
        step: optimizer steps taken so far.
        total_steps: K, the planned number of steps.
        curriculum: ``fixed`` keeps ``end`` points. ``doubling`` is iCT:
            N = min(s0 2^floor(k/K'), s1) + 1 with K' = floor(K / (log2 floor(s1/s0) + 1)). ``sqrt`` is Song et al.
            2023, app. C: N = ceil(sqrt(k/K ((s1+1)^2 - s0^2) + s0^2) - 1) + 1.
        start: s0.
        end: s1; for ``fixed`` the number of points itself.
    """
    if curriculum == "fixed":
        return end
    step = min(step, total_steps)
    if curriculum == "doubling":
        stages = math.log2(max(end // start, 1)) + 1
        length = max(int(total_steps / stages), 1)
        # The exponent is capped so that a long run cannot overflow into huge integers.
        return min(start * 2 ** min(step // length, 30), end) + 1
    if curriculum == "sqrt":
        inside = step / max(total_steps, 1) * ((end + 1) ** 2 - start**2) + start**2
        return max(math.ceil(math.sqrt(inside) - 1) + 1, 2)
    raise ValueError(f"unknown curriculum {curriculum!r}")


def adaptive_mu(points: int, start: int, mu_start: float) -> float:
    """Target rate mu(k) = exp(s0 ln mu0 / N(k)) of Song et al. 2023 (the paper's form; their code divides by N - 1)."""
    return math.exp(start * math.log(mu_start) / points)


class VPSchedule:
    """The linear DDPM schedule seen as noise levels: sigma_t = sqrt((1 - abar_t) / abar_t).

    With the usual betas (1e-4 to 0.02, 1000 steps) sigma runs from 0.0100 to 157.4. Times between two steps come from
    interpolation of ln sigma (Ho et al. 2020; VP-VE map as in EDM, section 3).
    """

    def __init__(self, beta_start: float = 1e-4, beta_end: float = 0.02, steps: int = 1000) -> None:
        betas = torch.linspace(beta_start, beta_end, steps, dtype=torch.float64)
        alpha_bar = torch.cumprod(1 - betas, 0)
        self.log_sigma = (((1 - alpha_bar) / alpha_bar).sqrt()).log()

    @property
    def sigma_min(self) -> float:
        return float(self.log_sigma[0].exp())

    @property
    def sigma_max(self) -> float:
        return float(self.log_sigma[-1].exp())

    def time(self, sigma: Tensor) -> Tensor:
        """Fractional timestep in [0, steps - 1] of each sigma; shape and device kept, float32."""
        table = self.log_sigma.to(sigma.device)
        value = sigma.double().clamp_min(1e-12).log().contiguous()
        right = torch.searchsorted(table, value).clamp(1, len(table) - 1)
        left = right - 1
        fraction = (value - table[left]) / (table[right] - table[left])
        return (left + fraction).clamp(0, len(table) - 1).float()

    def sigma(self, time: Tensor) -> Tensor:
        """Noise level of each (fractional) timestep, float32."""
        table = self.log_sigma.to(time.device)
        left = time.long().clamp(0, len(table) - 2)
        fraction = time.double() - left
        return (table[left] + fraction * (table[left + 1] - table[left])).exp().float()
