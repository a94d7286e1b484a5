"""Curves of measurements: where they cross a level, and power laws fitted to them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student_t


def crossing(x: Sequence[float], y: Sequence[float], level: float, *, log_x: bool = False) -> float | None:
    """The x at which y first reaches a level from below, linear in x (or ln x) between two points.

    Args:
        x: ascending.
        y: as many values.
        level: to reach.
        log_x: interpolate in ln x.

    Returns:
        the first x if the level is reached there already; None if it never is.
    """
    for k, value in enumerate(y):
        if value >= level:
            if k == 0:
                return float(x[0])
            part, whole = level - y[k - 1], value - y[k - 1]
            if log_x:
                low, high = math.log(x[k - 1]), math.log(x[k])
                return math.exp(low + part / whole * (high - low))
            return float(x[k - 1] + (x[k] - x[k - 1]) * part / whole)
    return None


def first_below(x: Sequence[float], y: Sequence[float] | np.ndarray, level: float) -> float | None:
    """The x at which y first falls to a level, linear between two points; None if it stays above."""
    return crossing(x, (level - np.asarray(y, float)).tolist(), 0.0)


@dataclass(frozen=True)
class Exponent:
    """An exponent with its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


def power_law(factors: Mapping[str, Sequence[float]], y: Sequence[float]) -> dict[str, Exponent | None]:
    """Exponents of y = c prod_i factors_i^e_i by least squares in logarithms, with Student's t of the residuals.

    Returns:
        one exponent per factor; None where a factor does not vary, where the factors cannot be told apart, or where
        there are no more points than unknowns.
    """
    free = {name: np.log(x) for name, x in factors.items() if len(set(x)) > 1}
    exponents: dict[str, Exponent | None] = dict.fromkeys(factors)
    rows = np.column_stack([np.ones(len(y)), *free.values()]) if len(y) else np.empty((0, 1))
    spare = len(y) - rows.shape[1]
    if free and spare > 0 and np.linalg.matrix_rank(rows) == rows.shape[1]:
        logs = np.log(y)
        fit, *_ = np.linalg.lstsq(rows, logs, rcond=None)
        variance = float(((logs - rows @ fit) ** 2).sum()) / spare
        errors = np.sqrt(np.diag(np.linalg.inv(rows.T @ rows)) * variance) * student_t.ppf(0.975, spare)
        for name, value, error in zip(free, fit[1:], errors[1:]):
            exponents[name] = Exponent(float(value), float(value - error), float(value + error))
    return exponents


@dataclass(frozen=True)
class PowerLaw:
    """y = constant x^exponent by least squares in logarithms; 95 % interval over seeds, each fitted by itself."""

    exponent: float
    low: float | None
    high: float | None
    constant: float


def power_law_of_seeds(x: Sequence[float], y: np.ndarray) -> PowerLaw | None:
    """From y (len(x), seeds); None with fewer than two distinct x. No interval with one seed."""
    if len(set(x)) < 2:
        return None
    fits = np.array([np.polyfit(np.log(x), np.log(column), 1) for column in y.T])
    mean, seeds = fits.mean(0), len(fits)
    if seeds == 1:
        return PowerLaw(float(mean[0]), None, None, float(np.exp(mean[1])))
    half = float(student_t.ppf(0.975, seeds - 1) * fits[:, 0].std(ddof=1) / math.sqrt(seeds))
    return PowerLaw(float(mean[0]), float(mean[0]) - half, float(mean[0]) + half, float(np.exp(mean[1])))
