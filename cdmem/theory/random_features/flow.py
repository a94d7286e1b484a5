"""Gradient flow of the readout in closed form (Bonnaire et al. 2025, eqs. 2.3 to 2.6), and other filters of modes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.linalg import eigh

from cdmem.theory.random_features.model import delta
from cdmem.theory.random_features.moments import Moments, Population

Filter = Callable[[np.ndarray], np.ndarray]


def flow_filter(tau: float, t: float, psi_p: float) -> Filter:
    """(1 - exp(-2 Delta lambda tau / psi_p)) / lambda: gradient flow from 0 for a time tau; 1 / lambda at infinity."""
    rate = 2 * delta(t) * tau / psi_p

    def apply(eigenvalues: np.ndarray) -> np.ndarray:
        lam = np.maximum(eigenvalues, 1e-300)
        return -np.expm1(-rate * lam) / lam

    return apply


def ridge_filter(gamma: float) -> Filter:
    """1 / (lambda + gamma)."""
    return lambda eigenvalues: 1 / (np.maximum(eigenvalues, 0.0) + gamma)


def truncation_filter(rank: int) -> Filter:
    """1 / lambda on the ``rank`` largest eigenvalues, 0 on the others; eigenvalues ascend."""

    def apply(eigenvalues: np.ndarray) -> np.ndarray:
        values = np.zeros_like(eigenvalues)
        top = slice(max(len(eigenvalues) - rank, 0), None)
        values[top] = 1 / np.maximum(eigenvalues[top], 1e-300)
        return values

    return apply


@dataclass(frozen=True)
class Modes:
    """Eigenvalues of U, ascending (p,), eigenvectors as columns (p, p), and V in their basis (p, d)."""

    t: float
    eigenvalues: np.ndarray
    vectors: np.ndarray
    V: np.ndarray

    def readout(self, apply: Filter) -> np.ndarray:
        """M = A / sqrt p (d, p): -V^T f(U) / sqrt(Delta)."""
        weighted = self.V * apply(self.eigenvalues)[:, None]
        return -(self.vectors @ weighted).T / math.sqrt(delta(self.t))


def modes(moments: Moments, t: float) -> Modes:
    """Symmetric eigen-decomposition in float64."""
    # divide and conquer: the atom is thousands of eigenvalues close together, which slows the other driver
    eigenvalues, vectors = eigh(moments.U, driver="evd", check_finite=False)
    return Modes(t, eigenvalues, vectors, vectors.T @ moments.V)


class Curve(NamedTuple):
    """Losses and score error along training times."""

    train: list[float]
    test: list[float]
    score: list[float]


def curve(modes: Modes, population: Population, psi_p: float, taus: np.ndarray) -> Curve:
    """Losses (eq. 2.3) and score error (eq. 2.4) along training times from 0; p^3 once, p^2 per time."""
    d, noise2 = modes.V.shape[1], delta(modes.t)
    root, vectors = math.sqrt(noise2), modes.vectors
    U, V, S = vectors.T @ population.U @ vectors, vectors.T @ population.V, vectors.T @ population.S
    energy = (modes.V**2).sum(1)
    cross_v, cross_s = (modes.V * V).sum(1), (modes.V * S).sum(1)
    gram = U * (modes.V @ modes.V.T)  # tr(M U M^T) = h^T gram h / Delta for the filter's values h
    path = Curve([], [], [])
    for tau in taus:
        h = flow_filter(float(tau), modes.t, psi_p)(modes.eigenvalues)
        quadratic = float(h @ gram @ h)
        path.train.append(1 + float(energy @ (h**2 * modes.eigenvalues - 2 * h)) / d)
        path.test.append(1 + (quadratic - 2 * float(h @ cross_v)) / d)
        path.score.append((quadratic / noise2 + 2 * float(h @ cross_s) / root + population.score2) / d)
    return path
