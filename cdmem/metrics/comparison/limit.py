"""The limit that a student's paired difference to its teacher goes to, and the law by which it gets there.

See `cdmem.metrics.comparison.laws` for the laws and `cdmem.metrics.comparison.law_fit` for the fit and the interval.
Evaluations at the beginning are left out one by one until a law describes the rest (F test, p > :data:`ADEQUATE`): what
happens first need not follow the law of the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cdmem.metrics.comparison.law_fit import Curve, Scan, adequacy, fit_laws
from cdmem.metrics.comparison.laws import exponent

LEAST_EVALUATIONS = 12
LEAST_SEEDS = 2000
ADEQUATE = 0.1
STRAIGHT, MOVES = 9.2, 4.6  # chi-squared, two degrees of freedom at 1 %, and one at 3 %
WIDEST = 0.5  # of a 95 % interval that says anything


@dataclass(frozen=True)
class Limit:
    """A limit with its law.

    Attributes:
        scan: the fit of all laws.
        from_step: first evaluation that the law describes.
        to_step: last one.
        evaluations: that were fitted.
        samples: seeds.
    """

    scan: Scan
    from_step: int
    to_step: int
    evaluations: int
    samples: int

    @property
    def value(self) -> float:
        """Of the law that fits best."""
        return float(self.scan.limit[self.scan.level, self.scan.best])

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Limits that some law reaches without fitting worse."""
        return self.scan.interval(confidence)

    def exponent(self) -> tuple[float, float, float]:
        """Value and 95 % interval of the exponent: of the power law that halves the gap by the same factor at the end."""
        scan, best = self.scan, self.scan.best
        near = np.unique([best, *np.flatnonzero(scan.p_law() > 0.05)])
        halving = scan.laws[near].halving(self.to_step - self.from_step, self.to_step)
        values = exponent(halving)
        return float(values[np.searchsorted(near, best)]), float(values.min()), float(values.max())

    def record(self, error: float = 0.05) -> dict[str, Any]:
        """JSON types; ``error`` is that of ``ci95``, two-sided, and of ``ci90``, one-sided."""
        power, low, high = self.exponent()
        ends = {"ci95": self.interval(1 - error), "ci90": self.interval(1 - 2 * error)}
        return {
            "value": self.value,
            **{name: [float(end) for end in interval] for name, interval in ends.items()},
            "exponent": {"value": power, "ci95": [low, high]},
            "shrinks": 2.0 ** (1 / power),
            "law": f"the distance to it halves with {2.0 ** (1 / power):.1f} times the distillation",
            "from_step": self.from_step,
            "to_step": self.to_step,
            "evaluations": self.evaluations,
            "samples": self.samples,
            "step_noise": float(self.scan.noise[self.scan.level]),
        }


def spaced(steps: Sequence[int], least: float) -> list[int]:
    """Places of the evaluations that are kept: the last one, and from there back those at least so many steps apart."""
    kept = [len(steps) - 1]
    for k in range(len(steps) - 2, -1, -1):
        if steps[kept[-1]] - steps[k] >= least:
            kept.append(k)
    return kept[::-1]


def still_linear(scan: Scan) -> bool:
    """Whether a straight line that moves describes the curve about as well as the best law: then it has not bent yet."""
    curve = scan.curve
    spread, (one, time, y) = curve.turned(np.ones(len(curve.steps)), curve.elapsed / curve.elapsed[-1], curve.mean)
    scale = 1 / np.sqrt(spread + scan.noise[scan.level] ** 2)
    x, y = np.stack([one, time], 1) * scale[:, None], y * scale
    inverse = np.linalg.inv(x.T @ x)
    line = inverse @ x.T @ y
    misfit = float(((y - x @ line) ** 2).sum()) - float(scan.misfit[scan.level].min())
    return misfit < STRAIGHT and line[1] ** 2 / inverse[1, 1] > MOVES


def fit_limit(steps: Sequence[int], differences: np.ndarray, least_spacing: float = 0) -> Limit | str:
    """The limit of paired differences along a constant-rate phase.

    Args:
        steps: of the evaluations (K,), rising, above 0.
        differences: student minus teacher of each seed, in {-1, 0, 1}, (K, m).
        least_spacing: steps between evaluations, three half-lives of the averaged weights; closer ones are left out.

    Returns:
        the limit, or why none can be given, as text.
    """
    kept = spaced(steps, least_spacing)
    if len(kept) < LEAST_EVALUATIONS:
        apart = f" at least {least_spacing:g} steps apart" if least_spacing else ""
        return f"{len(kept)} evaluations{apart}, {LEAST_EVALUATIONS} are needed"
    values = np.asarray(differences, dtype=np.float64)[kept]
    if values.shape[1] < LEAST_SEEDS:
        return f"{values.shape[1]} seeds an evaluation, {LEAST_SEEDS:,} are needed"
    if np.ptp(values, axis=0).max() == 0:
        return "no seed ever changed sides"
    where = np.asarray(steps, dtype=np.float64)[kept]
    covariance = np.cov(values) / values.shape[1]
    curve = Curve(where, values.mean(1), covariance, float(least_spacing))
    for start in range(len(kept) - LEAST_EVALUATIONS + 1):
        part = curve.since(start)
        scan = fit_laws(part)
        if adequacy(scan) > ADEQUATE:
            if still_linear(scan):
                return "still linear"
            low, high = scan.interval(0.95)
            if high - low > WIDEST or low < -1 or high > 1:
                return "the curve does not bend enough yet"
            return Limit(scan, int(part.steps[0]), int(part.steps[-1]), len(part.steps), int(values.shape[1]))
    return "no law describes the last evaluations"
