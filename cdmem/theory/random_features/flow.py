"""Gradient flow of the readout in closed form (Bonnaire et al. 2025, eqs. 2.3 to 2.6), and other filters of modes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

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
        found = np.zeros_like(eigenvalues)
        top = slice(max(len(eigenvalues) - rank, 0), None)
        found[top] = 1 / np.maximum(eigenvalues[top], 1e-300)
        return found

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


def loss(M: np.ndarray, U: np.ndarray, V: np.ndarray, t: float) -> float:
    """1 + Delta / d tr(M U M^T) + 2 sqrt(Delta) / d tr(M V): the training loss with the training moments, the test loss
    with the population's (eq. 2.3). M is (d, p)."""
    d, noise2 = len(M), delta(t)
    quadratic = float(np.einsum("ij,ij->", M @ U, M))
    return 1 + noise2 / d * quadratic + 2 * math.sqrt(noise2) / d * float(np.einsum("ij,ji->", M, V))


def score_error(M: np.ndarray, population: Population) -> float:
    """E|s_A - grad log P_t|^2 / d over fresh noisy points (eq. 2.4), exactly."""
    quadratic = float(np.einsum("ij,ij->", M @ population.U, M))
    return (quadratic - 2 * float(np.einsum("ij,ji->", M, population.S)) + population.score2) / len(M)


@dataclass(frozen=True)
class Curve:
    """Losses and score error along training times."""

    tau: list[float]
    train: list[float]
    test: list[float]
    score: list[float]


def curve(found: Modes, moments: Moments, population: Population, psi_p: float, taus: np.ndarray) -> Curve:
    """Losses and score error along training times from 0; p^3 once, p^2 per time."""
    seen = Population(
        found.vectors.T @ population.U @ found.vectors,
        found.vectors.T @ population.V,
        found.vectors.T @ population.S,
        population.score2,
        population.error,
    )
    return curve_of_modes(found, seen, psi_p, taus)


def curve_of_modes(found: Modes, seen: Population, psi_p: float, taus: np.ndarray) -> Curve:
    """The same with the population's moments already in the basis of the modes. The modes' own vectors are not used,
    and modes in which V vanishes may be missing."""
    d, noise2 = found.V.shape[1], delta(found.t)
    root = math.sqrt(noise2)
    energy = (found.V**2).sum(1)
    cross_v, cross_s = (found.V * seen.V).sum(1), (found.V * seen.S).sum(1)
    gram = seen.U * (found.V @ found.V.T)  # tr(M U M^T) = h^T gram h / Delta for the filter's values h
    out = Curve([], [], [], [])
    for tau in taus:
        h = flow_filter(float(tau), found.t, psi_p)(found.eigenvalues)
        quadratic = float(h @ gram @ h)
        out.tau.append(float(tau))
        out.train.append(1 + float(energy @ (h**2 * found.eigenvalues - 2 * h)) / d)
        out.test.append(1 + (quadratic - 2 * float(h @ cross_v)) / d)
        out.score.append((quadratic / noise2 + 2 * float(h @ cross_s) / root + seen.score2) / d)
    return out
