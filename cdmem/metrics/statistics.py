"""Intervals and tests: fractions alone and paired, families of tests, controls, and runs as units."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from cdmem.errors import InputError


class Estimate(NamedTuple):
    """A number and its 95 % interval."""

    value: float
    low: float
    high: float

    @classmethod
    def around(cls, value: float, half: float) -> Estimate:
        """With an interval of ``half`` on either side."""
        return cls(value, value - half, value + half)

    def columns(self, name: str) -> dict[str, float]:
        """``<name>``, ``<name>_low`` and ``<name>_high``."""
        return {name: self.value, f"{name}_low": self.low, f"{name}_high": self.high}

    def record(self) -> dict[str, float | list[float]]:
        """``value`` and ``ci95``."""
        return {"value": self.value, "ci95": [self.low, self.high]}


NORMAL_95 = 1.959963984540054


def squared_distance_interval(value: float, variance: float, plug_in: float, biased: float) -> Estimate:
    """95 % interval of a squared distance, of the kind of Wilson's: the variance is that of the truth in question.

    The variance of a squared distance grows in proportion to it, so that estimates scatter more above the truth than
    below, and small estimates have small standard errors: a symmetric interval misses above. This one holds
    every theta with (value - theta)^2 <= z^2 (variance + growth (theta - value)).

    Args:
        value: the estimate.
        variance: of it.
        plug_in: variance by the jackknife or the delta method, which belongs to
        biased: the squared distance between the empirical distributions; growth is their ratio.
    """
    growth = plug_in / biased if biased > 0 else 0.0
    shift = NORMAL_95**2 * growth / 2
    half = math.sqrt(NORMAL_95**2 * variance + shift**2)
    return Estimate(value, value + shift - half, value + shift + half)


def wilson_interval(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a binomial fraction (Wilson 1927); right also at 0 and at ``trials`` successes.

    Raises:
        InputError: no trials, or successes outside 0..trials.
    """
    if trials < 1 or not 0 <= successes <= trials:
        raise InputError("samples", f"{successes} of {trials}", "is no fraction", "give at least one sample")
    z2 = float(stats.norm.ppf(0.5 + confidence / 2)) ** 2
    p = successes / trials
    centre = (p + z2 / (2 * trials)) / (1 + z2 / trials)
    half = math.sqrt(z2 * (p * (1 - p) / trials + z2 / (4 * trials**2))) / (1 + z2 / trials)
    # At the ends the bound is 0 or 1 exactly; rounding must not move it inside.
    return (0.0 if successes == 0 else centre - half), (1.0 if successes == trials else centre + half)


def fraction(successes: int, trials: int) -> Estimate:
    """A binomial fraction with its Wilson interval."""
    return Estimate(successes / trials, *wilson_interval(successes, trials))


def share(name: str, successes: int, trials: int) -> dict[str, float]:
    """A fraction as ``<name>``, with ``<name>_low`` and ``<name>_high``, its 95 % Wilson interval."""
    return fraction(successes, trials).columns(name)


def newcombe_paired_difference(
    both: int, only_first: int, only_second: int, neither: int, confidence: float = 0.95
) -> Estimate:
    """p_first - p_second for paired yes/no answers, with Newcombe's score interval (Newcombe 1998, method 10).

    From the numbers of pairs in which both say yes, only the first, only the second, and neither.
    """
    n = both + only_first + only_second + neither
    yes1, yes2 = both + only_first, both + only_second
    p1, p2 = yes1 / n, yes2 / n
    low1, high1 = wilson_interval(yes1, n, confidence)
    low2, high2 = wilson_interval(yes2, n, confidence)
    margins = yes1 * (n - yes1) * yes2 * (n - yes2)
    phi = 0.0
    if margins > 0:
        cross: float = both * neither - only_first * only_second
        # Method 10: continuity correction of a positive correlation only.
        cross = max(cross - n / 2, 0.0) if cross > 0 else float(cross)
        phi = cross / math.sqrt(margins)

    def length(a: float, b: float) -> float:
        return math.sqrt(max(a * a - 2 * phi * a * b + b * b, 0.0))

    difference = p1 - p2
    return Estimate(difference, difference - length(p1 - low1, high2 - p2), difference + length(high1 - p1, p2 - low2))


def newcombe_difference(yes1: int, n1: int, yes2: int, n2: int, confidence: float = 0.95) -> Estimate:
    """p1 - p2 of two independent fractions, with Newcombe's score interval (Newcombe 1998b, method 10).

    From the numbers of successes and of trials. Unlike Wald's it is right where nothing, or everything, was found.
    """
    p1, p2 = yes1 / n1, yes2 / n2
    low1, high1 = wilson_interval(yes1, n1, confidence)
    low2, high2 = wilson_interval(yes2, n2, confidence)
    difference = p1 - p2
    return Estimate(
        difference, difference - math.hypot(p1 - low1, high2 - p2), difference + math.hypot(high1 - p1, p2 - low2)
    )


def mcnemar_exact(only_first: int, only_second: int) -> float:
    """Two-sided exact p value of McNemar's test: the discordant pairs are a fair coin under the null hypothesis."""
    total = only_first + only_second
    return 1.0 if total == 0 else float(stats.binomtest(only_first, total, 0.5).pvalue)


