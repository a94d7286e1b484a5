r"""Least squares of D(t) = L + a g(t) for many laws g at once, and the interval of L over all of them.

The mean differences y (K,) have the covariance S / m + n^2 R. S / m is what drawing the seeds anew would do: the same
seeds at all evaluations, so it is far from diagonal. n is the noise of a training step, which moves all seeds together;
R falls to 1/8 over three half-lives of the averaged weights. For every law and every n of a grid the generalised least
squares are solved in closed form. No estimate of n is plugged in: each n is weighted by its likelihood, integrated over
L, a and the laws (flat prior on n), and p values are averaged with these weights. In a linear model without S that
is Student's t.

The p value of a limit is that of the likelihood ratio, min over laws Q(limit, law) - min Q, divided by
:data:`OVERCONFIDENCE`, against chi-squared with one degree of freedom. The interval, all limits with p > 1 -
confidence, so contains every limit that some law reaches without fitting worse: the choice of the law lies inside.
A law on the bound of the exponents is compared with two degrees of freedom: no law beyond it can take up what noise
does there. Where bounds say what a limit can be, the best law is the best one whose limit lies there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import optimize, special, stats

from cdmem.metrics.comparison.laws import LEAST_EXPONENT, RISING, Laws, allowed, law_grid

Bounds = tuple[float, float]
EVERYWHERE: Bounds = (-np.inf, np.inf)
NOISE_LEVELS = 16
PLAUSIBLE = 24.0  # laws whose Q exceeds the least one by more decide no interval up to 99.999 %
EXTRA = 2.0  # what the Q of two rates must be better by, for their additional number (Akaike)
# By which Q is divided for intervals of the limit: what the choice of the first evaluation and the bounded family add
# to the noise, from simulations (benchmarks/limits.py), so that the 95 % interval holds at least 93 %.
OVERCONFIDENCE = 1.2
SMOOTH = (2, 3, 4)  # degrees of the terms that an adequate law leaves no room for


@dataclass(frozen=True)
class Curve:
    """Evaluations to be fitted.

    Attributes:
        steps: float64 (K,), rising.
        mean: paired differences averaged over the seeds, (K,).
        covariance: of ``mean`` under drawing seeds, (K, K).
        memory: steps over which the noise of a training step falls to 1/8; 0: none.
    """

    steps: np.ndarray
    mean: np.ndarray
    covariance: np.ndarray
    memory: float = 0.0

    def since(self, start: int) -> Curve:
        """Without the first ``start`` evaluations."""
        return Curve(self.steps[start:], self.mean[start:], self.covariance[start:, start:], self.memory)

    @property
    def elapsed(self) -> np.ndarray:
        return self.steps - self.steps[0]

    @cached_property
    def axes(self) -> tuple[np.ndarray, np.ndarray]:
        """Axes on which both kinds of noise are independent, the step noise with variance 1.

        Returns:
            The seeds' variances on them (K,), and the matrix (K, K) that turns rows of evaluations to them.
        """
        apart = np.abs(self.steps[:, None] - self.steps)
        noise = 8.0 ** (-apart / self.memory) if self.memory > 0 else np.eye(len(apart))
        undo = np.linalg.inv(np.linalg.cholesky(noise))
        spread, axes = np.linalg.eigh(undo @ self.covariance @ undo.T)
        return np.maximum(spread, 0), undo.T @ axes

    def noise_levels(self) -> np.ndarray:
        """A grid of n, from far below to far above the scatter of evaluations about lines through their neighbours."""
        share = (self.steps[1:-1] - self.steps[:-2]) / (self.steps[2:] - self.steps[:-2])
        off = self.mean[1:-1] - (1 - share) * self.mean[:-2] - share * self.mean[2:]
        rough = float(np.sqrt(np.mean(off**2 / (1 + share**2 + (1 - share) ** 2))))
        return np.geomspace(0.03, 4, NOISE_LEVELS) * max(rough, 1e-9 * float(np.ptp(self.mean)), 1e-12)


@dataclass(frozen=True)
class Scan:
    """Solutions for every noise level (rows, T) and law (columns, n).

    Attributes:
        curve: what was fitted.
        laws: n of them.
        noise: levels of n, (T,).
        weights: of the levels, (T,), sum 1.
        limit: L, (T, n).
        amplitude: a, (T, n).
        variance: of L given the law, (T, n).
        misfit: Q, (T, n), of two rates with :data:`EXTRA`.
        line: Q with a straight line in the steps instead, (T,).
        constant: Q without any change, (T,).
        bounds: what L can be.
    """

    curve: Curve
    laws: Laws
    noise: np.ndarray
    weights: np.ndarray
    limit: np.ndarray
    amplitude: np.ndarray
    variance: np.ndarray
    misfit: np.ndarray
    line: np.ndarray
    constant: np.ndarray
    bounds: Bounds = EVERYWHERE

    @property
    def level(self) -> int:
        """The noise level at the middle of its distribution."""
        return int(np.searchsorted(np.cumsum(self.weights), 0.5))

    @property
    def best(self) -> int:
        """The law that fits best at that level with a limit within the bounds."""
        return int(np.argmin(self.misfit_within[self.level]))

    @property
    def value(self) -> float:
        """That law's limit, within the bounds."""
        return float(np.clip(self.limit[self.level, self.best], *self.bounds))

    @cached_property
    def misfit_within(self) -> np.ndarray:
        """Q with the limit held within the bounds, (T, n)."""
        return self.misfit + (self.limit - np.clip(self.limit, *self.bounds)) ** 2 / self.variance

    def p_bounds(self) -> float:
        """p value of "the limit lies within the bounds"."""
        worse = self.misfit_within.min(1) - self.misfit.min(1)
        return float(self.weights @ special.chdtrc(1, worse / OVERCONFIDENCE))

    def p_limit(self, values: np.ndarray) -> np.ndarray:
        """p value of each limit in ``values``, (v,), within the bounds: against the best law there."""
        p, on_bound = np.zeros(len(values)), self.laws.curvature >= (1 - 1e-9) / LEAST_EXPONENT
        least = self.misfit_within.min(1)
        for weight, limit, variance, misfit, floor in zip(self.weights, self.limit, self.variance, self.misfit, least):
            if weight > 1e-5:
                extra = misfit - floor
                near = extra < PLAUSIBLE
                excess = (values[:, None] - limit[near]) ** 2 / variance[near] + extra[near]
                excess = np.maximum(excess, 0) / OVERCONFIDENCE
                inside, bound = (excess[:, on_bound[near] == b].min(1, initial=1e3) for b in (False, True))
                p += weight * np.maximum(special.chdtrc(1, inside), special.chdtrc(2, bound))
        return p

    def p_law(self) -> np.ndarray:
        """p value of each law, (n,), with one degree of freedom: for an interval of one number that a law has."""
        return self.weights @ special.chdtrc(1, self.misfit_within - self.misfit_within.min(1, keepdims=True))

    def p_constant(self) -> float:
        """p value of "no change at all" against the laws, three degrees of freedom (a, k, tau)."""
        return float(self.weights @ special.chdtrc(3, np.maximum(self.constant - self.misfit.min(1), 0)))

    def p_line(self) -> float:
        """p value of "a straight line" against the laws, two degrees of freedom."""
        return float(self.weights @ special.chdtrc(2, np.maximum(self.line - self.misfit.min(1), 0)))

    def p_slope(self) -> float:
        """p value of "no change at all" against a straight line, one degree of freedom."""
        return float(self.weights @ special.chdtrc(1, np.maximum(self.constant - self.line, 0)))

    def interval(self, confidence: float) -> tuple[float, float]:
        """Outermost limits with p > 1 - ``confidence``."""
        centre = self.value
        near = self.misfit[self.level] - self.misfit[self.level].min() < PLAUSIBLE
        reach = 6 * float(np.sqrt(self.variance[:, near].max())) + float(np.abs(self.limit[:, near] - centre).max())
        low, high = (float(np.clip(centre + side, *self.bounds)) - centre for side in (-reach, reach))
        return self._outermost(centre, low, confidence), self._outermost(centre, high, confidence)

    def _outermost(self, centre: float, reach: float, confidence: float) -> float:
        """The accepted limit farthest from ``centre`` on the side of ``reach``: 60 values, then ever closer ones."""
        low, high, values = 0.0, 1.0, 60
        for _ in range(4):
            parts = np.linspace(low, high, values)
            accepted = np.flatnonzero(self.p_limit(centre + reach * parts) > 1 - confidence)
            last = int(accepted[-1]) if len(accepted) else 0
            low, high, values = float(parts[last]), float(parts[min(last + 1, len(parts) - 1)]), 8
        return centre + reach * (low + high) / 2


