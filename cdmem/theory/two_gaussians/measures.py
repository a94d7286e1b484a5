"""What is measured on samples of a known density: distance to it, and copies of the training points."""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.special import digamma
from torch import Tensor

from cdmem.theory.measures import COPY_RATIO, nearest_two


def draw(count: int, dim: int, generator: torch.Generator) -> Tensor:
    """(count, dim) points of P_0 = (N(1_d, I) + N(-1_d, I)) / 2, float32."""
    signs = torch.randint(0, 2, (count, 1), generator=generator) * 2 - 1
    return signs + torch.randn(count, dim, generator=generator)


def log_density(x: Tensor) -> Tensor:
    """ln P_0 of points (..., d) in nats, float64."""
    x = x.double()
    parts = torch.stack([-((x - mean) ** 2).sum(-1) / 2 for mean in (1.0, -1.0)])
    return torch.logsumexp(parts, 0) - math.log(2) - x.shape[-1] / 2 * math.log(2 * math.pi)


def entropy(x: Tensor) -> Tensor:
    """Differential entropy of samples (..., S, d) in nats, by their nearest neighbours (Kozachenko & Leonenko 1987):
    psi(S) - psi(1) + ln(volume of the unit ball) + d mean ln r. Copies of one point make it fall without bound."""
    x = x.double()
    count, dim = x.shape[-2:]
    far = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
    far.diagonal(dim1=-2, dim2=-1).fill_(math.inf)
    radius = far.amin(-1).clamp_min(1e-300)
    ball = dim / 2 * math.log(math.pi) - math.lgamma(dim / 2 + 1)
    return float(digamma(count)) + np.euler_gamma + ball + dim * radius.log().mean(-1)


def divergence(samples: Tensor) -> Tensor:
    """KL(P_theta | P_0) in nats of samples (..., S, d): exact cross-entropy to P_0 less the estimated entropy.

    Exact samples of P_0 give a small number around 0, which the laboratory prints beside it.
    """
    return -log_density(samples).mean(-1) - entropy(samples)


def copied(samples: Tensor, data: Tensor) -> Tensor:
    """Share of samples (..., S, d) whose nearest training point (..., n, d) is nearer than a third of the second's
    distance, not squared. Shape (...)."""
    distances, _ = nearest_two(samples, data)
    return (distances[..., 0] < COPY_RATIO * distances[..., 1]).double().mean(-1)
