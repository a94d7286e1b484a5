r"""Where a student's difference to its teacher is heading: the limit of the paired difference along a constant rate.

A difference of f_mem says little without its distillation time: a gap that closes like t^-1/2 reads as a reduction for
as long as one looks. What can be stated is a limit and the law by which it is approached. The law is fitted to the
paired differences of many evaluations of the same seeds (families and their assumptions:
:mod:`cdmem.metrics.comparison.laws`; the fit and its interval: :mod:`cdmem.metrics.comparison.law_fit`).

The early part of a curve need not follow the law of its end. The fit starts at the first evaluation from which the
law is adequate: beside it, three smooth terms explain nothing (p > :data:`ADEQUATE`), and at least
:data:`LEAST_FITTED` evaluations remain.

A student copies at no more than all of its seeds and no fewer than none, so the difference to a teacher of f_mem F lies
in [-F, 1 - F] (:func:`possible`), and so does its limit: a law that leads elsewhere (p < :data:`ADEQUATE`) is not
adequate, and intervals hold the limits there that fit as well as the best one there.

No limit is given where a straight line that rises or falls fits as well as the laws, or where the interval is wider
than :data:`WIDEST`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cdmem.metrics.comparison.law_fit import Curve, Scan, adequacy, fit_laws
from cdmem.metrics.comparison.laws import Laws, exponent
from cdmem.metrics.statistics import wilson_interval

LEAST_EVALUATIONS = 12
LEAST_FITTED = 10
LEAST_SEEDS = 2_000
ADEQUATE = 0.05
STRAIGHT = 0.01  # p value above which a straight line is not ruled out
CHANGING = 0.05  # p value below which there is a change
WIDEST = 0.5


@dataclass(frozen=True)
class Limit:
    """A limit of the paired difference, its law and the evaluations it rests on.

    Attributes:
        value: the difference that the best law approaches.
        exponent: ln 2 / ln(shrinks), for a power law its exponent; None where there is no change to follow a law.
        exponent_ci95: of the exponent, over all laws that fit.
        shrinks: the factor of distillation that halves what is left of the gap to the limit, by the best law; None as
            above.
        from_step: first evaluation that was fitted.
        to_step: last one.
        evaluations: number that was fitted.
        skipped: earlier evaluations from which the law does not fit.
        seeds: paired at every evaluation.
        step_noise: standard deviation of the noise of a training step, median over its distribution.
        fit: all laws, for intervals.
    """

    value: float
    exponent: float | None
    exponent_ci95: tuple[float, float] | None
    shrinks: float | None
    from_step: int
    to_step: int
    evaluations: int
    skipped: int
    seeds: int
    step_noise: float
    fit: Scan = field(repr=False, compare=False)

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Interval of the limit; the choice of the law and the noise of the steps lie inside."""
        return self.fit.interval(confidence)

    @property
    def law(self) -> Laws:
        """The best law."""
        return self.fit.laws.take(np.array([self.fit.best]))

    def curve(self, steps: np.ndarray) -> np.ndarray:
        """The best law's differences at ``steps``, float64 (K,), none before ``from_step``."""
        amplitude = self.fit.amplitude[self.fit.level, self.fit.best]
        limit = self.fit.limit[self.fit.level, self.fit.best]  # also where it is cut off
        return limit + amplitude * self.law.gap(np.asarray(steps, dtype=np.float64) - self.from_step)[0]

    def record(self) -> dict[str, Any]:
        """For JSON: the attributes without the fit, ``ci90`` and ``ci95``."""
        power = None
        if self.exponent is not None and self.exponent_ci95 is not None:
            power = {"value": self.exponent, "ci95": list(self.exponent_ci95)}
        return {
            "value": self.value,
            "ci90": list(self.interval(0.90)),
            "ci95": list(self.interval(0.95)),
            "exponent": power,
            "shrinks": self.shrinks,
            "from_step": self.from_step,
            "to_step": self.to_step,
            "evaluations": self.evaluations,
            "skipped": self.skipped,
            "seeds": self.seeds,
            "step_noise": self.step_noise,
        }


def possible(copies: int, seeds: int) -> tuple[float, float]:
    """What the difference to a teacher can be that copies at so many of so many seeds: from -F to 1 - F, each with the
    farther end of F's 95 % Wilson interval."""
    low, high = wilson_interval(copies, seeds)
    return -high, 1 - low


def spaced(steps: np.ndarray, least_spacing: float) -> np.ndarray:
    """Positions of the evaluations to use, rising: the last, and before it each that is far enough from the next kept.

    Args:
        steps: (K,), rising.
        least_spacing: in steps; three half-lives of the averaged weights.
    """
    kept = [len(steps) - 1]
    for k in range(len(steps) - 2, -1, -1):
        if steps[kept[-1]] - steps[k] >= least_spacing * (1 - 1e-9):
            kept.append(k)
    return np.array(kept[::-1])


