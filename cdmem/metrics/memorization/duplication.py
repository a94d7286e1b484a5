r"""The response to duplication: how the hits of a training image grow with the number of its copies.

.. math:: \log E[hits_i] = a + \beta \log c_i

The exact empirical sampler has :math:`\beta = 1`; below 1 duplication is answered less than in proportion. Hits vary
more between images than a Poisson count does, because some images are copied more readily than others; that is a
negative binomial count, whose variance is :math:`\mu + \alpha \mu^2` (Lawless 1987).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy import optimize, special, stats
from torch import Tensor

from cdmem.metrics.statistics import Estimate

STEEPEST = 50.0  # slopes are sought between -50 and 50
LEAST, MOST = 1e-6, 1e4  # relative variances alpha; below, a count is Poisson's
TOLERANCE = 1e-9


class Fit(NamedTuple):
    """The largest log likelihood (up to a constant of the hits) with a slope, and where it lies."""

    log_likelihood: float
    intercept: float
    alpha: float


class HitLikelihood:
    """Log likelihood of a slope, maximised over the intercept a and the relative variance alpha between images.

    Args:
        hits: (G,) counts, not all 0.
        copies: rows of T per group, (G,), at least 1.
    """

    def __init__(self, hits: np.ndarray, copies: np.ndarray) -> None:
        rows, self.groups = np.unique(np.stack([copies, hits]), axis=1, return_counts=True)  # equal groups once
        self.log_copies, self.hits = np.log(rows[0]), rows[1].astype(np.float64)

    def __call__(self, slope: float) -> float:
        """The largest log likelihood with this slope."""
        return self.fit(slope).log_likelihood

    def fit(self, slope: float) -> Fit:
        """Poisson's where hits vary no more than its own, else by Newton's method in the intercept and log alpha, which
        are orthogonal, from the alpha of moments."""
        top = (slope * self.log_copies).max()
        relative, groups = slope * self.log_copies - top, self.groups
        intercept = math.log(self.hits @ groups / (np.exp(relative) @ groups))
        mean = np.exp(intercept + relative)
        poisson = Fit(float((self.hits * (intercept + relative) - mean) @ groups), intercept - top, 0.0)
        excess = ((self.hits - mean) ** 2 - self.hits) @ groups
        if excess <= 0:
            return poisson
        alpha = min(max(excess / (mean**2 @ groups), LEAST), MOST)
        for _ in range(200):
            mean = np.exp(intercept + relative)
            weight = 1 / (1 + alpha * mean)
            score = ((self.hits - mean) * weight) @ groups
            across = min(max(score / ((mean * weight**2 * (1 + alpha * self.hits)) @ groups), -2.0), 2.0)
            along = _spread_step(self.hits, groups, mean, alpha)
            alpha, before = min(max(alpha * math.exp(along), LEAST), MOST), alpha
            intercept += across
            if max(abs(across), abs(math.log(alpha / before))) < TOLERANCE:
                break
        value = float(_log_probability(self.hits, intercept + relative, alpha) @ groups)
        return max(poisson, Fit(value, intercept - top, alpha))

    def maximum(self) -> float:
        """The slope of the largest likelihood; hits at one end of the multiplicities alone have none."""
        slope, x = 0.0, np.stack([np.ones_like(self.hits), self.log_copies], 1)
        for _ in range(200):
            _, intercept, alpha = self.fit(slope)
            mean = np.exp(intercept + slope * self.log_copies)
            weight = self.groups / (1 + alpha * mean)
            information = (x * (weight * mean)[:, None]).T @ x
            step = float(np.linalg.solve(information, x.T @ (weight * (self.hits - mean)))[1])
            slope = min(max(slope + min(max(step, -1.0), 1.0), -STEEPEST), STEEPEST)
            if abs(step) < TOLERANCE:
                break
        return slope

    def robust_interval(self, slope: float) -> tuple[float, float]:
        """95 % from a sandwich variance, right also where hits vary more between images of one multiplicity than of
        another: residuals corrected for their leverage (CR2), and Student's t with Satterthwaite's degrees of freedom
        (Bell & McCaffrey 2002), since the few most duplicated images alone may carry the slope. An image that is alone
        with its multiplicity may have no residual; it tells nothing here."""
        _, intercept, alpha = self.fit(slope)
        x = np.stack([np.ones_like(self.hits), self.log_copies], 1)
        mean = np.exp(intercept + slope * self.log_copies)
        weight = 1 / (1 + alpha * mean)
        bread = np.linalg.inv((x * (weight * mean * self.groups)[:, None]).T @ x)
        fitted = mean * np.einsum("ij,jk,ik->i", x, bread, x)  # variance of a fitted mean, over the mean
        left = 1 - weight * fitted
        corrected = np.where(left > 1e-6, (weight * (x @ bread[1])) ** 2 / np.maximum(left, 1e-6), 0.0)
        variance = float((corrected * (self.hits - mean) ** 2) @ self.groups)
        kept = mean / weight
        inner = (x * (corrected * mean**2 * self.groups)[:, None]).T @ x @ bread
        expected = (corrected * (kept - mean * fitted)) @ self.groups
        squares = (corrected**2 * (kept**2 - 2 * kept * mean * fitted)) @ self.groups + np.trace(inner @ inner)
        if not squares > 0:
            return slope, slope
        half = float(stats.t.ppf(0.975, expected**2 / squares)) * math.sqrt(variance)
        return slope - half, slope + half


def _spread_step(hits: np.ndarray, groups: np.ndarray, mean: np.ndarray, alpha: float) -> float:
    """Newton's step of log alpha with these means (k,); half a step uphill where the likelihood is convex."""
    rate = 1 / alpha
    first = special.psi(hits + rate) - special.psi(rate) - np.log1p(alpha * mean) + (mean - hits) / (rate + mean)
    second = special.zeta(2, hits + rate) - special.zeta(2, rate) + alpha - 1 / (rate + mean)
    second -= (mean - hits) / (rate + mean) ** 2
    slope = -float((rate * first) @ groups)
    bend = float((rate**2 * second + rate * first) @ groups)
    return min(max(-slope / bend, -1.0), 1.0) if bend < 0 else math.copysign(0.5, slope)


