r"""The student f_k(x) = c_skip x + c_out B_k phi(x), in closed form and under gradient flow; samples of it, of its
teacher and of the empirical score.

All that students under any ridge or training time need are the moments of every distillation pair (:class:`Chain`). For
a frozen target the loss at t_k is quadratic in B_k, with the regression target y_k = (f_(k-1)(x^_(k-1)) - c_skip x_k) /
c_out. A ridge gives B_k = E[y_k phi^T] (U_k + gamma I)^-1, level after level. Under gradient flow all levels train at
once, each on the moving output of the one below: dB_k / dtau = (2 Delta_k / psi_p) (E[y_k(tau) phi^T] - B_k U_k), in
the teacher's units of time. The chain is triangular, so each level is integrated exactly in its own modes, with its
target linear between two times of a fine grid.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.linalg import eigh
from scipy.special import softmax

from cdmem.theory.measures import COPY_RATIO, nearest_two
from cdmem.theory.random_features.distillation.leakage import BATCH, ddim
from cdmem.theory.random_features.flow import Filter, Modes
from cdmem.theory.random_features.model import Features, delta, noised


@dataclass(frozen=True)
class Level(Modes):
    """The teacher's modes at one time t_k > t_0, and the pairs in their basis Q.

    Attributes:
        x: E[x phi^T] Q, (d, p).
        target: E[x^ phi^T] Q, (d, p), where x^ is the teacher's step to t_(k-1); at k = 1 its clean estimate.
        after: E[phi(x^) phi(x)^T] Q, (p, p); None at k = 1, where the target is no student.
    """

    x: np.ndarray
    target: np.ndarray
    after: np.ndarray | None


@dataclass(frozen=True)
class Chain:
    """A teacher on a grid of times (K,), ascending: its modes and readouts M_k (d, p) at each, and the pairs between
    them, levels k = 1 .. K - 1."""

    features: Features
    data: np.ndarray
    times: np.ndarray
    modes: list[Modes]
    readouts: list[np.ndarray]
    levels: list[Level]

    def c_skip(self, k: int) -> float:
        """e^-t (assumed)."""
        return math.exp(-self.times[k])

    def c_out(self, k: int) -> float:
        """sqrt(Delta) (assumed)."""
        return math.sqrt(delta(self.times[k]))


def build(
    features: Features, data: np.ndarray, times: np.ndarray, teacher: Filter, draws: int, rng: np.random.Generator
) -> Chain:
    """Fresh noise for every level, and the same draws within a level for teacher and pair, ``draws`` for each of the
    training points (n, d): draws * n should be several times p. ``teacher`` is the filter of the teacher's readouts."""
    modes, readouts, levels = [], [], []
    for k, t in enumerate(map(float, times)):
        noise = rng.standard_normal((draws, *data.shape))
        x = noised(data, t, noise).reshape(-1, features.d)
        phi, xi = features(x), noise.reshape(-1, features.d)
        eigenvalues, Q = eigh(phi.T @ phi / len(x), check_finite=False)
        own = Modes(t, eigenvalues, Q, Q.T @ (phi.T @ xi) / len(x))
        modes.append(own)
        readouts.append(own.readout(teacher))
        if k == 0:
            continue
        earlier = float(times[k - 1])
        seen = x.T @ phi / len(x)
        target, after = np.zeros_like(seen), np.zeros((features.p, features.p)) if k > 1 else None
        for b in range(0, len(x), BATCH):
            part = slice(b, b + BATCH)
            stepped = ddim(x[part], t, earlier, phi[part] @ readouts[k].T)
            arrived = features(stepped)
            if after is None:  # the consistency function at t_0 is the teacher's clean estimate (assumed)
                stepped = ddim(stepped, earlier, 0.0, arrived @ readouts[0].T)
            else:
                after += arrived.T @ phi[part] / len(x)
            target += stepped.T @ phi[part] / len(x)
        levels.append(Level(**vars(own), x=seen @ Q, target=target @ Q, after=None if after is None else after @ Q))
    return Chain(features, data, times, modes, readouts, levels)


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
    readouts: Readouts = []
    for k, level in enumerate(chain.levels, 1):
        apply = filters if callable(filters) else filters[k - 1]
        y = regression(chain, k, readouts[-1] if readouts else None)
        readouts.append((y * apply(level.eigenvalues)) @ level.vectors.T)
    return readouts


def teacher_start(chain: Chain, apply: Filter) -> Readouts:
    """Readouts that come closest to the teacher's own denoiser, e^t (x + Delta s(x)), by regression with ``apply``."""
    readouts: Readouts = []
    for k, level in enumerate(chain.levels, 1):
        grown = np.exp(level.t)
        denoised = grown * (level.x + delta(level.t) * (chain.readouts[k] @ level.vectors) * level.eigenvalues)
        y = (denoised - chain.c_skip(k) * level.x) / chain.c_out(k)
        readouts.append((y * apply(level.eigenvalues)) @ level.vectors.T)
    return readouts


