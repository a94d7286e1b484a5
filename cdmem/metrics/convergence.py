r"""Had the student's f_mem stopped rising when distillation ended?

A student that has not finished training looks like one that forgot. The rule compares the same seeds at the first
evaluation of the last third of the distillation and at its end, by Newcombe's paired interval:

* ``rising``: the interval of the change lies above 0;
* ``falling``: it lies below 0;
* ``stopped``: it lies within +-:data:`MARGIN`;
* ``undetermined``: the samples are too few to tell.

Only ``stopped`` and ``falling`` permit to speak of a reduction. A learning rate annealed to 0 stops any curve, so that
``stopped`` then speaks of this schedule only; the summary says so.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from cdmem.metrics.statistics import newcombe_paired_difference

MARGIN = 0.03
Trend = Literal["rising", "falling", "stopped", "undetermined"]


@dataclass(frozen=True)
class Convergence:
    """Change of f_mem over the last third of the distillation.

    Attributes:
        trend: see the module.
        change: f_mem at the end minus f_mem before.
        low: lower 95 % bound of the change.
        high: upper 95 % bound.
        from_step: first evaluation in the last third.
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


def classify(low: float, high: float, margin: float = MARGIN) -> Trend:
    """The trend that a 95 % interval of the change stands for; a significant change smaller than the margin counts
    as a change, not as standing still."""
    if low > 0:
        return "rising"
    if high < 0:
        return "falling"
    return "stopped" if -margin <= low and high <= margin else "undetermined"


def convergence(flags_by_step: dict[int, tuple[np.ndarray, np.ndarray]]) -> Convergence | None:
    """Judge the curve of one student at one NFE.

    Args:
        flags_by_step: step -> (seeds (m,), memorised (m,) bool).

    Returns:
        None with fewer than two evaluations in the last third, or when these share no seeds.
    """
    steps = sorted(flags_by_step)
    late = [s for s in steps if s >= 2 / 3 * steps[-1]] if steps else []
    if len(late) < 2:
        return None
    before = dict(zip(*(a.tolist() for a in flags_by_step[late[0]])))
    after = dict(zip(*(a.tolist() for a in flags_by_step[late[-1]])))
    shared = sorted(set(before) & set(after))
    if not shared:
        return None
    a = np.array([bool(after[s]) for s in shared])
    b = np.array([bool(before[s]) for s in shared])
    counts = (int((a & b).sum()), int((a & ~b).sum()), int((~a & b).sum()), int((~a & ~b).sum()))
    change, low, high = newcombe_paired_difference(*counts)
    return Convergence(classify(low, high), change, low, high, late[0], late[-1], len(shared))