def paired_differences(
    teacher: tuple[np.ndarray, np.ndarray], by_step: Mapping[int, tuple[np.ndarray, np.ndarray]]
) -> tuple[np.ndarray, np.ndarray] | str:
    """The student's flags minus the teacher's.

    Args:
        teacher: seeds (s,) and flags (s,).
        by_step: the student's seeds (m,) and flags (m,) at each step, in any order.

    Returns:
        Steps (K,) and differences (K, m), or why there are none: evaluations of other seeds than the first, or seeds
        that the teacher lacks.
    """
    if not by_step:
        return "there are no evaluations"
    steps = sorted(by_step)
    seeds = np.sort(by_step[steps[0]][0])
    order = np.argsort(teacher[0], kind="stable")
    place = np.minimum(np.searchsorted(teacher[0], seeds, sorter=order), len(order) - 1)
    if len(order) == 0 or not np.array_equal(teacher[0][order[place]], seeds):
        return "the teacher was not sampled on the seeds of the evaluations"
    flags = np.asarray(teacher[1], dtype=np.float64)[order[place]]
    rows = []
    for step in steps:
        own = np.argsort(by_step[step][0], kind="stable")
        if not np.array_equal(by_step[step][0][own], seeds):
            return f"the evaluations at steps {steps[0]} and {step} have different seeds"
        rows.append(np.asarray(by_step[step][1], dtype=np.float64)[own] - flags)
    return np.array(steps), np.stack(rows)


def fit_limit(
    steps: np.ndarray,
    differences: np.ndarray,
    least_spacing: float = 0.0,
    bounds: tuple[float, float] = (-1.0, 1.0),
) -> Limit | str:
    """The limit of the paired difference.

    Args:
        steps: of the evaluations of one phase at a constant rate, (K,), rising, counted from the start of distillation.
        differences: student minus teacher for each evaluation and seed, (K, m), in -1, 0, 1 or any paired differences
            in [-1, 1]; the same seeds in every row.
        least_spacing: three half-lives of the averaged weights, in steps. Closer evaluations are dropped, and the noise
            of those that are kept counts as correlated by 1/8 at that distance; 0: as independent.
        bounds: what differences can be, see :func:`possible`.

    Returns:
        A :class:`Limit`, or in one line why no limit can be given.

    Raises:
        ValueError: shapes that do not belong together, steps that do not rise from above 0, values that are not finite.
    """
    steps, d = np.asarray(steps, dtype=np.float64), np.asarray(differences, dtype=np.float64)
    if d.ndim != 2 or steps.shape != d.shape[:1] or np.any(np.diff(steps, prepend=0) <= 0) or not np.isfinite(d).all():
        raise ValueError(f"steps {steps.shape} and differences {d.shape}: not evaluations at rising steps")
    count = d.shape[1]
    if count < LEAST_SEEDS:
        return f"{count} seeds at every evaluation, a limit needs {LEAST_SEEDS:,}"
    kept = spaced(steps, least_spacing) if len(steps) else np.array([], dtype=int)
    if len(kept) < LEAST_EVALUATIONS:
        apart = f" at least {least_spacing:g} steps apart" if least_spacing > 0 else ""
        return f"{len(kept)} evaluations{apart} at a constant rate, a limit needs {LEAST_EVALUATIONS}"
    d = d[kept]
    curve = Curve(steps[kept], d.mean(1), np.cov(d) / count, least_spacing)
    for start in range(len(kept) - LEAST_FITTED + 1):
        fitted = fit_laws(curve.since(start), bounds=bounds)
        if adequacy(fitted) > ADEQUATE and fitted.p_bounds() > ADEQUATE:
            return _limit(fitted, start, count)
    return f"no law fits the last {LEAST_FITTED} evaluations"


def _limit(fit: Scan, skipped: int, seeds: int) -> Limit | str:
    """The fit's limit, or why it gives none."""
    first, last = float(fit.curve.steps[0]), float(fit.curve.steps[-1])
    if fit.p_slope() < CHANGING and fit.p_line() > STRAIGHT:
        return f"from step {first:.0f} on, a straight line fits as well as any law that ends"
    low, high = fit.interval(0.95)
    if high - low > WIDEST:
        return f"the interval is too wide, {100 * low:+.0f} to {100 * high:+.0f} points"
    factors, power, power_ci95 = None, None, None
    if fit.p_constant() < CHANGING:
        accepted = fit.p_law() > 0.05
        accepted[fit.best] = True
        powers = exponent(fit.laws.take(accepted).halving(first, last))
        factors = float(fit.laws.take(np.array([fit.best])).halving(first, last)[0])
        power, power_ci95 = float(exponent(np.array(factors))), (float(powers.min()), float(powers.max()))
    return Limit(
        value=fit.value,
        exponent=power,
        exponent_ci95=power_ci95,
        shrinks=factors,
        from_step=int(first),
        to_step=int(last),
        evaluations=len(fit.curve.steps),
        skipped=skipped,
        seeds=seeds,
        step_noise=float(fit.noise[fit.level]),
        fit=fit,
    )
