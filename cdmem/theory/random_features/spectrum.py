"""The spectrum of U: its limit (Theorem 3.1, eq. 2.9, solved numerically, and the two bulks of Theorem 3.2, eq. 2.10),
its Gaussian equivalent (eq. 2.8), and U itself at finite size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.linalg import eigvalsh

from cdmem.theory.random_features.model import Constants, Features, gaussian_data, make_features
from cdmem.theory.random_features.moments import drawn_moments, training_moments

HIGH, LOW = 1e3, 1e-9  # first and last Im z / Re z of the continuation
STAGES, NEWTON = 90, 60
GRID = 500
ROUNDS, PARTS = 6, 16  # an edge is looked for among 16 points, six times over
NEAR = 1e-3  # of s_t^2: so near to the atom its own line would look like a density
INSIDE = 1e-5  # Im q / |q| beyond this is a density; the continuation ends at an Im z that gives 1e-9 outside
SLACK = 2e-3  # of d eigenvalues, when they are counted
MANY = 1e4  # psi_n / psi_p that stands for infinity


@dataclass(frozen=True)
class Shape:
    """p / d, n / d, and the distinct eigenvalues of Sigma with their shares, (k,) each."""

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


def training_time(c: Constants, psi_p: float, eigenvalue: float) -> float:
    """psi_p / (Delta lambda), in units of eq. (2.5): tau_mem at the left edge of rho_1, tau_gen at the left edge of
    rho_2 (its slowest direction)."""
    return psi_p / (c.Delta * eigenvalue)


@dataclass(frozen=True)
class Bulk:
    """One interval of the support, and its share of all p eigenvalues."""

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


def memorising(bulks: Sequence[Bulk], psi_p: float) -> int | None:
    """How many intervals memorise: those above them hold the d largest eigenvalues together (one, or several where
    Sigma has levels). None if no gap lies below the d-th."""
    counted = 0.0
    for k in reversed(range(len(bulks))):
        counted += bulks[k].mass * psi_p
        if abs(counted - 1) <= SLACK:
            return k or None
        if counted > 1:
            return None
    return None


def equivalent_eigenvalues(features: Features, data: np.ndarray, c: Constants, rng: np.random.Generator) -> np.ndarray:
    """All p eigenvalues of U = F F^T + s_t^2 I, ascending. F (p, n + d) has the columns G / sqrt n, with fresh Omega,
    and b_t W / sqrt d: its smaller Gram matrix gives its squares, and the atom stands as often as is missing.

    With p = 6,400 and n + d = 900 this is 350 times less work than an eigen-decomposition of U.
    """
    n, W = len(data), features.weights
    G = math.exp(-c.t) * c.a * (W / math.sqrt(features.d)) @ data.T
    G = G + math.sqrt(max(c.v2, 0.0)) * rng.standard_normal((features.p, n))
    F = np.hstack([G / math.sqrt(n), c.b * W / math.sqrt(features.d)])
    small = F.T @ F if F.shape[1] < F.shape[0] else F @ F.T
    squares = np.clip(np.linalg.eigvalsh(small), 0.0, None)
    rest = np.zeros(features.p - len(squares))
    return c.s2 + np.concatenate([rest, squares])


@dataclass(frozen=True)
class Theory:
    """What the theory says of one setting.

    Attributes:
        bulks: all intervals of the limiting density, ascending.
        memorising: how many of them memorise; None if the d largest eigenvalues are not separated.
        rho_1: edges by eq. (2.10).
        rho_2: outermost edges of the generalisation bulk at this psi_n, or for n -> infinity where it is not separated.
        rho_2_many: for n -> infinity.
        tau_gen: training time at the left edge of rho_2 for n -> infinity: independent of n.
        tau_mem: the same at the left edge of rho_1.
        tau_slow: the same at the lowest edge of all bulks.
    """

    bulks: list[Bulk]
    memorising: int | None
    rho_1: tuple[float, float]
    rho_2: tuple[float, float]
    rho_2_many: tuple[float, float]
    tau_gen: float
    tau_mem: float
    tau_slow: float


def theory(c: Constants, psi_p: float, psi_n: float, spectrum: np.ndarray) -> Theory:
    """Everything from the limit."""
    s = shape_of(psi_p, psi_n, spectrum)
    bulks, many = find_bulks(c, s), find_bulks(c, Shape(psi_p, MANY * psi_p, s.levels, s.weights))
    split, split_many = memorising(bulks, psi_p), memorising(many, psi_p)
    rho_1 = rho_1_edges(c, psi_p, psi_n)
    # Directions of almost no variance do not separate even then.
    top = (bulks[-1].low, bulks[-1].high) if split_many is None else (many[split_many].low, many[-1].high)
    rho_2 = top if split is None else (bulks[split].low, bulks[-1].high)
    times = [training_time(c, psi_p, eigenvalue) for eigenvalue in (top[0], rho_1[0], bulks[0].low)]
    return Theory(bulks, split, rho_1, rho_2, top, *times)


@dataclass(frozen=True)
class Spectrum:
    """Eigenvalues of U and of its Gaussian equivalent (seeds, p), ascending; the largest bound on an entry of U by its
    truncated series, NaN with draws; and with draws the noise floor: smaller eigenvalues mean nothing."""

    exact: np.ndarray
    equivalent: np.ndarray
    error: float
    floor: float | None


def measure(
    d: int, p: int, n: int, spectrum: np.ndarray, c: Constants, activation: str, draws: int, seeds: int, seed: int
) -> Spectrum:
    """Fresh weights and points for every seed; ``draws`` 0 takes the exact expectation over the noise, else that many
    noises per point."""
    exact, equivalent, error, floors = [], [], 0.0, []
    for k in range(seeds):
        rng = np.random.default_rng([seed, k, 1])
        features = make_features(p, d, rng, activation)
        data = gaussian_data(n, spectrum, rng)
        equivalent.append(equivalent_eigenvalues(features, data, c, rng))
        if draws:
            U, floor = _drawn(features, data, c.t, draws, rng)
            floors.append(floor)
            error = np.nan
        else:
            moments = training_moments(features, data, c.t)
            U, error = moments.U, max(error, moments.error)
        exact.append(eigvalsh(U, overwrite_a=True, check_finite=False))
    return Spectrum(np.array(exact), np.array(equivalent), error, max(floors) if floors else None)


def _drawn(
    features: Features, data: np.ndarray, t: float, draws: int, rng: np.random.Generator
) -> tuple[np.ndarray, float]:
    """U from noise draws, a few at a time, and the spectral norm of half the difference of two halves."""
    first, second = (
        sum(drawn_moments(features, data, t, rng.standard_normal((1, *data.shape))).U / count for _ in range(count))
        for count in (draws // 2, draws - draws // 2)
    )
    gap = eigvalsh((first - second) / 2, check_finite=False)
    return (first + second) / 2, float(np.abs(gap).max())


@dataclass(frozen=True)
class Measured:
    """Ranges over the seeds.

    Attributes:
        gen: least and largest of the d eigenvalues at the top.
        mem: least and largest of the next min(n, p - d), the block by index.
        below: how many of these lie below the left edge of rho_1, mean over seeds.
        atom: median of the others; NaN if there are none.
        mean: the eigenvalue of the features' mean, which is above all others if mu_0 is not 0; None if it is.
    """

    gen: tuple[float, float]
    mem: tuple[float, float]
    below: float
    atom: float
    mean: float | None


def describe(eigenvalues: np.ndarray, d: int, n: int, rho_1: tuple[float, float], has_mean: bool) -> Measured:
    """Of eigenvalues (seeds, p), ascending."""
    rest = eigenvalues[:, :-1] if has_mean else eigenvalues
    gen, below_gen = rest[:, -d:], rest[:, :-d]
    mem = below_gen[:, -n:]
    atoms = below_gen[:, :-n]
    return Measured(
        (float(gen.min()), float(gen.max())),
        (float(mem.min()), float(mem.max())),
        float((mem < rho_1[0]).sum(1).mean()),
        float(np.median(atoms)) if atoms.size else float("nan"),
        float(eigenvalues[:, -1].mean()) if has_mean else None,
    )
