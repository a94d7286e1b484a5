r"""Preconditioning: how a network F becomes a denoiser D(x; sigma) or a consistency function f(x; sigma).

.. math:: D(x; \sigma) = c_{skip} x + c_{out} F(c_{in} x, c_{noise})

Teacher and student share ``c_in`` and ``c_noise`` because the student starts from the teacher's weights. Only the
network may run in low precision: everything else here is float32 whatever autocast says.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from cdmem.diffusion.ddpm import DDPMSchedule, VPSchedule
from cdmem.diffusion.noise import expand

NOISE_FACTOR = 250.0
Prediction = Literal["epsilon", "v_prediction", "sample"]


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
        noise_factor: c_noise / ln(sigma); 0.25 is EDM's own and that of diffusers' EDM schedulers.
        prediction: what F gives: ``epsilon`` (EDM's F) or ``v_prediction``, which is -F (diffusers' EDM schedulers).
    """

    def __init__(
        self,
        sigma_data: float,
        sigma_min: float,
        noise_factor: float = NOISE_FACTOR,
        prediction: Literal["epsilon", "v_prediction"] = "epsilon",
    ) -> None:
        if prediction not in ("epsilon", "v_prediction"):
            raise ValueError(f"unknown prediction {prediction!r}")
        self.sigma_data, self.sigma_min = sigma_data, sigma_min
        self.noise_factor, self.prediction = noise_factor, prediction
        self.amplitude = sigma_data if prediction == "epsilon" else -sigma_data

    def denoiser(self, sigma: Tensor) -> Scalings:
        s2, d2 = sigma**2, self.sigma_data**2
        total = (s2 + d2).sqrt()
        return Scalings(d2 / (s2 + d2), sigma * self.amplitude / total, 1 / total, self.noise_factor * sigma.log())

    def consistency(self, sigma: Tensor) -> Scalings:
        """Song et al. 2023, app. C: shifted by sigma_min so that c_skip = 1 and c_out = 0 there, exactly."""
        base = self.denoiser(sigma)
        shifted, d2 = sigma - self.sigma_min, self.sigma_data**2
        c_skip = d2 / (shifted**2 + d2)
        c_out = self.amplitude * shifted / (sigma**2 + d2).sqrt()
        return Scalings(c_skip, c_out, base.c_in, base.c_noise)

    def loss_weight(self, sigma: Tensor) -> Tensor:
        """lambda(sigma) = 1 / c_out^2: the network's target has unit variance (EDM eq. 8)."""
        return (sigma**2 + self.sigma_data**2) / (sigma * self.sigma_data) ** 2


class VPScaling:
    r"""A DDPM network in EDM notation, x = x_VP / sqrt(abar) (EDM, table 1, VP; Salimans & Ho 2022 for v).

    .. math:: D = x - \sigma F,\quad D = \frac{x}{1+\sigma^2} - \frac{\sigma F}{\sqrt{1+\sigma^2}},\quad D = F

    for ``epsilon``, ``v_prediction`` and ``sample``, with :math:`F(x / \sqrt{1 + \sigma^2}, t(\sigma))`.

    Args:
        sigma_min: smallest noise level; 0.01 for the usual betas, not EDM's 0.002.
        schedule: levels of the time steps; cdmem's own linear one by default.
        prediction: what F gives.
    """

    def __init__(
        self, sigma_min: float, schedule: VPSchedule | None = None, prediction: Prediction = "epsilon"
    ) -> None:
        if prediction not in ("epsilon", "v_prediction", "sample"):
            raise ValueError(f"unknown prediction {prediction!r}")
        self.sigma_min, self.prediction = sigma_min, prediction
        self.schedule = schedule or VPSchedule()

    def denoiser(self, sigma: Tensor) -> Scalings:
        total = 1 + sigma**2
        c_in, time, one = 1 / total.sqrt(), self.schedule.time(sigma), torch.ones_like(sigma)
        if self.prediction == "v_prediction":
            return Scalings(1 / total, -sigma / total.sqrt(), c_in, time)
        if self.prediction == "sample":
            return Scalings(torch.zeros_like(sigma), one, c_in, time)
        return Scalings(one, -sigma, c_in, time)

    def consistency(self, sigma: Tensor) -> Scalings:
        """f = x + (1 - sigma_min / sigma) (D - x): the Euler step of the ODE from sigma to sigma_min. The identity
        there, the denoiser far from it; for ``epsilon`` it reads x - (sigma - sigma_min) F."""
        base = self.denoiser(sigma)
        shifted = sigma - self.sigma_min
        if self.prediction == "epsilon":
            return base._replace(c_out=-shifted)
        share = shifted / sigma
        return base._replace(c_skip=1 - share * (1 - base.c_skip), c_out=share * base.c_out)

    def loss_weight(self, sigma: Tensor) -> Tensor:
        """1 / sigma^2 turns the error of D into the error of epsilon (Ho et al. 2020, L_simple)."""
        return 1 / sigma**2


Scaling = EDMScaling | VPScaling


def make_scaling(about: Mapping[str, Any]) -> Scaling:
    """The preconditioning that a model's record describes.

    Args:
        about: ``parameterization`` (``edm`` or ``vp``), ``sigma_data``, ``sigma_min``, and for networks from elsewhere
            ``scaling``: ``noise_factor`` and ``prediction`` (EDM), ``prediction`` and ``schedule`` (VP), the schedule
            as the arguments of :class:`~cdmem.diffusion.ddpm.DDPMSchedule`.

    Raises:
        TypeError, ValueError: a record that means nothing.
    """
    options = dict(about.get("scaling") or {})
    if about["parameterization"] == "edm":
        return EDMScaling(about["sigma_data"], about["sigma_min"], **options)
    if about["parameterization"] != "vp":
        raise ValueError(f"unknown parameterization {about['parameterization']!r}")
    schedule = options.pop("schedule", None)
    return VPScaling(about["sigma_min"], DDPMSchedule(**schedule) if schedule else None, **options)


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
