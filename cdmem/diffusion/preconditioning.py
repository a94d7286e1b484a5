r"""Preconditioning: how a network F becomes a denoiser D(x; sigma) or a consistency function f(x; sigma).

.. math:: D(x; \sigma) = c_{skip} x + c_{out} F(c_{in} x, c_{noise})

Teacher and student share ``c_in`` and ``c_noise`` because the student starts from the teacher's weights. Only the
network may run in low precision: everything else here is float32 whatever autocast says.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from cdmem.diffusion.noise import VPSchedule, expand


class DenoiserLike(Protocol):
    """Anything that maps noisy images (B, C, H, W) and levels (B,) to clean images: networks, analytic teachers."""

    def __call__(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor: ...


class Scalings(NamedTuple):
    """Per-sample factors, each of shape (B,)."""

    c_skip: Tensor
    c_out: Tensor
    c_in: Tensor
    c_noise: Tensor


class EDMScaling:
    """EDM, table 1. ``c_noise = 1000 ln(sigma) / 4``: the factor 1000 matches diffusers' consistency scheduler and the
    integer-step range that its positional embedding was made for.

    Args:
        sigma_data: standard deviation of the training pixels in [-1, 1].
        sigma_min: smallest noise level; where the consistency form is the identity.
    """

    def __init__(self, sigma_data: float, sigma_min: float) -> None:
        self.sigma_data, self.sigma_min = sigma_data, sigma_min

    def denoiser(self, sigma: Tensor) -> Scalings:
        s2, d2 = sigma**2, self.sigma_data**2
        total = (s2 + d2).sqrt()
        return Scalings(d2 / (s2 + d2), sigma * self.sigma_data / total, 1 / total, 250.0 * sigma.log())

    def consistency(self, sigma: Tensor) -> Scalings:
        """Song et al. 2023, app. C: shifted by sigma_min so that c_skip = 1 and c_out = 0 there, exactly."""
        base = self.denoiser(sigma)
        shifted, d2 = sigma - self.sigma_min, self.sigma_data**2
        c_skip = d2 / (shifted**2 + d2)
        c_out = self.sigma_data * shifted / (sigma**2 + d2).sqrt()
        return Scalings(c_skip, c_out, base.c_in, base.c_noise)

    def loss_weight(self, sigma: Tensor) -> Tensor:
        """lambda(sigma) = 1 / c_out^2: the network's target has unit variance (EDM eq. 8)."""
        return (sigma**2 + self.sigma_data**2) / (sigma * self.sigma_data) ** 2


class VPScaling:
    """DDPM's epsilon network in EDM notation: D = x - sigma * F(x / sqrt(1 + sigma^2), t(sigma)) (EDM, table 1, VP).

    Args:
        sigma_min: smallest noise level; 0.01 for the usual betas, not EDM's 0.002.
    """

    def __init__(self, sigma_min: float, schedule: VPSchedule | None = None) -> None:
        self.sigma_min = sigma_min
        self.schedule = schedule or VPSchedule()

    def denoiser(self, sigma: Tensor) -> Scalings:
        return Scalings(torch.ones_like(sigma), -sigma, 1 / (1 + sigma**2).sqrt(), self.schedule.time(sigma))

    def consistency(self, sigma: Tensor) -> Scalings:
        """f = x - (sigma - sigma_min) F: the identity at sigma_min, the denoiser far from it."""
        base = self.denoiser(sigma)
        return base._replace(c_out=-(sigma - self.sigma_min))

    def loss_weight(self, sigma: Tensor) -> Tensor:
        """1 / sigma^2 turns the error of D into the error of epsilon (Ho et al. 2020, L_simple)."""
        return 1 / sigma**2


Scaling = EDMScaling | VPScaling


class Denoiser(nn.Module):
    """D(x; sigma) of a network; the teacher's form.

    Args:
        network: F(x, c_noise, labels) -> same shape as x.
        scaling: :class:`EDMScaling` or :class:`VPScaling`.
    """

    def __init__(self, network: nn.Module, scaling: Scaling) -> None:
        super().__init__()
        self.network = network
        self.scaling = scaling

    def scalings(self, sigma: Tensor) -> Scalings:
        return self.scaling.denoiser(sigma)

    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        """x (B, C, H, W) float, sigma (B,); returns float32 (B, C, H, W)."""
        sigma = sigma.to(torch.float32)
        x = x.to(torch.float32)
        c_skip, c_out, c_in, c_noise = self.scalings(sigma)
        raw = self.network(expand(c_in, x) * x, c_noise, labels).to(torch.float32)
        return expand(c_skip, x) * x + expand(c_out, x) * raw


class ConsistencyFunction(Denoiser):
    """f(x; sigma), the identity at sigma_min bit for bit; the student's form of the same network."""

    def scalings(self, sigma: Tensor) -> Scalings:
        return self.scaling.consistency(sigma)
