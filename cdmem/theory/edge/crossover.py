"""At which capacity does memorising M samples cost as little as knowing the mixture? M* of hypothesis (3.3)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def first_below(capacities: Sequence[float], partly: Sequence[float], level: float) -> float | None:
    """The capacity, between two given ones by interpolation, from which on the partly memorising loss is no more than
    the generalising one; None if it stays above."""
    m, gap = np.asarray(capacities, float), np.asarray(partly, float) - level
    below = np.flatnonzero(gap <= 0)
    if not len(below):
        return None
    k = int(below[0])
    if k == 0:
        return float(m[0])
    return float(m[k - 1] + (m[k] - m[k - 1]) * gap[k - 1] / (gap[k - 1] - gap[k]))


def weighted(capacities: Sequence[float], partly: np.ndarray, general: np.ndarray, weights: np.ndarray) -> float | None:
    """M*(lambda): crossover of the losses averaged over times with weights lambda.

    Args:
        capacities: M, ascending.
        partly: (M, times) losses of the partly memorising denoisers.
        general: (times,) losses of the generalising one.
        weights: (times,) lambda.
    """
    w = np.asarray(weights, float) / np.sum(weights)
    return first_below(capacities, partly @ w, float(general @ w))


def predicted(times: np.ndarray, weights: np.ndarray, variance: float, factor: float) -> float:
    """M*/N by formula (3.3): 1 - E[lambda / (psi s^2 + 1)] / (C E[lambda]), C = factor in [1, 2]."""
    t2 = np.asarray(times, float) ** 2
    share = t2 / ((1 - t2) * variance + t2)
    return 1 - float(np.average(share, weights=weights)) / factor