def scan(curve: Curve, laws: Laws, noise: np.ndarray, bounds: Bounds = EVERYWHERE) -> Scan:
    """Fit all ``laws`` at all levels of ``noise``, (T,), rising and positive."""
    centre, ones = float(curve.mean.mean()), np.ones(len(curve.steps))
    shapes = np.vstack([laws.gap(curve.elapsed), curve.elapsed / curve.elapsed[-1]])
    spread, axes = curve.axes
    one, y, g = ones @ axes, (curve.mean - centre) @ axes, shapes @ axes
    inverse = 1 / (spread + noise[:, None] ** 2)
    s11, s1y, syy = ((inverse @ v)[:, None] for v in (one * one, one * y, y * y))
    s1g, sgy, sgg = (inverse * one) @ g.T, (inverse * y) @ g.T, inverse @ (g * g).T
    det = np.maximum(s11 * sgg - s1g**2, 1e-300)
    limit, amplitude = (sgg * s1y - s1g * sgy) / det, (s11 * sgy - s1g * s1y) / det
    misfit = np.maximum(syy - limit * s1y - amplitude * sgy, 0)
    misfit[:, :-1] += EXTRA * (laws.quick < 1)
    likelihood = 0.5 * (np.log(inverse).sum(1)[:, None] - np.log(det) - misfit)[:, :-1]
    weights = np.exp(likelihood - likelihood.max()).sum(1) * (np.gradient(noise) if len(noise) > 1 else 1.0)
    fits = (limit[:, :-1] + centre, amplitude[:, :-1], (sgg / det)[:, :-1], misfit[:, :-1])
    return Scan(curve, laws, noise, weights / weights.sum(), *fits, misfit[:, -1], (syy - s1y**2 / s11)[:, 0], bounds)


