r"""Laws by which a gap closes along distillation, as shapes g(t) with g = 1 at the first evaluation and g -> 0.

What is fitted is D(t) = L + a g(t). Two families, both without a preferred time scale:

one rate, ``curvature`` k
    the relative rate -g'/g is g^k / tau for k > 0, so that g = (1 + k (t - t1) / tau)^(-1/k): a power law of exponent
    b = 1/k with an offset of its clock, (t + c)^(-b) with t1 + c = tau / k; k = 0 is the exponential; for k < 0 the rate
    rises, 1 + k g over tau: a logistic curve, from its tail (k near 0) to its plateau (k near -1).
two rates
    (1 - w) exp(-(t - t1) / (tau r)) + w exp(-(t - t1) / tau), r < 1: a quick part and a slow one.

No data can tell a plateau from a change that is too slow to be seen, so two assumptions bound the families
(:func:`law_grid`): the exponent is at least :data:`LEAST_EXPONENT`, and by the law ten times the distillation at least
halves the gap (:data:`TENFOLD`, what the lowest exponent does without an offset). A power law's clock starts no later than
at nine tenths of the first evaluation (:data:`LATEST_START`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

LEAST_EXPONENT = 0.3
TENFOLD = 10.0**-LEAST_EXPONENT  # what ten times the distillation may leave of a gap at most
LATEST_START = 0.9
EXPONENTS = (*np.geomspace(0.3, 3.5, 32), 5.0, 8.0, 16.0)
RISING = (-0.1, -0.2, -0.3, -0.4, -0.5, -0.6, -0.7, -0.8, -0.87, -0.93)
CURVATURES = (*(1 / b for b in EXPONENTS), 0.0, *RISING)
QUICK, SLOW = (1 / 3, 1 / 6, 1 / 12, 1 / 25), (0.2, 0.4, 0.6, 0.8)  # r and w of two rates


@dataclass(frozen=True)
class Laws:
    """n laws, each array float64 (n,).

    Attributes:
        tau: time scale in steps: 1 / relative rate at the first evaluation (k >= 0), of the tail (k < 0), of the slow part.
        curvature: k of the module; 0 with two rates.
        slow: w, the share of the slow part; 1 with one rate.
        quick: r, the quick part's time scale over the slow one's; 1 with one rate.
    """

    tau: np.ndarray
    curvature: np.ndarray
    slow: np.ndarray
    quick: np.ndarray

    @classmethod
    def of(cls, tau: np.ndarray, curvature: float = 0.0, slow: float = 1.0, quick: float = 1.0) -> Laws:
        """One row: laws that differ in ``tau`` alone."""
        tau = np.atleast_1d(np.asarray(tau, dtype=np.float64))
        return cls(tau, *(np.full(len(tau), x) for x in (curvature, slow, quick)))

    @classmethod
    def join(cls, rows: list[Laws]) -> Laws:
        return cls(*(np.concatenate([getattr(r, name) for r in rows]) for name in cls.__dataclass_fields__))

    def __len__(self) -> int:
        return len(self.tau)

    def __getitem__(self, chosen: np.ndarray) -> Laws:
        return Laws(*(getattr(self, name)[chosen] for name in self.__dataclass_fields__))

    def gap(self, since: np.ndarray) -> np.ndarray:
        """g, float64 (n, K), at ``since`` steps after the first evaluation, (K,) or (n, K); inf before a clock's start."""
        u = np.asarray(since, dtype=np.float64) / self.tau[:, None]
        k, out = self.curvature, np.empty(u.shape)
        power, rising, two = k > 0, k < 0, k == 0
        with np.errstate(divide="ignore", over="ignore"):
            kp = k[power, None]
            out[power] = np.maximum(1 + kp * u[power], 0) ** (-1 / kp)
            out[rising] = 1 / (1 + (1 + k[rising, None]) * np.expm1(u[rising]))
            w, r = self.slow[two, None], self.quick[two, None]
            out[two] = (1 - w) * np.exp(-u[two] / r) + w * np.exp(-u[two])
        return out

    def halving(self, elapsed: float, last: float) -> np.ndarray:
        """By which factor the steps ``last`` must grow for half the gap that is left then, float64 (n,), > 1.

        Args:
            elapsed: steps from the first evaluation to the last.
            last: step of the last evaluation.
        """
        now = self.gap(np.array([elapsed]))
        low, high = np.zeros(len(self)), np.full(len(self), elapsed + last)
        while np.any(short := self.gap(elapsed + high[:, None])[:, 0] > now[:, 0] / 2):
            high[short] *= 4
        for _ in range(60):
            middle = (low + high) / 2
            above = self.gap(elapsed + middle[:, None])[:, 0] > now[:, 0] / 2
            low, high = np.where(above, middle, low), np.where(above, high, middle)
        return 1 + high / last


def exponent(halving: np.ndarray) -> np.ndarray:
    """Exponent of the power law that halves a gap by the same factor: 4 gives 1/2."""
    return np.log(2) / np.log(halving)


def allowed(laws: Laws, first: float, last: float) -> np.ndarray:
    """Which laws keep the module's second assumption, bool (n,)."""
    with np.errstate(invalid="ignore"):
        ends = laws.gap(np.array([last - first, last / 10 - first]))
    return ends[:, 0] <= (TENFOLD + 1e-9) * ends[:, 1]


def _longest(rows: Laws, first: float, last: float) -> np.ndarray:
    """The largest tau of each row that :func:`allowed` lets pass, by bisection: it rises with tau for one rate."""
    low, high = np.full(len(rows), np.log(1e-3 * last)), np.full(len(rows), np.log(1e3 * last))
    for _ in range(50):
        middle = (low + high) / 2
        fine = allowed(Laws(np.exp(middle), rows.curvature, rows.slow, rows.quick), first, last)
        low, high = np.where(fine, middle, low), np.where(fine, high, middle)
    return np.exp(low)


def law_grid(first: float, last: float, evaluations: int, scales: int = 20) -> list[Laws]:
    """The families' rows between their bounds, tau in even ratios.

    Args:
        first: step of the first evaluation that is fitted.
        last: step of the last one.
        evaluations: their number: no time scale is shorter than a quarter of their mean distance.
        scales: values of tau a row.
    """
    kinds = [(k, 1.0, 1.0) for k in CURVATURES] + [(0.0, w, r) for r in QUICK for w in SLOW]
    # The slow part must keep the assumption alone: then both together do.
    longest = _longest(Laws.join([Laws.of(np.ones(1), k) for k, _, _ in kinds]), first, last)
    shortest = 0.25 * (last - first) / evaluations
    rows = []
    for (k, w, r), high in zip(kinds, longest):
        low = (1 - LATEST_START) * first * k if k > 0 else shortest / r
        if high >= low:
            rows.append(Laws.of(np.geomspace(low, high, scales if high > 1.001 * low else 1), k, w, r))
    return rows
