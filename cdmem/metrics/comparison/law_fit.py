r"""Least squares of D(t) = L + a g(t) for many laws g at once, and the interval of L over all of them.

The mean differences y (K,) have the covariance S / m + n^2 I: S / m is what drawing the seeds anew would do, the same
seeds at all evaluations (so it is far from diagonal), n the noise of a training step, which moves all seeds together.
For every law and every n of a grid the generalised least squares are solved in closed form. n is nowhere set to an
estimate: each n is weighted by its likelihood, integrated over L, a and the laws (flat prior on n), and p values are
averaged with these weights. In a linear model without S that is Student's t, with one degree of freedom less than usual.

The p value of a limit L0 is that of the likelihood ratio, min over laws Q(L0, law) - min Q against chi-squared with one
degree of freedom: the interval, all L0 with p > 1 - confidence, contains every limit that some law reaches without
fitting worse, so the choice of the law lies inside.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import optimize, special, stats

from cdmem.metrics.comparison.laws import LEAST_EXPONENT, Laws, law_grid

NOISE_LEVELS = 16
PLAUSIBLE = 20.0  # laws whose Q exceeds the least one by more never decide an interval up to 99.9 %


@dataclass(frozen=True)
class Curve:
    """Evaluations to be fitted.

    Attributes:
        steps: float64 (K,), rising.
        mean: paired differences averaged over the seeds, (K,).
        covariance: of ``mean`` under drawing seeds, (K, K).
        memory: steps over which the noise of a training step falls to 1/8 (three half-lives of the averaged weights).
    """

    steps: np.ndarray
    mean: np.ndarray
    covariance: np.ndarray
    memory: float

    def since(self, start: int) -> Curve:
        """Without the first ``start`` evaluations."""
        return Curve(self.steps[start:], self.mean[start:], self.covariance[start:, start:], self.memory)

    @property
    def elapsed(self) -> np.ndarray:
        return self.steps - self.steps[0]

    def turned(self, *columns: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
        """Axes on which seeds and noise are independent: the seeds' variances (K,) there, where the noise has variance
        1, and the ``columns`` (..., K) turned to them."""
        apart = np.abs(self.steps[:, None] - self.steps)
        noise = 8.0 ** (-apart / self.memory) if self.memory > 0 else (apart == 0).astype(float)
        undo = np.linalg.inv(np.linalg.cholesky(noise))
        spread, axes = np.linalg.eigh(undo @ self.covariance @ undo.T)
        return np.maximum(spread, 0), [c @ undo.T @ axes for c in columns]

    def roughness(self) -> float:
        """Scatter of an evaluation about the line through its two neighbours, as a standard deviation."""
        share = (self.steps[1:-1] - self.steps[:-2]) / (self.steps[2:] - self.steps[:-2])
        off = self.mean[1:-1] - (1 - share) * self.mean[:-2] - share * self.mean[2:]
        return float(np.sqrt(np.mean(off**2 / (1 + share**2 + (1 - share) ** 2))))


@dataclass(frozen=True)
class Scan:
    """Solutions for every noise level (rows) and law (columns).

    Attributes:
        curve: what was fitted.
        laws: n of them.
        noise: n of the module, (T,).
        weights: of the noise levels, (T,), sum 1.
        limit: L, (T, n).
        amplitude: a, (T, n).
        variance: of L given the law, (T, n).
        misfit: Q, (T, n).
    """

    curve: Curve
    laws: Laws
    edges: np.ndarray
    noise: np.ndarray
    weights: np.ndarray
    limit: np.ndarray
    amplitude: np.ndarray
    variance: np.ndarray
    misfit: np.ndarray

    @property
    def level(self) -> int:
        """The noise level at the middle of its distribution."""
        return int(np.searchsorted(np.cumsum(self.weights), 0.5))

    @property
    def best(self) -> int:
        """The law that fits best at that level."""
        return int(np.argmin(self.misfit[self.level]))

    def p_limit(self, values: np.ndarray) -> np.ndarray:
        """p value of each limit in ``values`` (v,)."""
        p = np.zeros(len(values))
        for w, limit, variance, misfit in zip(self.weights, self.limit, self.variance, self.misfit):
            if w < 1e-4:
                continue
            extra = misfit - misfit.min()
            near = extra < PLAUSIBLE
            offsets = (values[:, None] - limit[near]) ** 2 / variance[near] + extra[near]
            p += w * np.max(
                [special.chdtrc(1 + e, offsets[:, self.edges[near] == e].min(1, initial=999.0)) for e in range(3)], 0
            )
        return p / self.weights[self.weights >= 1e-4].sum()

    def p_law(self) -> np.ndarray:
        """p value of each law, (n,), with one degree of freedom: for an interval of one number that belongs to a law."""
        extra = self.misfit - self.misfit.min(1, keepdims=True)
        return self.weights @ special.erfc(np.sqrt(extra / 2))

    def interval(self, confidence: float) -> tuple[float, float]:
        """Outermost limits with p > 1 - ``confidence``."""
        centre = float(self.limit[self.level, self.best])
        near = self.misfit[self.level] - self.misfit[self.level].min() < PLAUSIBLE
        reach = 5 * np.sqrt(self.variance[:, near].max()) + np.abs(self.limit[:, near] - centre).max()
        return self._outermost(centre, -reach, confidence), self._outermost(centre, reach, confidence)

    def _outermost(self, centre: float, reach: float, confidence: float) -> float:
        """The accepted limit farthest from ``centre`` on the side of ``reach``: 120 values, then bisection."""
        parts = np.linspace(0, 1, 120)
        accepted = np.flatnonzero(self.p_limit(centre + reach * parts) > 1 - confidence)
        low = float(parts[accepted[-1]]) if len(accepted) else 0.0
        high = low + float(parts[1])
        for _ in range(3):
            finer = np.linspace(low, high, 12)
            inside = np.flatnonzero(self.p_limit(centre + reach * finer) > 1 - confidence)
            last = int(inside[-1]) if len(inside) else 0
            low, high = float(finer[last]), float(finer[min(last + 1, 11)])
        return centre + reach * (low + high) / 2


def _products(curve: Curve, shapes: np.ndarray, noise: np.ndarray) -> dict[str, np.ndarray]:
    """Sums of squares and products of 1, g and y under every noise level's inverse covariance, (T, n) or (T, 1)."""
    spread, (one, y, g) = curve.turned(np.ones(len(curve.steps)), curve.mean - curve.mean.mean(), shapes)
    inverse = 1 / (spread + noise[:, None] ** 2)
    return {
        "logdet": -np.log(inverse).sum(1)[:, None],
        "11": (inverse * one * one).sum(1)[:, None],
        "1y": (inverse * one * y).sum(1)[:, None],
        "yy": (inverse * y * y).sum(1)[:, None],
        "1g": (inverse * one) @ g.T,
        "gy": (inverse * y) @ g.T,
        "gg": inverse @ (g * g).T,
    }


