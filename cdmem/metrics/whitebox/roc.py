"""Telling members from non-members by one score: AUC and the true-positive rate at a low false-positive rate."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import stats
from scipy.optimize import brentq

from cdmem.errors import InputError
from cdmem.metrics.statistics import Estimate, fraction

FALSE_POSITIVES = 0.01


@dataclass(frozen=True)
class Separation:
    """How well a score separates members from non-members.

    Attributes:
        auc: chance that a random member looks more like one than a random non-member; 1/2 is blind.
        tpr: share of members found at no more than 1 % false positives.
    """

    auc: Estimate
    tpr: Estimate


def auc(members: np.ndarray, others: np.ndarray, confidence: float = 0.95) -> Estimate:
    r"""Area under the ROC curve, P(member > other) + P(equal) / 2, by the Mann-Whitney statistic.

    The interval is Newcombe's method 5 (Newcombe 2006): the A with :math:`(\hat A - A)^2 = z^2 V(A)`, where V is
    Hanley and McNeil's variance (1982) with both sizes replaced by their mean where they weigh its terms. It is to
    the AUC what Wilson's interval is to a share: also at complete separation it does not shrink to a point.

    Args:
        members: scores (m,), large for a member.
        others: scores (h,).

    Raises:
        InputError: an empty side, or a score that is not finite.
    """
    members, others = _checked(members), _checked(others)
    m, h = len(members), len(others)
    ranks = stats.rankdata(np.concatenate([members, others]))
    value = float((ranks[:m].sum() - m * (m + 1) / 2) / (m * h))
    z2 = float(stats.norm.ppf(0.5 + confidence / 2)) ** 2
    weight = (m + h) / 2 - 1

    def excess(a: float) -> float:
        variance = a * (1 - a) * (1 + weight * (1 - a) / (2 - a) + weight * a / (1 + a)) / (m * h)
        return (value - a) ** 2 - z2 * variance

    low = 0.0 if value == 0 else _root(excess, 0.0, value)
    high = 1.0 if value == 1 else _root(excess, 1.0, value)
    return Estimate(value, low, high)


def _root(excess: Callable[[float], float], end: float, value: float) -> float:
    """The interval's bound between an end of [0, 1] and the estimate; positive at the end, negative at the estimate."""
    # At an estimate of exactly 0 or 1 the variance vanishes there too: start just inside.
    inside = min(max(value, 1e-12), 1 - 1e-12)
    return float(brentq(excess, end, inside))


def tpr_at_fpr(members: np.ndarray, others: np.ndarray, rate: float = FALSE_POSITIVES) -> Estimate:
    """Share of members above the threshold that at most a share ``rate`` of the others exceeds, with Wilson's interval.

    The threshold is the (floor(rate h) + 1)-th largest score of the others; exceeding is strict. With h < 1 / rate it
    is their maximum, a rate of 0 on these h. The interval is for this threshold: that of the members alone.

    Args:
        members: scores (m,), large for a member.
        others: scores (h,).
        rate: in [0, 1).

    Raises:
        InputError: an empty side, or a score that is not finite.
    """
    members, others = _checked(members), _checked(others)
    allowed = math.floor(rate * len(others) + 1e-9)
    threshold = np.sort(others)[len(others) - 1 - allowed]
    return fraction(int((members > threshold).sum()), len(members))


def separation(member_scores: np.ndarray, other_scores: np.ndarray) -> Separation:
    """AUC and TPR at 1 % FPR of scores that are large for members, (m,) and (h,)."""
    return Separation(auc(member_scores, other_scores), tpr_at_fpr(member_scores, other_scores))


def _checked(scores: np.ndarray) -> np.ndarray:
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 1 or not len(values):
        raise InputError("scores", values.shape, "a ROC curve needs scores of both sides", "give at least one of each")
    if not np.isfinite(values).all():
        raise InputError("scores", "not finite", "cannot be ranked", "look for NaN in the model's output")
    return values
