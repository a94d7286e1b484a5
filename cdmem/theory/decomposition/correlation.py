"""Do the deviations go with the severity of memorisation? Correlations with bootstrap intervals."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.stats import pearsonr, spearmanr


@dataclass(frozen=True)
class Correlation:
    """Value and 95 % interval over ``resamples`` bootstraps of the samples (percentiles); NaN without spread."""

    value: float
    low: float
    high: float


def _of(kind: str, x: np.ndarray, y: np.ndarray) -> float:
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return math.nan
    return float((pearsonr if kind == "pearson" else spearmanr)(x, y).statistic)


def correlate(kind: str, x: np.ndarray, y: np.ndarray, seed: int, resamples: int = 500) -> Correlation:
    """``pearson`` or ``spearman`` of two lists; what is not finite in either is left out."""
    fine = np.isfinite(x) & np.isfinite(y)
    x, y = x[fine], y[fine]
    rng = np.random.default_rng(seed)
    drawn = [_of(kind, x[k], y[k]) for k in rng.integers(0, max(len(x), 1), (resamples, len(x)))] if len(x) > 2 else []
    drawn = [v for v in drawn if math.isfinite(v)]
    low, high = np.percentile(drawn, [2.5, 97.5]) if drawn else (math.nan, math.nan)
    return Correlation(_of(kind, x, y), float(low), float(high))
