"""Runs as units: what several studies of one setting say of distillation, not of one checkpoint.

Each run (subset, teacher, student) gives one difference to its teacher, at a step that all runs share, and where every
run has one, one limit. Student's t over the runs gives the intervals; the seeds within a run only make its own number
sharper. A run without a limit is never left out: those that converge late would be missing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import stats

from cdmem.metrics.comparison.claims import LIMIT_MARGIN, MARGIN, claim, state
from cdmem.metrics.statistics import mean_interval

LEAST_RUNS = 3
MOST_RUNS = 1000


@dataclass(frozen=True)
class RunLevel:
    """What the runs say together.

    Attributes:
        runs: their number.
        step: of all of them.
        now: mean difference to the teacher, with ``ci90`` and ``ci95`` over runs.
        limit: the same of the limits, or why there is none.
        claim: of `cdmem.metrics.comparison.claims`.
        reason: empty where the claim says it all.
        needed: runs after which the 90 % interval of ``now`` would fit into the margin of 3 points, at the scatter
            seen; None for more than 1,000.
    """

    runs: int
    step: int
    now: dict[str, Any]
    limit: dict[str, Any] | str
    claim: str
    reason: str
    needed: int | None

    def record(self) -> dict[str, Any]:
        return asdict(self)

    def sentence(self, who: str) -> str:
        """``over 5 runs: reduced by 15 points [11, 19], student, 2 NFE after 30,000 steps; ...``."""
        claimed = self.claim in ("reduced", "amplified")
        low, high = sorted(abs(100 * x) for x in self.now["ci95"])
        size = f"by {abs(100 * self.now['value']):.0f} points [{low:.0f}, {high:.0f}]"
        reason = f" ({self.reason})" if self.reason else ""
        what = f"{self.claim} {size}" if claimed else f"{self.claim}{reason}; {_points(self.now)}"
        limit = f"no limit ({self.limit})" if isinstance(self.limit, str) else f"in the limit {_points(self.limit)}"
        said = f"over {self.runs} runs: {what}, {who} after {self.step:,} steps; {limit}"
        enough = self.needed is not None and self.needed <= self.runs
        more = "more than 1,000" if self.needed is None else f"about {self.needed}"
        return f"{said}." if enough else f"{said}; {more} runs would tell it to 3 points."


def run_level(differences: Sequence[float], limits: Sequence[float | None], steps: Sequence[int]) -> RunLevel | str:
    """The verdict over runs.

    Args:
        differences: of each run, student minus teacher.
        limits: of each run, None where it has none.
        steps: of distillation of each run.

    Returns:
        the verdict, or why there is none, as text.
    """
    if len(differences) < LEAST_RUNS:
        return f"{len(differences)} runs are too few, {LEAST_RUNS} are needed"
    if len(set(steps)) > 1:
        return f"the runs have no step in common ({min(steps):,} to {max(steps):,}): distil by a fixed schedule"
    now = over_runs(differences)
    known = [value for value in limits if value is not None]
    limit: dict[str, Any] | str = over_runs(known)
    if len(known) < len(limits):
        limit = f"{len(limits) - len(known)} of {len(limits)} runs have none"
    where = state(now["ci90"], now["ci95"], MARGIN)
    of_limit = None if isinstance(limit, str) else state(limit["ci90"], limit["ci95"], LIMIT_MARGIN)
    why, stays = (limit, 0.0) if isinstance(limit, str) else ("", limit["value"] / (now["value"] or math.inf))
    what, reason = claim(where, of_limit, why, stays)
    return RunLevel(len(differences), steps[0], now, limit, what, reason, runs_needed(differences, MARGIN))


def over_runs(values: Sequence[float]) -> dict[str, Any]:
    """Mean with Student's intervals: ``value``, ``ci90``, ``ci95``; unbounded for one run."""
    if not values:
        return {"value": math.nan, "ci90": [-math.inf, math.inf], "ci95": [-math.inf, math.inf]}
    wide, narrow = (mean_interval(np.asarray(values), confidence) for confidence in (0.95, 0.9))
    return {"value": wide.value, "ci90": list(narrow[1:]), "ci95": list(wide[1:])}


def runs_needed(values: Sequence[float], margin: float) -> int | None:
    """Runs after which the 90 % interval is no wider than ``margin`` on either side, at the scatter of these."""
    scatter = float(np.std(values, ddof=1))
    for k in range(2, MOST_RUNS + 1):
        if float(stats.t.ppf(0.95, k - 1)) * scatter / math.sqrt(k) <= margin:
            return k
    return None


def _points(record: dict[str, Any]) -> str:
    low, high = (100 * x for x in record["ci95"])
    return f"{100 * record['value']:+.1f} points [{low:+.1f}, {high:+.1f}]"
