"""What several laboratories measure: distances to the training points, and means with their intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import t as student_t
from torch import Tensor

COPY_RATIO = 1 / 3  # of the distances to the nearest and the second-nearest training point


def nearest_two(samples: Tensor, data: Tensor) -> tuple[Tensor, Tensor]:
    """Distances and indices (..., B, 2) of the two nearest of the points ``data`` (..., n, d) to samples (..., B, d);
    float64, without the cancellation of squared norms. With a single point there is one column."""
    far = torch.cdist(samples.double(), data.double(), compute_mode="donot_use_mm_for_euclid_dist")
    nearest = far.topk(min(2, far.shape[-1]), dim=-1, largest=False)
    return nearest.values, nearest.indices


@dataclass(frozen=True)
class Interval:
    """Mean with its interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def mean_interval(values: Sequence[float] | np.ndarray, intervals: int = 1) -> Interval:
    """Mean with Student's t interval, infinite for one value; for ``intervals`` that hold together with 95 %."""
    mean, count = float(np.mean(values)), len(values)
    if count < 2:
        return Interval(mean, -math.inf, math.inf)
    half = float(student_t.ppf(1 - 0.025 / intervals, count - 1) * np.std(values, ddof=1) / math.sqrt(count))
    return Interval(mean, mean - half, mean + half)
