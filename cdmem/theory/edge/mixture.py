"""The data: K Gaussians whose means lie on a sphere."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Mixture:
    """Equal parts N(mu_k, variance I).

    Attributes:
        means: (K, d), float64.
        variance: s*^2.
    """

    means: Tensor
    variance: float = 1.0

    @property
    def dim(self) -> int:
        """Dimension d."""
        return self.means.shape[1]

    def sample(self, count: int, rng: np.random.Generator) -> Tensor:
        """(count, d) points, float64; the component of each is drawn."""
        labels = rng.integers(len(self.means), size=count)
        noise = torch.from_numpy(rng.standard_normal((count, self.dim)))
        return self.means[labels] + self.variance**0.5 * noise


def on_sphere(dim: int, components: int, rng: np.random.Generator, variance: float = 1.0) -> Mixture:
    """Means uniform on the sphere of radius sqrt(d), as in the published experiments."""
    directions = torch.from_numpy(rng.standard_normal((components, dim)))
    return Mixture(directions / directions.norm(dim=1, keepdim=True) * dim**0.5, variance)
