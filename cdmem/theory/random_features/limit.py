"""The limiting spectrum of U: Theorem 3.1 (eq. 2.9) solved numerically, and the two bulks of Theorem 3.2 (eq. 2.10)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from cdmem.theory.random_features.constants import Constants

HIGH, LOW = 1e3, 1e-9  # first and last Im z / Re z of the continuation
STAGES, NEWTON = 90, 60


@dataclass(frozen=True)
class Shape:
    """Ratios and population spectrum.

    Attributes:
        psi_p: p / d.
        psi_n: n / d.
        levels: eigenvalues of Sigma, (k,).
        weights: their shares, (k,).
    """

    psi_p: float
    psi_n: float
    levels: np.ndarray
    weights: np.ndarray


def shape_of(psi_p: float, psi_n: float, spectrum: np.ndarray) -> Shape:
    """From all d eigenvalues of Sigma."""
    levels, counts = np.unique(np.round(spectrum, 12), return_counts=True)
    return Shape(psi_p, psi_n, levels, counts / counts.sum())


def _equations(q: np.ndarray, r: np.ndarray, z: np.ndarray, c: Constants, s: Shape) -> tuple[np.ndarray, np.ndarray]:
    """What vanishes at the solution (q, r), each (N,) complex."""
    signal = (c.a * math.exp(-c.t)) ** 2
    D = 1 + (signal * s.psi_p / s.psi_n) * r + (s.psi_p * c.v2 / s.psi_n) * q
    hat_s, hat_r = c.b**2 * s.psi_p + 1 / q, s.psi_p * signal / D
    share = s.weights / (hat_s[:, None] + s.levels * hat_r[:, None])
    first = s.psi_p * (c.s2 - z) + s.psi_p * c.v2 / D + (1 - s.psi_p) / q - share.sum(1) / q**2
    return first * q / s.psi_p, r - (share * s.levels).sum(1)


def solve(z: np.ndarray, c: Constants, s: Shape, start: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Newton's method in the two complex unknowns, for every z (N,) at once."""
    q, r = start
    for _ in range(NEWTON):
        f, g = _equations(q, r, z, c, s)
        hq, hr = 1e-7 * (np.abs(q) + 1e-300), 1e-7 * (np.abs(r) + 1e-300)
        fq, gq = ((a - b) / hq for a, b in zip(_equations(q + hq, r, z, c, s), (f, g)))
        fr, gr = ((a - b) / hr for a, b in zip(_equations(q, r + hr, z, c, s), (f, g)))
        det = fq * gr - fr * gq
        dq, dr = (f * gr - g * fr) / det, (g * fq - f * gq) / det
        # Half the size at most: a long step can leave the branch.
        shorter = np.minimum(1, 0.5 / np.maximum(np.abs(dq / q), np.abs(dr / r) + 1e-300))
        q, r = q - shorter * dq, r - shorter * dr
        if float(np.max(np.abs(dq / q))) < 1e-12:
            break
    return q, r


def stieltjes(x: np.ndarray, c: Constants, s: Shape) -> np.ndarray:
    """q(x + i 0) of every x (N,) > 0, followed down from large Im z, where q = -1 / z and r = -tr Sigma / (d z)."""
    z = x * (1 + 1j * HIGH)
    q, r = -1 / z, -float(s.weights @ s.levels) / z
    for height in np.geomspace(HIGH, LOW, STAGES):
        z = x * (1 + 1j * height)
        q, r = solve(z, c, s, (q, r))
    return q


def density(x: np.ndarray, c: Constants, s: Shape) -> np.ndarray:
    """Limiting density of the eigenvalues at x (N,), without the atom at s_t^2."""
    return np.clip(stieltjes(x, c, s).imag / math.pi, 0.0, None)


def rho_1_edges(c: Constants, psi_p: float, psi_n: float) -> tuple[float, float]:
    """Edges of the memorisation bulk, eq. (2.10)."""
    root = math.sqrt(psi_p / psi_n)
    return c.s2 + c.v2 * (1 - root) ** 2, c.s2 + c.v2 * (1 + root) ** 2


def rho_2_edges(c: Constants, psi_p: float, levels: np.ndarray) -> tuple[float, float]:
    """Outermost edges of the generalisation bulk for n -> infinity: the spectrum of the population's U, which is
    |sigma|^2 - mu_1^2 plus mu_1^2 / Gamma^2 times that of W Sigma_t W^T / d (eq. 2.8); there 1 / d W^T W has the edges
    (sqrt(psi_p) +- 1)^2, so that with more than one level these are bounds."""
    total = math.exp(-2 * c.t) * levels + c.Delta
    slope2 = c.mu_1**2 / c.gamma**2
    floor = c.norm2 - c.mu_0**2 - c.mu_1**2
    return (
        floor + slope2 * float(total.min()) * max(math.sqrt(psi_p) - 1, 0.0) ** 2,
        floor + slope2 * float(total.max()) * (math.sqrt(psi_p) + 1) ** 2,
    )


@dataclass(frozen=True)
class Times:
    """Training times, in units of eq. (2.5): tau_mem = psi_p / (Delta lambda) at the left edge of rho_1, tau_gen the
    same at the left edge of rho_2 (its slowest direction)."""

    gen: float
    mem: float


def times(c: Constants, psi_p: float, memorisation_edge: float, generalisation_edge: float) -> Times:
    """From the two left edges."""
    return Times(psi_p / (c.Delta * generalisation_edge), psi_p / (c.Delta * memorisation_edge))
