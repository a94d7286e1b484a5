"""Where the limiting spectrum lives: its intervals, the share of eigenvalues in each, and their roles."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cdmem.theory.random_features.constants import Constants
from cdmem.theory.random_features.limit import Shape, density, rho_1_edges, rho_2_edges, stieltjes

GRID = 500
ROUNDS, PARTS = 6, 16  # an edge is looked for among 16 points, six times over
NEAR = 1e-3  # of s_t^2: so near to the atom its own line would look like a density
INSIDE = 1e-5  # Im q / |q| beyond this is a density; the continuation ends at an Im z that gives 1e-9 outside
SLACK = 2e-3  # of d eigenvalues, when they are counted


@dataclass(frozen=True)
class Bulk:
    """One interval of the support.

    Attributes:
        low: left edge.
        high: right edge.
        mass: share of all p eigenvalues.
    """

    low: float
    high: float
    mass: float


def find_bulks(c: Constants, s: Shape) -> list[Bulk]:
    """All intervals beside the atom, ascending; all lie above s_t^2.

    A bulk or gap narrower than a factor of 1.04 in lambda - s_t^2, the step of the grid, is not seen.
    """
    highest = 2 * (rho_1_edges(c, s.psi_p, s.psi_n)[1] + rho_2_edges(c, s.psi_p, s.levels)[1])
    highest += 2 * c.a**2 * float(s.levels.max()) * s.psi_p / s.psi_n  # few points: one direction each
    y = np.geomspace(NEAR * c.s2, highest, GRID)

    def inside(at: np.ndarray) -> np.ndarray:
        q = stieltjes(c.s2 + at, c, s)
        return q.imag > INSIDE * np.abs(q)

    flags = np.concatenate([[False], inside(y), [False]])
    change = np.flatnonzero(np.diff(flags.astype(int)))
    if not len(change):
        return []
    rising = np.arange(len(change)) % 2 == 0
    outer, inner = (y[np.clip(change - side, 0, GRID - 1)] for side in (rising, ~rising))
    for _ in range(ROUNDS):
        at = outer[:, None] * (inner / outer)[:, None] ** (np.arange(PARTS + 1) / PARTS)
        first = np.argmax(inside(at.ravel()).reshape(at.shape), axis=1)  # the innermost point is inside
        first = np.maximum(np.where(first == 0, PARTS, first), 1)
        rows = np.arange(len(at))
        outer, inner = at[rows, first - 1], at[rows, first]
    edges = ((outer + inner) / 2).tolist()
    return [Bulk(c.s2 + a, c.s2 + b, mass(c.s2 + a, c.s2 + b, c, s)) for a, b in zip(edges[::2], edges[1::2])]


def mass(low: float, high: float, c: Constants, s: Shape, nodes: int = 400) -> float:
    """Share of the eigenvalues between two edges; x = middle - half cos(angle) smooths the square roots there."""
    angle = (np.arange(nodes) + 0.5) * math.pi / nodes
    half = (high - low) / 2
    x = (low + high) / 2 - half * np.cos(angle)
    return float((density(x, c, s) * half * np.sin(angle)).sum() * math.pi / nodes)


@dataclass(frozen=True)
class Roles:
    """Who is who in the spectrum.

    Attributes:
        generalisation: the d largest eigenvalues (one interval, or several where Sigma has levels).
        memorisation: all other intervals.
    """

    generalisation: list[Bulk]
    memorisation: list[Bulk]


def roles(found: Sequence[Bulk], psi_p: float) -> Roles | None:
    """The uppermost intervals that hold d eigenvalues together; None if no gap lies below the d-th."""
    counted = 0.0
    for k in range(len(found) - 1, -1, -1):
        counted += found[k].mass * psi_p
        if abs(counted - 1) <= SLACK:
            return Roles(list(found[k:]), list(found[:k])) if k else None
        if counted > 1:
            return None
    return None
