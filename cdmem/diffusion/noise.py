r"""Noise levels: the Karras grid, training distributions of sigma, discretisation curricula.

Notation (EDM, Karras et al. 2022, arXiv 2206.00364): ``x = x0 + sigma * eps``; the consistency papers' time t equals
sigma here. A grid of N *points* has N - 1 *intervals*; it decreases from ``sigma_max`` to ``sigma_min``.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

SIGMA_MIN, SIGMA_MAX, RHO = 0.002, 80.0, 7.0
MAX_STEPS = 100_000  # time steps of a DDPM; a damaged record must not fill the memory

IntervalDistribution = Literal["uniform", "lognormal"]
Curriculum = Literal["fixed", "doubling", "sqrt"]
BetaSchedule = Literal["linear", "scaled_linear", "squaredcos_cap_v2"]


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
        self.betas: BetaSchedule = "linear"
        self.beta_start, self.beta_end, self.steps = beta_start, beta_end, steps
        alpha_bar = torch.cumprod(1 - torch.linspace(beta_start, beta_end, steps, dtype=torch.float64), 0)
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


def ddpm_betas(kind: BetaSchedule, beta_start: float, beta_end: float, steps: int) -> Tensor:
    """The named beta schedules of DDPM implementations, float32 (steps,), as networks were trained with them.

    ``linear`` is Ho et al. 2020; ``scaled_linear`` is linear in sqrt(beta) (latent diffusion); ``squaredcos_cap_v2`` is
    Nichol & Dhariwal 2021, eq. 17, with betas capped at 0.999 (it uses neither ``beta_start`` nor ``beta_end``).

    Raises:
        ValueError: another name.
    """
    if kind == "linear":
        return torch.linspace(beta_start, beta_end, steps, dtype=torch.float32)
    if kind == "scaled_linear":
        return torch.linspace(beta_start**0.5, beta_end**0.5, steps, dtype=torch.float32) ** 2
    if kind == "squaredcos_cap_v2":
        bar = [math.cos((t / steps + 0.008) / 1.008 * math.pi / 2) ** 2 for t in range(steps + 1)]
        return torch.tensor([min(1 - b / a, 0.999) for a, b in pairwise(bar)], dtype=torch.float32)
    raise ValueError(f"unknown beta schedule {kind!r}")


class DDPMSchedule(VPSchedule):
    """The noise levels of somebody else's DDPM, from its own named betas.

    The cumulative product is taken in float32 like theirs, so that an integer time step means the level it was trained
    at; everything after it is float64.

    Args:
        betas: see :func:`ddpm_betas`.
        beta_start: first beta.
        beta_end: last beta.
        steps: number of time steps T.

    Raises:
        ValueError: more than :data:`MAX_STEPS` steps, or levels that do not grow from above 0 to a finite one (a zero
            terminal signal-to-noise ratio).
    """

    def __init__(self, betas: BetaSchedule, beta_start: float, beta_end: float, steps: int) -> None:
        if not 2 <= steps <= MAX_STEPS:
            raise ValueError(f"{steps} time steps are not 2 to {MAX_STEPS}")
        self.betas, self.beta_start, self.beta_end, self.steps = betas, beta_start, beta_end, steps
        self.alpha_bar = torch.cumprod(1.0 - ddpm_betas(betas, beta_start, beta_end, steps), 0)
        wide = self.alpha_bar.double()
        self.log_sigma = ((1 - wide) / wide).sqrt().log()
        if not bool(self.log_sigma.isfinite().all()) or not bool((self.log_sigma.diff() > 0).all()):
            raise ValueError("the noise levels of these betas do not grow from above 0 to a finite one")