def fit_laws(curve: Curve, noise: np.ndarray | None = None, bounds: Bounds = EVERYWHERE) -> Scan:
    """All laws of :func:`~cdmem.metrics.comparison.laws.law_grid`, closer where they fit, and the best one exactly.

    Args:
        curve: at least five evaluations.
        noise: levels of n; None takes :meth:`Curve.noise_levels`.
        bounds: what the limit can be.
    """
    noise = curve.noise_levels() if noise is None else noise
    rows = law_grid(curve.steps[0], curve.steps[-1], len(curve.steps))
    coarse = scan(curve, Laws.join(rows), noise, bounds)
    misfit, begin, finer = coarse.misfit_within[coarse.level], 0, []
    for row in rows:
        good = np.flatnonzero(misfit[begin : begin + len(row)] < misfit.min() + PLAUSIBLE)
        begin += len(row)
        if len(good):
            ends = row.tau[[max(good[0] - 1, 0), min(good[-1] + 1, len(row) - 1)]]
            taus = np.geomspace(ends[0], ends[1], 24)
            finer.append(Laws.row(taus, row.curvature[0], row.slow[0], row.quick[0]))
    return _polished(scan(curve, Laws.join(finer), noise, bounds))


def _polished(result: Scan) -> Scan:
    """With one more law: the best one, its curvature and tau between the grid's values (with two rates, tau)."""
    curve, law = result.curve, result.laws.take(np.array([result.best]))
    ends, noise = (float(curve.steps[0]), float(curve.steps[-1])), result.noise[[result.level]]
    one, start = np.ones(1), np.array([np.log(law.tau[0]), law.curvature[0]])
    start = start[:1] if law.quick[0] < 1 else start

    def place(x: np.ndarray) -> Laws:
        return Laws(np.exp(x[:1]), x[1:] if len(x) > 1 else law.curvature, law.slow, law.quick)

    def misfit(x: np.ndarray) -> float:
        at = place(x)
        if at.curvature[0] < RISING[-1] or not allowed(Laws(at.tau, at.curvature, one, one), *ends)[0]:
            return np.inf
        return float(scan(curve, at, noise, result.bounds).misfit_within[0, 0])

    corners = np.vstack([start, start + np.diag([0.05, -0.05])[: len(start), : len(start)]])
    options = {"initial_simplex": corners, "xatol": 1e-6, "fatol": 1e-6, "maxfev": 80}
    found = place(optimize.minimize(misfit, start, method="Nelder-Mead", options=options).x)
    return scan(curve, Laws.join([result.laws, found]), result.noise, result.bounds)


