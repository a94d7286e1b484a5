"""Does a student still come nearer to its teacher's endpoints, or has it begun to move away?

On the same seeds, from the last evaluation before the last third of the distillation to its end: the change of the
squared error, as a relative change of rmse. With four evaluations or more it is the change along a straight line
through them, and the interval holds the seeds' scatter and that of the steps about the line: at a constant rate two
single evaluations differ by more than their seeds explain. With fewer it is last minus first, and only the seeds count.
``stopped``: the 90 % interval lies within +-:data:`RMSE_MARGIN`; otherwise ``rising`` or ``falling`` where the 95 %
interval lies beside 0, else ``undetermined``.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from scipy import stats

from cdmem.metrics.comparison.claims import state

RMSE_MARGIN = 0.05
LINE = 4  # evaluations; a line through three leaves one to tell the steps' scatter by
Trend = Literal["rising", "falling", "stopped", "undetermined"]
TRENDS: dict[str, Trend] = {
    "above": "rising",
    "below": "falling",
    "equivalent": "stopped",
    "unclear": "undetermined",
}
BySeed = dict[int, tuple[np.ndarray, np.ndarray]]  # step -> (seeds (m,), values (m,))


@dataclass(frozen=True)
class Convergence:
    """Relative change of rmse over the last third of the distillation.

    Attributes:
        trend: see the module.
        change: of rmse, as a share of what it was.
        low: lower 95 % bound of the change.
        high: upper 95 % bound.
        from_step: last evaluation before the last third, or the first one.
        to_step: last evaluation.
        samples: seeds present at both.
    """

    trend: Trend
    change: float
    low: float
    high: float
    from_step: int
    to_step: int
    samples: int

    def record(self) -> dict[str, Any]:
        return asdict(self)


def rmse_convergence(errors_by_step: BySeed) -> Convergence | None:
    """Judge the rmse curve.

    Args:
        errors_by_step: step -> (seeds (m,), mean squared error per pixel (m,)).

    Returns:
        None with fewer than two evaluations after step 0, when these share fewer than two seeds, or when the error
        before was 0.
    """
    steps = sorted(step for step in errors_by_step if step > 0)
    if len(steps) < 2:
        return None
    early = [step for step in steps[:-1] if step <= 2 / 3 * steps[-1]]
    start, stop = max(early) if early else steps[0], steps[-1]
    window = [step for step in steps if step >= start]
    values = _by_seed([errors_by_step[step] for step in window])
    if len(values) < 2:
        return None
    at = np.asarray(window, float)
    weights = np.zeros(len(at))
    weights[[0, -1]] = -1, 1
    curve = values.mean(0)
    base, steps_variance = float(curve[0]), 0.0
    if len(at) >= LINE:
        centred = at - at.mean()
        slopes = centred / (centred @ centred)
        weights = slopes * (at[-1] - at[0])
        residual = curve - curve.mean() - centred * float(slopes @ curve)
        base = float(curve.mean() + centred[0] * (slopes @ curve))
        steps_variance = float(residual @ residual) / (len(at) - 2) * float(weights @ weights)
    if base <= 0:
        return None
    seeds_variance = float((values @ weights).var(ddof=1)) / len(values)
    value, error = float(curve @ weights), math.sqrt(seeds_variance + steps_variance)
    freedom = _freedom(seeds_variance, len(values) - 1, steps_variance, len(at) - 2)
    wide, narrow = (error * float(stats.t.ppf(0.5 + confidence / 2, freedom)) for confidence in (0.95, 0.9))

    def of_rmse(change: float) -> float:
        return math.sqrt(max(1 + change / base, 0.0)) - 1

    low, high = of_rmse(value - wide), of_rmse(value + wide)
    trend = TRENDS[state((of_rmse(value - narrow), of_rmse(value + narrow)), (low, high), RMSE_MARGIN)]
    return Convergence(trend, of_rmse(value), low, high, start, stop, len(values))


def _by_seed(evaluations: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Errors (seeds, evaluations) of the seeds that all evaluations have."""
    tables = [dict(zip(*(a.tolist() for a in pair))) for pair in evaluations]
    shared = sorted(set.intersection(*map(set, tables)))
    return np.array([[table[seed] for table in tables] for seed in shared], float)


def _freedom(first: float, of_first: int, second: float, of_second: int) -> float:
    """Degrees of freedom of a sum of two estimated variances (Welch 1947, Satterthwaite 1946)."""
    parts = first**2 / of_first + (second**2 / of_second if second else 0.0)
    return (first + second) ** 2 / parts if parts else float(of_first)
