"""What may be said, by rules fixed before any run was looked at."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.stats import t as student_t

from cdmem.theory.measures import Interval

RULE = (
    "The theory predicts gain_unstable < gain_stable. At each noise level the interval of the difference over "
    "independent noise draws (Student's t, 95 % for all levels together by Bonferroni) lies below 0, above 0, or holds "
    "0. Supported: at least one below and none above; contradicted: at least one above and none below; else undecided."
)


def verdict(intervals: Sequence[Interval]) -> str:
    """``supported``, ``contradicted`` or ``undecided``; see RULE."""
    below, above = any(i.high < 0 for i in intervals), any(i.low > 0 for i in intervals)
    return "supported" if below and not above else "contradicted" if above and not below else "undecided"


def difference(a: Sequence[float], b: Sequence[float]) -> Interval:
    """mean(a) - mean(b), neither empty, with Welch's 95 % interval; infinite with one on a side."""
    x, y = np.asarray(a, float), np.asarray(b, float)
    mean = float(x.mean() - y.mean())
    if len(x) < 2 or len(y) < 2:
        return Interval(mean, -math.inf, math.inf)
    u, v = x.var(ddof=1) / len(x), y.var(ddof=1) / len(y)
    if u + v == 0:
        return Interval(mean, mean, mean)
    freedom = (u + v) ** 2 / (u**2 / (len(x) - 1) + v**2 / (len(y) - 1))
    half = float(student_t.ppf(0.975, freedom) * math.sqrt(u + v))
    return Interval(mean, mean - half, mean + half)


def cliffs_delta(a: Sequence[float], b: Sequence[float]) -> float:
    """P(a > b) - P(a < b)."""
    if not len(a) or not len(b):
        return math.nan
    return float(np.sign(np.subtract.outer(a, b)).mean())