def tangents(curve: Curve, law: Laws) -> np.ndarray:
    """Columns 1, g and the change of g with tau and curvature, (K, 4), each of length 1: what a better fit may use."""
    t, step = curve.elapsed, 1e-3
    g = law.gap(t)[0]
    longer = Laws(law.tau * (1 + step), law.curvature, law.slow, law.quick).gap(t)[0]
    bent = Laws(law.tau, law.curvature + step, law.slow, law.quick).gap(t)[0]
    columns = np.stack([np.ones(len(t)), g, (longer - g) / step, (bent - g) / step])
    return (columns / np.maximum(np.linalg.norm(columns, axis=1, keepdims=True), 1e-12)).T


def adequacy(result: Scan) -> float:
    """p value of "the law leaves nothing but noise": F test of three smooth terms beside it, Legendre polynomials.

    The step noise is the one at which the fit with these terms leaves what it should, so that a misfit of the law does
    not pass for noise. A law that needs the highest noise level, far above the scatter about neighbours, gets 0.
    """
    curve = result.curve
    if len(result.noise) > 1 and result.level == len(result.noise) - 1:
        return 0.0
    base = tangents(curve, result.laws.take(np.array([result.best])))
    place = (_unit(np.log(curve.steps)) + _unit(curve.steps)) / 2
    smooth = np.stack([special.eval_legendre(k, place) for k in SMOOTH])
    spread, axes = curve.axes
    turned = np.vstack([curve.mean - curve.mean.mean(), base.T, smooth]) @ axes
    free = len(curve.steps) - base.shape[1] - len(SMOOTH)

    def left(noise: float) -> tuple[float, float]:
        """Q without and with the terms."""
        scaled = turned.T / np.sqrt(spread + noise**2)[:, None]
        y, x = scaled[:, 0], scaled[:, 1:]
        parts = (_basis(x[:, : base.shape[1]]), _basis(x))
        return tuple(float(((y - u @ (u.T @ y)) ** 2).sum()) for u in parts)  # type: ignore[return-value]

    noise = _noise_for(lambda n: left(n)[1] - free, float(result.noise[0]), 10 * float(result.noise[-1]))
    without, with_terms = left(noise)
    # Where the seeds alone explain more than there is, their variance is the yardstick.
    return float(stats.f.sf((without - with_terms) / len(SMOOTH) / max(with_terms / free, 1.0), len(SMOOTH), free))


def _noise_for(excess: Callable[[float], float], low: float, high: float) -> float:
    """Where ``excess`` (falling) is 0, or the end of the range where it is not."""
    if excess(low) <= 0:
        return low
    return high if excess(high) >= 0 else float(optimize.brentq(excess, low, high, rtol=1e-3))


def _unit(x: np.ndarray) -> np.ndarray:
    return 2 * (x - x[0]) / (x[-1] - x[0]) - 1


def _basis(x: np.ndarray) -> np.ndarray:
    """Orthonormal columns that span ``x``, without directions that only rounding made."""
    u, s, _ = np.linalg.svd(x, full_matrices=False)
    return u[:, s > 1e-9 * s[0]]
