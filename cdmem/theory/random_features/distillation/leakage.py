r"""Where one distillation step sends the teacher's feature directions.

The student's readout at t_k is a regression on the features of x_k; its target is carried by the features of x^_(k-1),
the teacher's DDIM step of x_k. So feature directions are transported by T = f(U) C, with U = E[phi(x_k) phi(x_k)^T], C
= E[phi(x_k) phi(x^_(k-1))^T] and f(U) = (U + gamma I)^-1 for a ridge. U's eigenvectors fall into Gen, Mem and Null; the
share of T v that lies in a block, for v in Gen, is what leaks. U and C must come from the same draws: with independent
ones the inverse amplifies the difference, and everything seems to leak.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.linalg import eigh

from cdmem.theory.random_features.flow import Filter
from cdmem.theory.random_features.model import Features, delta, noised

BATCH = 8192


def ddim(x: np.ndarray, t: float, t_next: float, score: np.ndarray) -> np.ndarray:
    """One step of the probability-flow ODE from t to t_next < t (0: the clean estimate), for scores at x (N, d)."""
    clean = math.exp(t) * (x + delta(t) * score)
    return math.exp(-t_next) * clean - math.sqrt(delta(t_next) * delta(t)) * score


@dataclass(frozen=True)
class Transport:
    """One step in the basis of U: its eigenvalues, ascending (p,), and Q^T C Q (p, p), whose row i is what arrives in
    direction i and whose column j is what left direction j."""

    eigenvalues: np.ndarray
    C: np.ndarray

    def columns(self, apply: Filter, block: np.ndarray | slice) -> np.ndarray:
        """T v for the directions in ``block``, as columns (p, size of block)."""
        return self.C[:, block] * apply(self.eigenvalues)[:, None]


def transport(
    features: Features,
    data: np.ndarray,
    t: float,
    t_next: float,
    readout: np.ndarray,
    noise: np.ndarray,
    other_noise: np.ndarray | None = None,
) -> Transport:
    """U and C from the same draws ``noise`` (m, n, d); ``other_noise`` for C shows what independent draws do."""

    def both(draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        x = noised(data, t, draws).reshape(-1, features.d)
        U, C = np.zeros((2, features.p, features.p))
        for k in range(0, len(x), BATCH):
            part = x[k : k + BATCH]
            phi = features(part)
            after = phi if t_next == t else features(ddim(part, t, t_next, phi @ readout.T))
            U += phi.T @ phi / len(x)
            C += phi.T @ after / len(x)
        return U, C

    U, C = both(noise)
    if other_noise is not None:
        _, C = both(other_noise)
    eigenvalues, vectors = eigh(U, check_finite=False)
    return Transport(eigenvalues, vectors.T @ C @ vectors)


class Blocks(NamedTuple):
    """Indices of eigenvectors in ascending order of eigenvalue."""

    gen: np.ndarray
    mem: np.ndarray
    null: np.ndarray


def blocks_by_index(p: int, d: int, n: int) -> Blocks:
    """Gen: the d largest eigenvalues. Mem: the next n. Null: the rest."""
    null, mem, gen = np.split(np.arange(p), [max(p - d - n, 0), p - d])
    return Blocks(gen, mem, null)


def blocks_by_gap(eigenvalues: np.ndarray, s2: float) -> Blocks:
    """Gen: above the widest gap (in logarithms) of what exceeds 2 s_t^2. Mem: between 2 s_t^2 and that gap. Null: the
    rest.

    At finite psi_n about d eigenvalues lie between the atom and rho_1: this rule counts them as Mem from 2 s_t^2 on,
    the index counts them instead of the last of rho_1.
    """
    order = np.arange(len(eigenvalues))
    above = order[eigenvalues > 2 * s2]
    if len(above) < 2:
        return Blocks(above, order[:0], np.setdiff1d(order, above))
    cut = int(np.argmax(np.diff(np.log(eigenvalues[above])))) + 1
    return Blocks(above[cut:], above[:cut], np.setdiff1d(order, above))


@dataclass(frozen=True)
class Leak:
    """Medians over Gen; ``back`` is the mirror: the median share of Mem's directions in Gen. ``gain`` is |T v| of every
    direction, ascending in eigenvalue."""

    mem: float
    null: float
    mem_null: float
    gen: float
    back: float
    gain: np.ndarray


def leak(step: Transport, blocks: Blocks, apply: Filter) -> Leak:
    """Shares of |T v|^2 by block."""

    def shares(of: np.ndarray, block: np.ndarray) -> np.ndarray:
        return (of[block] ** 2).sum(0) / np.maximum((of**2).sum(0), 1e-300)

    sent = step.columns(apply, blocks.gen)
    gen, mem, null = (shares(sent, block) for block in blocks)
    back = shares(step.columns(apply, blocks.mem), blocks.gen) if len(blocks.mem) else np.array([math.nan])
    gain = np.sqrt((step.columns(apply, slice(None)) ** 2).sum(0))
    medians = (float(np.median(v)) for v in (null, mem + null, gen, back))
    return Leak(float(np.percentile(mem, 50)), *medians, gain)


def minimal_sufficient(gammas: np.ndarray, leaks: np.ndarray, eps: float = 0.05, slack: float = 0.1) -> float | None:
    """The smallest gamma at which the leak is at most ``eps``, or within (1 + slack) of its value at the largest gamma.

    The published rule (B.17) is not known; this is ours. None if no gamma is sufficient.
    """
    enough = (leaks <= eps) | (leaks <= (1 + slack) * leaks[-1])
    return float(gammas[int(np.argmax(enough))]) if enough.any() else None
