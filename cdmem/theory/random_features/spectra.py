"""The spectrum of U as it is at finite size, beside its Gaussian equivalent and the limit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.linalg import eigvalsh

from cdmem.theory.random_features.bulks import Bulk, Roles, find_bulks, roles
from cdmem.theory.random_features.constants import Constants
from cdmem.theory.random_features.equivalent import equivalent_eigenvalues
from cdmem.theory.random_features.limit import Shape, rho_1_edges, shape_of, times
from cdmem.theory.random_features.model import Features, gaussian_data, make_features
from cdmem.theory.random_features.moments import drawn_moments, training_moments

MANY = 1e4  # psi_n / psi_p that stands for infinity


@dataclass(frozen=True)
class Theory:
    """What the theory says of one setting.

    Attributes:
        bulks: all intervals of the limiting density.
        roles: who is who among them; None if the d largest eigenvalues are not separated.
        rho_1: edges by eq. (2.10).
        rho_2: outermost edges of the generalisation bulk at this psi_n, or for n -> infinity where it is not separated.
        rho_2_many: for n -> infinity.
        tau_gen: psi_p / (Delta lambda) at the left edge of rho_2 for n -> infinity: independent of n.
        tau_mem: the same at the left edge of rho_1.
        tau_slow: the same at the lowest edge of all bulks.
    """

    bulks: list[Bulk]
    roles: Roles | None
    rho_1: tuple[float, float]
    rho_2: tuple[float, float]
    rho_2_many: tuple[float, float]
    tau_gen: float
    tau_mem: float
    tau_slow: float


def theory(c: Constants, psi_p: float, psi_n: float, spectrum: np.ndarray) -> Theory:
    """Everything from the limit."""
    s = shape_of(psi_p, psi_n, spectrum)
    bulks = find_bulks(c, s)
    found = roles(bulks, psi_p)
    many = roles(find_bulks(c, Shape(psi_p, MANY * psi_p, s.levels, s.weights)), psi_p)
    rho_1 = rho_1_edges(c, psi_p, psi_n)
    if many is None:  # directions of almost no variance do not separate even then
        top = (bulks[-1].low, bulks[-1].high)
    else:
        top = (many.generalisation[0].low, many.generalisation[-1].high)
    rho_2 = top if found is None else (found.generalisation[0].low, found.generalisation[-1].high)
    both = times(c, psi_p, rho_1[0], top[0])
    return Theory(bulks, found, rho_1, rho_2, top, both.gen, both.mem, psi_p / (c.Delta * bulks[0].low))


@dataclass(frozen=True)
class Spectrum:
    """Eigenvalues of several seeds, ascending.

    Attributes:
        exact: of U (seeds, p).
        equivalent: of its Gaussian equivalent (seeds, p).
        error: largest bound on an entry of U by its truncated series; NaN with draws.
        floor: with draws, the spectral norm of half the difference of two halves: smaller eigenvalues mean nothing.
    """

    exact: np.ndarray
    equivalent: np.ndarray
    error: float
    floor: float | None


def measure(
    d: int,
    p: int,
    n: int,
    spectrum: np.ndarray,
    c: Constants,
    activation: str,
    draws: int,
    seeds: int,
    seed: int,
    tick: Callable[[], None] = lambda: None,
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
            found = training_moments(features, data, c.t)
            U, error = found.U, max(error, found.error)
        exact.append(eigvalsh(U, overwrite_a=True, check_finite=False))
        tick()
    return Spectrum(np.array(exact), np.array(equivalent), error, max(floors) if floors else None)


def _drawn(
    features: Features, data: np.ndarray, t: float, draws: int, rng: np.random.Generator
) -> tuple[np.ndarray, float]:
    """U from noise draws, a few at a time, and its noise floor."""
    halves = []
    for count in (draws // 2, draws - draws // 2):
        total = np.zeros((features.p, features.p))
        for _ in range(count):
            total += drawn_moments(features, data, t, rng.standard_normal((1, *data.shape))).U / count
        halves.append(total)
    gap = eigvalsh((halves[0] - halves[1]) / 2, check_finite=False)
    return (halves[0] + halves[1]) / 2, float(np.abs(gap).max())


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
