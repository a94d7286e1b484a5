"""When memorisation sets in, and how that time grows with n and falls with W."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student_t


def crossing(steps: Sequence[int], values: Sequence[float], level: float) -> float | None:
    """First step at which ``values`` reach ``level``, linear in ln step between two measurements; None if never."""
    for k, value in enumerate(values):
        if value >= level:
            if k == 0:
                return float(steps[0])
            share = (level - values[k - 1]) / (value - values[k - 1])
            low, high = math.log(steps[k - 1]), math.log(steps[k])
            return math.exp(low + share * (high - low))
    return None


@dataclass(frozen=True)
class PowerLaw:
    """tau = c n^a W^b by least squares in logarithms; 95 % intervals (Student's t of the residuals); None where the
    settings do not vary."""

    n: tuple[float, float, float] | None
    width: tuple[float, float, float] | None
    points: int


def power_law(n: Sequence[int], width: Sequence[int], tau: Sequence[float]) -> PowerLaw:
    """Exponents from matched lists; each exponent is (value, low, high)."""
    free = {name: np.log(x) for name, x in (("n", n), ("width", width)) if len(set(x)) > 1}
    rows = np.column_stack([np.ones(len(tau)), *free.values()]) if len(tau) else np.empty((0, 1))
    found: dict[str, tuple[float, float, float] | None] = {"n": None, "width": None}
    spare = len(tau) - rows.shape[1]
    if free and spare > 0 and np.linalg.matrix_rank(rows) == rows.shape[1]:
        y = np.log(tau)
        fit, *_ = np.linalg.lstsq(rows, y, rcond=None)
        variance = float(((y - rows @ fit) ** 2).sum()) / spare
        errors = np.sqrt(np.diag(np.linalg.inv(rows.T @ rows)) * variance) * student_t.ppf(0.975, spare)
        for name, value, error in zip(free, fit[1:], errors[1:]):
            found[name] = (float(value), float(value - error), float(value + error))
    return PowerLaw(found["n"], found["width"], len(tau))
