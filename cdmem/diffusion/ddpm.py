"""Noise schedules of DDPM (Ho et al. 2020) as sigma, and the time of a sigma."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

MAX_STEPS = 100_000  # time steps of a DDPM; a damaged record must not fill the memory
BetaSchedule = Literal["linear", "scaled_linear", "squaredcos_cap_v2"]


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
        betas, beta_start, beta_end, steps: see :func:`ddpm_betas`.

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
