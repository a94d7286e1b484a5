r"""The student f_k(x) = c_skip x + c_out B_k phi(x), in closed form and under gradient flow.

For a frozen target the loss at t_k is quadratic in B_k, with the regression target y_k = (f_(k-1)(x^_(k-1)) - c_skip
x_k) / c_out. A ridge gives B_k = E[y_k phi^T] (U_k + gamma I)^-1, level after level. Under gradient flow all levels
train at once, each on the moving output of the one below: dB_k / dtau = (2 Delta_k / psi_p) (E[y_k(tau) phi^T] - B_k
U_k), in the teacher's units of time. The chain is triangular, so each level is integrated exactly in its own modes,
with its target linear between two times of a fine grid.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from cdmem.theory.random_features.constants import delta
from cdmem.theory.random_features.distillation.chain import Chain
from cdmem.theory.random_features.flow import Filter

Readouts = list[np.ndarray]  # B_k (d, p) for k = 1 .. K - 1


def regression(chain: Chain, k: int, below: np.ndarray | None) -> np.ndarray:
    """E[y_k phi^T] Q_k (d, p), where ``below`` is B_(k-1) (d, p), or None at k = 1."""
    level = chain.levels[k - 1]
    if below is None:
        target = level.target
    else:
        assert level.after is not None
        target = chain.c_skip(k - 1) * level.target + chain.c_out(k - 1) * below @ level.after
    return (target - chain.c_skip(k) * level.x) / chain.c_out(k)


def ridge_student(chain: Chain, filters: Sequence[Filter] | Filter) -> Readouts:
    """By recursion, with one filter for all levels or one each."""
    found: Readouts = []
    for k, level in enumerate(chain.levels, 1):
        apply = filters if callable(filters) else filters[k - 1]
        y = regression(chain, k, found[-1] if found else None)
        found.append((y * apply(level.eigenvalues)) @ level.Q.T)
    return found


def teacher_start(chain: Chain, apply: Filter) -> Readouts:
    """Readouts that come closest to the teacher's own denoiser, e^t (x + Delta s(x)), by regression with ``apply``."""
    found: Readouts = []
    for k, level in enumerate(chain.levels, 1):
        grown = np.exp(level.t)
        denoised = grown * (level.x + delta(level.t) * (chain.readouts[k] @ level.Q) * level.eigenvalues)
        y = (denoised - chain.c_skip(k) * level.x) / chain.c_out(k)
        found.append((y * apply(level.eigenvalues)) @ level.Q.T)
    return found


def flow_student(
    chain: Chain, taus: np.ndarray, start: Readouts | None = None, substeps: int = 3
) -> list[Callable[[], Readouts]]:
    """Readouts at each time of ``taus`` (ascending, > 0), all levels trained together from ``start`` (default 0).

    Returns:
        one function per time, which gives its readouts (kept in the modes until asked for).
    """
    psi_p = chain.features.psi_p
    grid = [0.0]
    for tau in taus:
        low = grid[-1] if grid[-1] > 0 else tau / 50
        grid += list(np.geomspace(low, tau, substeps + 1)[1 if grid[-1] > 0 else 0 :])
    wanted = {int(np.argmin(np.abs(np.array(grid) - tau))): i for i, tau in enumerate(taus)}
    kept: list[Readouts] = [[] for _ in taus]
    path: list[np.ndarray] | None = None  # of the level below, at every time of the grid
    for k, level in enumerate(chain.levels, 1):
        rate = 2 * delta(level.t) / psi_p * np.maximum(level.eigenvalues, 1e-300)
        force = 2 * delta(level.t) / psi_p
        b = np.zeros_like(level.x) if start is None else start[k - 1] @ level.Q
        now = force * regression(chain, k, None if path is None else path[0])
        ours = [b @ level.Q.T]
        for i in range(1, len(grid)):
            nxt = now if path is None else force * regression(chain, k, path[i])
            h = grid[i] - grid[i - 1]
            z = rate * h
            decay = np.exp(-z)
            first = np.where(z > 1e-4, -np.expm1(-z) / z, 1 - z / 2)
            second = np.where(z > 1e-4, (z + np.expm1(-z)) / np.maximum(z, 1e-8) ** 2, 0.5 - z / 6)
            b = b * decay + h * (first * now + second * (nxt - now))
            now = nxt
            ours.append(b @ level.Q.T)
            if i in wanted:
                kept[wanted[i]].append(ours[-1])
        path = ours
    return [lambda r=r: r for r in kept]
