"""Does a student still come nearer to its teacher's endpoints, or has it begun to move away?

On the same seeds, from the last evaluation before the last third of the distillation to its end: Student's interval of
the change of the seeds' squared errors, as a relative change of rmse. ``stopped``: the 90 % interval lies within
+-:data:`RMSE_MARGIN`; otherwise ``rising`` or ``falling`` where the 95 % interval lies beside 0, else ``undetermined``.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from cdmem.metrics.comparison.claims import state
from cdmem.metrics.statistics import mean_interval

RMSE_MARGIN = 0.05
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
    first, last = (dict(zip(*(a.tolist() for a in errors_by_step[step]))) for step in (start, stop))
    shared = sorted(set(first) & set(last))
    before, after = (np.array([values[s] for s in shared]) for values in (first, last))
    if len(shared) < 2 or float(before.mean()) == 0:
        return None
    base = float(before.mean())
    wide, narrow = (
        [float(np.sqrt(max(1 + x / base, 0.0))) - 1 for x in mean_interval(after - before, confidence)]
        for confidence in (0.95, 0.9)
    )
    trend = TRENDS[state((narrow[1], narrow[2]), (wide[1], wide[2]), RMSE_MARGIN)]
    change, low, high = wide
    return Convergence(trend, change, low, high, start, stop, len(shared))
