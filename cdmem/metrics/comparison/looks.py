r"""Looking again and again until a claim is decided: the error of each look, and about how many steps are missing.

Look k (1, 2, ...) may err with probability total / (k (k + 1)); the shares sum to ``total`` over infinitely many looks,
so by the union bound the probability that any of them errs is at most ``total``. Neither independent looks nor a known
number of them is assumed. The bound costs little, because looks are few: at the tenth the interval's half-width has
grown from 1.96 to 3.5 standard errors. An anytime-valid sequence would let one look after each evaluation, but it needs
a martingale: the data of all looks are the same seeds along one curve, the limit is refitted from another start with
another law, and no betting process is known under which it stays valid.

A claim rests on two statements, now and limit. What the union bound does not cover is a law that does not hold; that is
asked of prefixes of long runs (``benchmarks/prefixes.py``).
"""

from __future__ import annotations

from math import inf, isfinite

import numpy as np
from scipy import stats

from cdmem.metrics.comparison.claims import LIMIT_MARGIN, MARGIN, claim, state
from cdmem.metrics.comparison.law_fit import Curve, Scan, fit_laws
from cdmem.metrics.comparison.limit import Limit

TOTAL = 0.05


def error_at_look(look: int, total: float = TOTAL) -> float:
    """Error that look ``look`` may spend: total / (look (look + 1)).

    Raises:
        ValueError: looks are counted from 1, and ``total`` lies between 0 and 1.
    """
    if look < 1 or not (isfinite(total) and 0 < total < 1):
        raise ValueError(f"look {look}, error {total}: looks count from 1, errors lie between 0 and 1")
    return total / (look * (look + 1))


def confidences(look: int, total: float = TOTAL) -> tuple[float, float]:
    """Confidences of the intervals of look ``look``: for equivalence (two one-sided tests) and for a difference from 0.

    At the first look with error 0.05 alone they would be 0.90 and 0.95; spending makes them 0.95 and 0.975.
    """
    error = error_at_look(look, total)
    return 1 - 2 * error, 1 - error


def steps_missing(
    limit: Limit | str, look: int = 1, total: float = TOTAL, margin: float = MARGIN, limit_margin: float = LIMIT_MARGIN
) -> int | str:
    """About how many more steps it takes until the claim is decided, should the curve follow its best law.

    The run is continued on paper to 1.25, 1.5, 2, 2.5, 3, ... times its steps, with evaluations at the last distance,
    the law's values as means, today's covariance of the seeds and today's step noise. There the laws are fitted again
    and the table of claims is asked. The answer is a median without its spread, good to a factor of about two; the
    number of lengths tried is kept small by bisection, as if a longer run never knew less.

    Args:
        limit: of the run so far.
        look: the number of the next look.
        total: error over all looks.
        margin: of equivalence now.
        limit_margin: of equivalence in the limit.

    Returns:
        Steps beyond ``limit.to_step``, or in one line why none can be named.
    """
    if isinstance(limit, str):
        return f"unknown while no limit can be given ({limit})"
    asked, margins = confidences(look, total), (margin, limit_margin)
    factors = [f * 2.0**k for k in range(6) for f in (1.25, 1.5, 2.0)]
    claim_at = {f: _claim(_continued(limit, f), asked, margins) for f in factors[-1:]}
    if claim_at[factors[-1]][0] == "undecided":
        return f"not within {factors[-1]:.0f} times the steps so far ({claim_at[factors[-1]][1]})"
    low, high = -1, len(factors) - 1
    while high - low > 1:
        middle = (low + high) // 2
        open_yet = _claim(_continued(limit, factors[middle]), asked, margins)[0] == "undecided"
        low, high = (middle, high) if open_yet else (low, middle)
    return round((factors[high] - 1) * limit.to_step)


def _continued(limit: Limit, factor: float) -> Scan:
    """The fit of the run continued to ``factor`` times its steps; at most three times as many evaluations are used."""
    curve = limit.fit.curve
    last, spacing = float(curve.steps[-1]), float(curve.steps[-1] - curve.steps[-2])
    more = min(int((factor - 1) * last / spacing), 2 * len(curve.steps))
    steps = np.concatenate([curve.steps, np.linspace(last, factor * last, more + 1)[1:]])
    old, variance = curve.covariance, np.diag(curve.covariance)
    # A later evaluation is to the others as the last one is to those before it.
    near = float(old[-1, :-1].mean())
    size = len(steps)
    covariance = np.full((size, size), near)
    covariance[: len(old), : len(old)] = old
    np.fill_diagonal(covariance, np.concatenate([variance, np.full(size - len(old), variance[-1])]))
    levels = limit.fit.noise[[limit.fit.level]]
    return fit_laws(Curve(steps, limit.curve(steps), covariance, curve.memory), levels, limit.fit.bounds)


def _claim(fit: Scan, confidence: tuple[float, float], margins: tuple[float, float]) -> tuple[str, str]:
    """The claim at the end of ``fit`` and the reason why it is none."""
    now, error = float(fit.curve.mean[-1]), float(np.sqrt(fit.curve.covariance[-1, -1]))
    narrow, wide = (error * float(stats.norm.ppf(0.5 + c / 2)) for c in confidence)
    now_state = state((now - narrow, now + narrow), (now - wide, now + wide), margins[0])
    limit_state = state(fit.interval(confidence[0]), fit.interval(confidence[1]), margins[1])
    return claim(now_state, limit_state, stays=float(fit.limit[fit.level, fit.best]) / (now or inf))