def flow_student(
    chain: Chain, taus: Sequence[float], start: Readouts | None = None, substeps: int = 3
) -> list[Readouts]:
    """Readouts of every level at each time of ``taus`` (ascending, > 0), all levels trained together from ``start``
    (default 0)."""
    grid, ends = [0.0], []  # ends: where the times of taus lie in the grid
    for tau in taus:
        between = np.geomspace(grid[-1] or tau / 50, tau, substeps + 1)
        grid += list(between[between > grid[-1]])
        ends.append(len(grid) - 1)
    kept: list[Readouts] = [[] for _ in taus]
    path: list[np.ndarray] | None = None  # of the level below, at every time of the grid
    for k, level in enumerate(chain.levels, 1):
        force = 2 * delta(level.t) / chain.features.psi_p
        rate = force * np.maximum(level.eigenvalues, 1e-300)
        b = np.zeros_like(level.x) if start is None else start[k - 1] @ level.vectors
        now = force * regression(chain, k, None if path is None else path[0])
        ours = [b @ level.vectors.T]
        for i in range(1, len(grid)):
            nxt = now if path is None else force * regression(chain, k, path[i])
            h = grid[i] - grid[i - 1]
            z = rate * h
            decay = np.exp(-z)
            first = np.where(z > 1e-4, -np.expm1(-z) / z, 1 - z / 2)
            second = np.where(z > 1e-4, (z + np.expm1(-z)) / np.maximum(z, 1e-8) ** 2, 0.5 - z / 6)
            b = b * decay + h * (first * now + second * (nxt - now))
            now = nxt
            ours.append(b @ level.vectors.T)
        for readouts, end in zip(kept, ends):
            readouts.append(ours[end])
        path = ours
    return kept


def visited(count: int, nfe: int) -> list[int]:
    """Indices of the times that a sampler with ``nfe`` evaluations visits, from the last one down."""
    return [count - 1 - (j * count) // nfe for j in range(nfe)]


def teacher_samples(chain: Chain, x: np.ndarray, nfe: int, readouts: list[np.ndarray] | None = None) -> np.ndarray:
    """DDIM from noise x (S, d), the last step to the clean estimate; with other ``readouts`` than the chain's own if
    given."""
    return _follow(chain, x, nfe, lambda k, x: chain.features(x) @ (readouts or chain.readouts)[k].T)


def empirical_samples(chain: Chain, x: np.ndarray) -> np.ndarray:
    """The same over all times with the exact score of the training points."""

    def score(k: int, x: np.ndarray) -> np.ndarray:
        t = float(chain.times[k])
        means = math.exp(-t) * chain.data
        square = (x**2).sum(1)[:, None] + (means**2).sum(1) - 2 * x @ means.T
        return (softmax(-square / (2 * delta(t)), axis=1) @ means - x) / delta(t)

    return _follow(chain, x, len(chain.times), score)


def _follow(chain: Chain, x: np.ndarray, nfe: int, score: Callable[[int, np.ndarray], np.ndarray]) -> np.ndarray:
    order = visited(len(chain.times), nfe)
    for k, after in zip(order, [*order[1:], None]):
        t_next = 0.0 if after is None else float(chain.times[after])
        x = ddim(x, float(chain.times[k]), t_next, score(k, x))
    return x


def student_samples(chain: Chain, B: Readouts, x: np.ndarray, renoise: np.ndarray | None = None) -> np.ndarray:
    """One step from the last time; with ``renoise`` (S, d) a second one from the middle time."""

    def f(k: int, y: np.ndarray) -> np.ndarray:
        return chain.c_skip(k) * y + chain.c_out(k) * chain.features(y) @ B[k - 1].T

    clean = f(len(chain.times) - 1, x)
    if renoise is None:
        return clean
    middle = len(chain.times) // 2
    return f(middle, chain.c_skip(middle) * clean + chain.c_out(middle) * renoise)


def f_mem(samples: np.ndarray, data: np.ndarray) -> float:
    """Share of samples (S, d) nearer to a training point (n, d) than a third of the distance to the second-nearest."""
    nearest, second = nearest_two(torch.from_numpy(samples), torch.from_numpy(data))[0].T
    return float((nearest < COPY_RATIO * second).double().mean())


def variance_ratio(samples: np.ndarray) -> float:
    """tr Cov / d: 1 for the truth N(0, I)."""
    return float(samples.var(axis=0, ddof=1).mean())
