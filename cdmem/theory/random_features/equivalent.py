"""The Gaussian equivalent of U (Bonnaire et al. 2025, eq. 2.8), and its eigenvalues by its low rank."""

from __future__ import annotations

import math

import numpy as np

from cdmem.theory.random_features.constants import Constants
from cdmem.theory.random_features.model import Features


def factor(features: Features, data: np.ndarray, c: Constants, rng: np.random.Generator) -> np.ndarray:
    """F (p, n + d) with U = F F^T + s_t^2 I: the columns G / sqrt n, with fresh Omega, and b_t W / sqrt d."""
    n, scale = len(data), math.sqrt(features.d)
    G = math.exp(-c.t) * c.a * (features.weights / scale) @ data.T
    G = G + math.sqrt(max(c.v2, 0.0)) * rng.standard_normal((features.p, n))
    return np.hstack([G / math.sqrt(n), c.b * features.weights / scale])


def equivalent_moment(features: Features, data: np.ndarray, c: Constants, rng: np.random.Generator) -> np.ndarray:
    """U (p, p) itself."""
    F = factor(features, data, c, rng)
    return F @ F.T + c.s2 * np.eye(features.p)


def equivalent_eigenvalues(features: Features, data: np.ndarray, c: Constants, rng: np.random.Generator) -> np.ndarray:
    """All p eigenvalues, ascending: those of the smaller Gram matrix of F, and the atom as often as is missing.

    With p = 6,400 and n + d = 900 this is 350 times less work than an eigen-decomposition of U.
    """
    F = factor(features, data, c, rng)
    small = F.T @ F if F.shape[1] < F.shape[0] else F @ F.T
    found = np.clip(np.linalg.eigvalsh(small), 0.0, None)
    rest = np.zeros(features.p - len(found))
    return c.s2 + np.concatenate([rest, found])