def fisher_exact(yes1: int, n1: int, yes2: int, n2: int) -> float:
    """Two-sided exact p value of two independent fractions being equal (Fisher 1934)."""
    return float(stats.fisher_exact([[yes1, n1 - yes1], [yes2, n2 - yes2]]).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment (Holm 1979): adjusted p values in the given order, controlling the family's error."""
    order = sorted(range(len(p_values)), key=lambda k: p_values[k])
    adjusted, worst = [0.0] * len(p_values), 0.0
    for rank, k in enumerate(order):
        worst = max(worst, min(1.0, (len(p_values) - rank) * p_values[k]))
        adjusted[k] = worst
    return adjusted


def benjamini_hochberg(p_values: np.ndarray, rate: float) -> np.ndarray:
    """Which hypotheses to reject at a false-discovery rate (Benjamini & Hochberg 1995): bool (m,)."""
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    passed = np.nonzero(p[order] <= _steps(len(p), rate))[0]
    rejected = np.zeros(len(p), dtype=bool)
    if len(passed):
        rejected[order[: passed[-1] + 1]] = True
    return rejected


def _steps(tests: int, rate: float) -> np.ndarray:
    """What the k-th smallest p value may be at most, k = 1..m, float64 (m,)."""
    return rate * np.arange(1, tests + 1) / tests


def conformal_p_values(scores: np.ndarray, control: np.ndarray) -> np.ndarray:
    """Share of control scores at or below each score, the score itself counted: (1 + #{control <= s}) / (h + 1).

    For a sample that is exchangeable with the control it is (super-)uniform, so p <= alpha at most a share alpha of
    times.

    Args:
        scores: (m,), small means suspicious.
        control: the same score of held-out images, (h,).
    """
    return (1 + np.searchsorted(np.sort(control), scores, side="right")) / (len(control) + 1)


def smallest_visible(samples: int, controls: int, rate: float) -> float | None:
    """The least share of the samples that can be discovered by conformal p values at a false-discovery rate.

    No conformal p value is below 1 / (h + 1). Benjamini and Hochberg reject k of m such samples only if
    1 / (h + 1) <= rate k / m, so fewer than a share 1 / (rate (h + 1)) are never seen: 10 % with 1,000 controls at 1 %.

    Args:
        samples: m.
        controls: h, held-out scores.
        rate: false-discovery rate.

    Returns:
        None where not even m samples of the smallest p value could be discovered.
    """
    enough = np.nonzero(1 / (controls + 1) <= _steps(samples, rate))[0]
    return (int(enough[0]) + 1) / samples if len(enough) else None


def conformal_discoveries(
    scores: np.ndarray, control: np.ndarray, rate: float, suspected: float = 0.0
) -> dict[str, float | int | str | None]:
    """How many samples are nearer to T than held-out images are (Benjamini-Hochberg on conformal p values), beside the
    least share that could have been found.

    Args:
        scores: (m,), small means suspicious, at least one.
        control: the same of held-out images, (h,).
        rate: false-discovery rate.
        suspected: share of the samples that another test, f_mem, calls copies.

    Returns:
        ``smallest_p``, ``discoveries``, ``false_discovery_rate``, ``held_out`` (h), ``smallest_visible``, and ``note``
        where ``suspected`` is above 0 and below what can be seen.
    """
    p, least = conformal_p_values(scores, control), smallest_visible(len(scores), len(control), rate)
    record: dict[str, float | int | str | None] = {
        "smallest_p": float(p.min()),
        "discoveries": int(benjamini_hochberg(p, rate).sum()),
        "false_discovery_rate": rate,
        "held_out": len(control),
        "smallest_visible": least,
    }
    if 0 < suspected < (math.inf if least is None else least):
        seen = "nothing" if least is None else f"no less than {100 * least:.1f} %"
        record["note"] = (
            f"{len(control)} held-out images show {seen} at a false-discovery rate of {100 * rate:g} %: "
            f"f_mem of {100 * suspected:.2g} % takes {math.ceil(1 / (rate * suspected)) - 1}"
        )
    return record


def median(values: ArrayLike) -> float:
    """The median of values (m,), at least one: of an even number the mean of the two in the middle.

    `torch.Tensor.median` is the lower of the two.
    """
    return float(np.median(np.asarray(values, dtype=np.float64)))


def wilcoxon_signed_rank(differences: np.ndarray) -> dict[str, float]:
    """Do paired differences centre on 0? Wilcoxon's signed-rank test, zeros by Pratt's rule (Pratt 1959).

    Returns:
        ``median`` difference and two-sided ``p_value`` (1 when all differences are 0).
    """
    d = np.asarray(differences, dtype=np.float64)
    if not np.any(d):
        return {"median": 0.0, "p_value": 1.0}
    return {"median": median(d), "p_value": float(stats.wilcoxon(d, zero_method="pratt").pvalue)}


def mean_interval(values: np.ndarray, confidence: float = 0.95) -> Estimate:
    """Mean with Student's t interval. A single value has an unbounded interval."""
    v = np.asarray(values, dtype=np.float64)
    mean = float(v.mean())
    if len(v) < 2:
        return Estimate(mean, -math.inf, math.inf)
    half = float(stats.t.ppf(0.5 + confidence / 2, len(v) - 1)) * float(v.std(ddof=1)) / math.sqrt(len(v))
    return Estimate.around(mean, half)
