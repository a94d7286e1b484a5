"""Runs as units: what several independent runs (subset, teacher, student) say together.

Seeds tell what one student does; a statement about distillation needs runs, and its error is the scatter between them.
All runs are compared at one common step and, where every run has one, by their limits, with Student's t over the runs'
values. A run without a limit is not dropped, for those are not a random part of all runs: then no limit is given for
the runs either. Values of runs that stopped when their claim was decided are biased, so runs that are to be taken together
follow one fixed schedule.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import stats

from cdmem.metrics.comparison.claims import LIMIT_MARGIN, MARGIN, Claim, claim, state
from cdmem.metrics.statistics import mean_interval

LEAST_RUNS = 3
MOST_RUNS = 10_000


@dataclass(frozen=True)
class OverRuns:
    """A mean over runs.

    Attributes:
        value: mean over the runs.
        ci90: 90 % interval by Student's t over the runs.
        ci95: 95 % interval.
        sd: standard deviation between runs.
        needed: runs for a 95 % half-width of at most the margin, from ``sd``; None beyond :data:`MOST_RUNS`.
        margin: of equivalence.
    """

    value: float
    ci90: tuple[float, float]
    ci95: tuple[float, float]
    sd: float
    needed: int | None
    margin: float


@dataclass(frozen=True)
class RunLevel:
    """The verdict of several runs.

    Attributes:
        claim: see :func:`cdmem.metrics.comparison.claims.claim`.
        reason: why ``undecided``, else empty.
        runs: their number.
        step: the common step.
        now: differences at that step.
        limit: of the limits; None where a run has none.
        without_limit: number of runs that have none.
    """

    claim: Claim
    reason: str
    runs: int
    step: int
    now: OverRuns
    limit: OverRuns | None
    without_limit: int

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def sentence(self, who: str) -> str:
        """For people, for example ``over 5 runs: reduced by 15 points [11, 19] at two steps ...``.

        Args:
            who: which samples, for example ``at two steps``.
        """
        at = f"{who} after {self.step:,} steps"
        over = f"over {self.runs} runs"
        limit = "" if self.limit is None else f", {_points(self.limit)} in the limit"
        if self.claim in ("reduced", "amplified") and self.limit is not None:
            low, high = sorted(abs(100 * x) for x in self.now.ci95)
            size = f"{abs(100 * self.now.value):.0f} points [{low:.0f}, {high:.0f}]"
            return f"{over}: {self.claim} by {size} {at}{limit}"
        reason = f": {self.reason}" if self.reason else ""
        return f"{over}: {self.claim}{reason}; {_points(self.now)} {at}{limit}"


def _points(mean: OverRuns) -> str:
    low, high = (100 * x for x in mean.ci95)
    return f"{100 * mean.value:+.1f} points [{low:+.1f}, {high:+.1f}]"


def runs_needed(sd: float, margin: float, confidence: float = 0.95) -> int | None:
    """The least number of runs, at least 3, whose t interval has a half-width of at most ``margin``.

    Args:
        sd: between runs.
        margin: half-width wanted, > 0.
        confidence: of the interval.

    Returns:
        None beyond :data:`MOST_RUNS`.
    """
    low, high = LEAST_RUNS - 1, LEAST_RUNS
    while not _fits(sd, margin, confidence, high):
        if high >= MOST_RUNS:
            return None
        low, high = high, min(2 * high, MOST_RUNS)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _fits(sd, margin, confidence, middle) else (middle, high)
    return high


def _fits(sd: float, margin: float, confidence: float, runs: int) -> bool:
    return bool(stats.t.ppf(0.5 + confidence / 2, runs - 1) * sd / math.sqrt(runs) <= margin)


def _over(values: Sequence[float], margin: float) -> OverRuns:
    v = np.asarray(values, dtype=np.float64)
    inner, outer = mean_interval(v, 0.90), mean_interval(v, 0.95)
    sd = float(v.std(ddof=1))
    needed = runs_needed(sd, margin)
    return OverRuns(inner.value, (inner.low, inner.high), (outer.low, outer.high), sd, needed, margin)


def run_level(
    step: int,
    now: Sequence[float],
    limits: Sequence[float | None],
    margin: float = MARGIN,
    limit_margin: float = LIMIT_MARGIN,
) -> RunLevel | str:
    """The verdict over runs.

    Args:
        step: at which all of ``now`` were measured.
        now: paired difference of each run.
        limits: limit of each run's difference in the same order, None where it has none.
        margin: of equivalence now.
        limit_margin: of equivalence in the limit.

    Returns:
        The verdict, or in one line why there is none: fewer than :data:`LEAST_RUNS` runs.

    Raises:
        ValueError: another number of limits than of differences, or a value that is not finite.
    """
    known = [x for x in limits if x is not None]
    if len(now) != len(limits) or not np.isfinite([*now, *known]).all():
        raise ValueError(f"{len(now)} differences and {len(limits)} limits, or not all finite")
    if len(now) < LEAST_RUNS:
        return f"{len(now)} runs, a statement over runs needs {LEAST_RUNS}"
    present, missing = _over(now, margin), len(limits) - len(known)
    limit = None if missing else _over(known, limit_margin)
    limit_state = None if limit is None else state(limit.ci90, limit.ci95, limit_margin)
    why = f"{missing} of {len(now)} runs have none"
    made, reason = claim(state(present.ci90, present.ci95, margin), limit_state, why)
    return RunLevel(made, reason, len(now), step, present, limit, missing)
