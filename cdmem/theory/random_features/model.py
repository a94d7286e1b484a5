"""The network s_A(x) = A sigma(W x / sqrt d) / sqrt p, and the data."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from cdmem.theory.random_features.constants import ACTIVATIONS


@dataclass(frozen=True)
class Features:
    """phi(x) = sigma(W x / sqrt d) with frozen weights.

    Attributes:
        weights: W, (p, d), standard normal.
        activation: name.
    """

    weights: np.ndarray
    activation: str = "tanh"

    @property
    def d(self) -> int:
        """Dimension of the data."""
        return self.weights.shape[1]

    @property
    def p(self) -> int:
        """Number of features."""
        return self.weights.shape[0]

    @property
    def psi_p(self) -> float:
        """p / d."""
        return self.p / self.d

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Features (N, p) of x (N, d)."""
        return ACTIVATIONS[self.activation](x @ (self.weights.T / math.sqrt(self.d)))


def make_features(p: int, d: int, rng: np.random.Generator, activation: str = "tanh") -> Features:
    """Features with fresh weights."""
    return Features(rng.standard_normal((p, d)), activation)


def gaussian_data(n: int, spectrum: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(n, d) points of N(0, diag(spectrum)); a rotation would change nothing, as W is isotropic."""
    return rng.standard_normal((n, len(spectrum))) * np.sqrt(spectrum)


def noised(data: np.ndarray, t: float, noise: np.ndarray) -> np.ndarray:
    """x_t = e^-t x + sqrt(Delta) xi; ``noise`` is (..., n, d)."""
    return math.exp(-t) * data + math.sqrt(-math.expm1(-2 * t)) * noise