def scan(curve: Curve, laws: Laws, noise: np.ndarray, edges=None) -> Scan:
    """Fit all ``laws`` at all levels of ``noise`` (T,), rising and positive."""
    s = _products(curve, laws.gap(curve.elapsed), noise)
    det = np.maximum(s["11"] * s["gg"] - s["1g"] ** 2, 1e-300)
    limit = (s["gg"] * s["1y"] - s["1g"] * s["gy"]) / det
    amplitude = (s["11"] * s["gy"] - s["1g"] * s["1y"]) / det
    misfit = np.maximum(s["yy"] - limit * s["1y"] - amplitude * s["gy"], 0)
    likelihood = -0.5 * (s["logdet"] + np.log(det) + misfit)
    top = likelihood.max()
    weights = np.exp(likelihood - top).sum(1) * np.gradient(noise)
    return Scan(
        curve,
        laws,
        edges,
        noise,
        weights / weights.sum(),
        limit + curve.mean.mean(),
        amplitude,
        s["gg"] / det,
        misfit,
    )


def fit_laws(curve: Curve) -> Scan:
    """All laws of :func:`~cdmem.metrics.comparison.laws.law_grid`, each row's time scales taken closer where they fit."""
    noise = np.geomspace(0.03, 4, NOISE_LEVELS) * max(curve.roughness(), 1e-9 * (np.ptp(curve.mean) or 1.0))
    rows = law_grid(curve.steps[0], curve.steps[-1], len(curve.steps))
    coarse = scan(curve, Laws.join(rows), noise)
    misfit = coarse.misfit[coarse.level]
    ends = np.cumsum([0] + [len(r) for r in rows])
    finer = []
    edges = []
    top = {id(r): r.tau[-1] for r in rows}
    for row, begin, end in zip(rows, ends[:-1], ends[1:]):
        good = np.flatnonzero(misfit[begin:end] < misfit.min() + PLAUSIBLE)
        if len(good) == 0:
            continue
        low, high = max(int(good[0]) - 1, 0), min(int(good[-1]) + 1, len(row) - 1)
        taus = np.geomspace(row.tau[low], row.tau[high], 24 if high > low else 1)
        edges.append((row.curvature[0] > 1 / LEAST_EXPONENT - 1e-9) * 1 + (taus > 0.999 * top[id(row)]) * 1)
        finer.append(Laws.of(taus, row.curvature[0], row.slow[0], row.quick[0]))
    return scan(curve, Laws.join(finer), noise, np.concatenate(edges))


