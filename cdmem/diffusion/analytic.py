r"""Exact denoisers: E[x0 | x0 + sigma eps] of distributions known in closed form.

They are teachers without training error (``model.teacher: analytic:empirical``) and the truth that tests compare with.
All work in float64 and return float64.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from cdmem.errors import InputError

NAMES = "analytic:empirical, analytic:gaussian, analytic:partial:FRACTION"


class MixtureDenoiser(nn.Module):
    r"""Mixture of isotropic Gaussians sum_k w_k N(m_k, v_k I):

    .. math:: D(x; \sigma) = \sum_k r_k(x) \left[m_k + \frac{v_k}{v_k+\sigma^2}(x - m_k)\right],\quad
              r_k \propto w_k\, N(x; m_k, (v_k+\sigma^2) I)

    Args:
        means: (K, C, H, W).
        variances: (K,), zero for a point mass.
        weights: (K,), any positive numbers.
    """

    means: Tensor
    variances: Tensor
    log_weights: Tensor

    def __init__(self, means: Tensor, variances: Tensor, weights: Tensor) -> None:
        super().__init__()
        self.register_buffer("means", means.double())
        self.register_buffer("variances", variances.double())
        self.register_buffer("log_weights", weights.double().log() - weights.double().sum().log())

    def responsibilities(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Posterior probability of each component, (B, K), by log-sum-exp."""
        flat, means = x.double().flatten(1), self.means.flatten(1)
        total = self.variances + sigma.double()[:, None] ** 2
        # Direct differences: the expanded form would cancel where x is almost a training image.
        squared = torch.stack([(flat - m).square().sum(1) for m in means], 1)
        logits = self.log_weights - squared / (2 * total) - 0.5 * flat.shape[1] * total.log()
        return torch.softmax(logits, 1)

    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        """x (B, C, H, W), sigma (B,) positive; labels are ignored (the exact law is that of all classes)."""
        r = self.responsibilities(x, sigma)
        shrink = self.variances / (self.variances + sigma.double()[:, None] ** 2)
        flat, means = x.double().flatten(1), self.means.flatten(1)
        # sum_k r_k [(1 - s_k) m_k + s_k x]
        mixed = (r * (1 - shrink)) @ means + (r * shrink).sum(1, keepdim=True) * flat
        return mixed.reshape(x.shape)


class EmpiricalDenoiser(MixtureDenoiser):
    """The optimum of the denoising loss on a finite training set: it memorises by construction.

    Args:
        x0: unique images in [-1, 1], (n, C, H, W).
        multiplicities: copies of each, (n,).
    """

    def __init__(self, x0: Tensor, multiplicities: Tensor | None = None) -> None:
        weights = torch.ones(len(x0)) if multiplicities is None else multiplicities
        super().__init__(x0, torch.zeros(len(x0)), weights)


class PartialMemorizer(MixtureDenoiser):
    """Memorises the first ``fraction`` of the images and smooths the rest into one isotropic Gaussian of the same mean
    and variance: a dial between copying and generalising (in the spirit of Buchanan et al., partial memorisation)."""

    def __init__(self, x0: Tensor, fraction: float, multiplicities: Tensor | None = None) -> None:
        weights = (torch.ones(len(x0)) if multiplicities is None else multiplicities).double()
        kept = round(fraction * len(x0))
        mean = (weights[:, None, None, None] * x0.double()).sum(0) / weights.sum()
        squared = (x0.double() - mean).square().flatten(1).mean(1)
        variance = (weights * squared).sum() / weights.sum()
        means = torch.cat([x0[:kept].double(), mean[None]])
        variances = torch.cat([torch.zeros(kept, dtype=torch.float64), variance[None]])
        # A rest of nothing has log-weight -inf; any small number would win far from all images at little noise.
        rest = weights[kept:].sum()
        super().__init__(means, variances, torch.cat([weights[:kept], rest[None]]))


class GaussianDenoiser(nn.Module):
    r"""N(m, S): D = m + S (S + sigma^2 I)^{-1} (x - m), by the eigenvectors of S.

    The ODE endpoint is known too: every eigen-coordinate scales by sqrt((l + eps^2) / (l + sigma^2)).

    Args:
        mean: (C, H, W).
        covariance: (d, d), d = C H W.
    """

    mean: Tensor
    values: Tensor
    vectors: Tensor

    def __init__(self, mean: Tensor, covariance: Tensor) -> None:
        super().__init__()
        values, vectors = torch.linalg.eigh(covariance.double())
        self.register_buffer("mean", mean.double())
        self.register_buffer("values", values.clamp_min(0))
        self.register_buffer("vectors", vectors)

    @classmethod
    def fit(cls, x0: Tensor, multiplicities: Tensor | None = None) -> GaussianDenoiser:
        """Mean and (weighted, population) covariance of images (n, C, H, W)."""
        w = (torch.ones(len(x0)) if multiplicities is None else multiplicities).double()
        w = w / w.sum()
        flat = x0.double().flatten(1)
        mean = w @ flat
        centred = flat - mean
        return cls(mean.reshape(x0.shape[1:]), (w[:, None] * centred).T @ centred)

    def _scaled(self, x: Tensor, factor: Tensor) -> Tensor:
        coordinates = (x.double() - self.mean).flatten(1) @ self.vectors
        return self.mean + ((coordinates * factor) @ self.vectors.T).reshape(x.shape)

    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        s2 = sigma.double()[:, None] ** 2
        return self._scaled(x, self.values / (self.values + s2))

    def endpoint(self, x: Tensor, sigma: Tensor, sigma_end: float) -> Tensor:
        """Exact solution of the probability-flow ODE at ``sigma_end``, started at (x, sigma)."""
        s2 = sigma.double()[:, None] ** 2
        return self._scaled(x, ((self.values + sigma_end**2) / (self.values + s2)).sqrt())


def build_analytic(name: str, x0: Tensor, multiplicities: Tensor) -> nn.Module:
    """The teacher named by ``model.teacher`` (see :data:`NAMES`) for unique images in [-1, 1] and their copies (n,).

    Raises:
        InputError: unknown name or a fraction outside [0, 1].
    """
    kind, _, argument = name.removeprefix("analytic:").partition(":")
    if kind == "empirical" and not argument:
        return EmpiricalDenoiser(x0, multiplicities)
    if kind == "gaussian" and not argument:
        return GaussianDenoiser.fit(x0, multiplicities)
    if kind == "partial":
        try:
            fraction = float(argument)
        except ValueError:
            fraction = math.nan
        if 0 <= fraction <= 1:
            return PartialMemorizer(x0, fraction, multiplicities)
    raise InputError("model.teacher", name, "no such analytic teacher", f"choose one of {NAMES}")