def _log_probability(hits: np.ndarray, log_mean: np.ndarray, alpha: float) -> np.ndarray:
    """Log probability of counts (k,) with means (k,) and alpha above 0, but for the factorial."""
    rate = 1 / alpha
    excess = special.gammaln(hits + rate) - special.gammaln(rate) + hits * math.log(alpha)
    return excess - (hits + rate) * np.log1p(alpha * np.exp(log_mean)) + hits * log_mean


def duplication_slope(hits: Tensor, copies: Tensor) -> Estimate | None:
    """Slope of hits on log multiplicity, by maximum likelihood, with a 95 % interval.

    The interval spans two: the profile likelihood's, of the slopes whose twice the log-likelihood deficit does not
    exceed the squared quantile of Student's t with G - 2 degrees of freedom, to which all groups tell how much hits
    vary; and :meth:`HitLikelihood.robust_interval`, which does not take that variation as equal.

    Args:
        hits: int64 (G,).
        copies: rows of T per group, int64 (G,), at least 1.

    Returns:
        ``inf`` with a finite lower bound where only images of the largest multiplicity were hit, ``-inf`` with a finite
        upper bound where only images of the smallest were: the slope at which the observed pattern keeps 2.5 % of its
        likelihood, for Poisson counts the exact probability that all hits fall there. None where nothing can be known:
        fewer than three groups, one multiplicity, or no hits.
    """
    y, c = hits.numpy(), copies.numpy()
    hit = np.unique(c[y > 0])
    if len(c) < 3 or c.min() == c.max() or not len(hit):
        return None
    likelihood = HitLikelihood(y, c)
    if hit[0] == c.max() or hit[-1] == c.min():
        side = 1 if hit[0] == c.max() else -1
        bound = _end(likelihood, side * STEEPEST, -side, -math.log(0.025))
        return Estimate(side * math.inf, *sorted((side * math.inf, bound)))
    best = likelihood.maximum()
    deficit = float(stats.t.ppf(0.975, len(c) - 2)) ** 2 / 2
    low, high = likelihood.robust_interval(best)
    return Estimate(best, min(low, _end(likelihood, best, -1, deficit)), max(high, _end(likelihood, best, 1, deficit)))


def _end(likelihood: Callable[[float], float], inside: float, side: int, deficit: float) -> float:
    """Where the log likelihood is ``deficit`` less than at ``inside``, on its side (-1 or 1); infinite if nowhere."""
    enough, step = likelihood(inside) - deficit, 0.1
    while abs(inside) <= STEEPEST:
        outside = inside + side * step
        if likelihood(outside) < enough:
            return float(optimize.brentq(lambda slope: likelihood(slope) - enough, inside, outside, xtol=1e-5))
        inside, step = outside, 2 * step
    return side * math.inf