def tangents(curve: Curve, law: Laws) -> np.ndarray:
    """Columns 1, g and the change of g with tau and curvature, (K, 4), each of length 1: what a better fit may use."""
    t, step = curve.elapsed, 1e-3
    bent = Laws(law.tau, law.curvature + step, law.slow, law.quick)
    later = Laws(law.tau * (1 + step), law.curvature, law.slow, law.quick)
    g = law.gap(t)[0]
    columns = np.stack([np.ones(len(t)), g, (later.gap(t)[0] - g) / step, (bent.gap(t)[0] - g) / step])
    return (columns / np.maximum(np.linalg.norm(columns, axis=1, keepdims=True), 1e-12)).T


def adequacy(result: Scan) -> float:
    """p value of "the law leaves nothing but noise": F test of three smooth terms beside it (Legendre 2 to 4).

    The noise of the steps is the one at which the fit with these terms leaves what it should, so that a misfit of the
    law does not count as noise.
    """
    curve, law = result.curve, result.laws[np.array([result.best])]
    base = tangents(curve, law)
    place = (_unit(np.log(curve.steps)) + _unit(curve.steps)) / 2
    smooth = np.stack([special.eval_legendre(k, place) for k in (2, 3, 4)], 1)
    free = len(curve.steps) - 7
    spread, columns = curve.turned(curve.mean - curve.mean.mean(), base.T, smooth.T)
    turned = np.vstack(columns).T

    def left(noise: float) -> tuple[float, float]:
        """Q without and with the three terms."""
        y, x = np.split(turned / np.sqrt(spread + noise**2)[:, None], [1], axis=1)
        q = [float(((y[:, 0] - u @ (u.T @ y[:, 0])) ** 2).sum()) for u in (_basis(x[:, :4]), _basis(x))]
        return q[0], q[1]

    low, high = 0.01 * result.noise[0], 10 * result.noise[-1]
    noise = low if left(low)[1] <= free else float(optimize.brentq(_excess(left, free), low, high, rtol=1e-3))
    without, with_terms = left(noise)
    return float(stats.f.sf((without - with_terms) / 3 / max(with_terms / free, 1e-300), 3, free))


def _excess(left: Callable[[float], tuple[float, float]], free: int) -> Callable[[float], float]:
    return lambda noise: left(noise)[1] - free


def _unit(x: np.ndarray) -> np.ndarray:
    return 2 * (x - x[0]) / (x[-1] - x[0]) - 1


def _basis(x: np.ndarray) -> np.ndarray:
    """Orthonormal columns that span ``x``, without directions that rounding made."""
    u, s, _ = np.linalg.svd(x, full_matrices=False)
    return u[:, s > 1e-9 * s[0]]
