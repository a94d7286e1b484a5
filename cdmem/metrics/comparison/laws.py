r"""Laws by which a gap closes along distillation, as shapes g(t) with g = 1 at the first evaluation and g -> 0.

What is fitted is D(t) = L + a g(t). Two families:

one rate, ``curvature`` k
    the relative rate -g'/g is g^k / tau for k > 0, so that g = (1 + k (t - t1) / tau)^(-1/k): a power law of exponent
    b = 1/k with an offset of its clock, (t + c)^(-b) with t1 + c = tau / k; k = 0 is the exponential. For k < 0 the
    rate rises as the gap closes: a logistic curve, from its tail (k near 0) to its plateau (k near -1).
two rates
    (1 - w) exp(-(t - t1) / (r tau)) + w exp(-(t - t1) / tau), r < 1: a quick part and a slow one.

No data can tell a plateau from a change that is too slow to be seen, so three assumptions bound the families:

- exponents are at least :data:`LEAST_EXPONENT` (a power of 0.3 lies inside);
- by the law, ten times the distillation leaves at most the share :data:`TENFOLD` of a gap, which is what the least
  exponent does without an offset; with two rates the slow part does so alone;
- a power law's clock starts no later than at :data:`LATEST_START` of the first evaluation, and before step 0 by at most
  :data:`HEAD_START` times the first evaluation: a power law has no time scale of its own. Above exponent 1 it
  gains one, on the way to the exponential, and the bound grows by :data:`SLOWEST` (b - 1) T.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

LEAST_EXPONENT = 0.28
TENFOLD = 10.0**-LEAST_EXPONENT
LATEST_START = 0.9
HEAD_START = 3.0
SLOWEST = 0.9 / -np.log(TENFOLD)  # tau over T of the slowest exponential that the second assumption lets pass
# Exponents closer together than any data tell apart, the exponential, and logistic curves.
EXPONENTS = (*np.geomspace(LEAST_EXPONENT, 3.5, 32).tolist(), 5.0, 8.0, 16.0)
RISING = (-0.1, -0.2, -0.3, -0.4, -0.5, -0.6, -0.7, -0.8, -0.87, -0.93)
CURVATURES = (*(1 / b for b in EXPONENTS), 0.0, *RISING)
QUICK, SLOW = (1 / 3, 1 / 6, 1 / 12, 1 / 25), (0.2, 0.4, 0.6, 0.8)  # r and w of two rates


@dataclass(frozen=True)
class Laws:
    """n laws, each array float64 (n,).

    Attributes:
        tau: time scale in steps: 1 / relative rate at the first evaluation (k >= 0), of the tail (k < 0), of the slow
            part (two rates).
        curvature: k of the module; 0 with two rates.
        slow: w, the share of the slow part; 1 with one rate.
        quick: r, the quick part's time scale over the slow one's; 1 with one rate.
    """

    tau: np.ndarray
    curvature: np.ndarray
    slow: np.ndarray
    quick: np.ndarray

    @classmethod
    def row(cls, tau: np.ndarray, curvature: float = 0.0, slow: float = 1.0, quick: float = 1.0) -> Laws:
        """Laws that differ in ``tau`` alone."""
        return cls(tau, *(np.full(len(tau), x) for x in (curvature, slow, quick)))

    @classmethod
    def join(cls, rows: list[Laws]) -> Laws:
        """All laws of ``rows`` in their order."""
        return cls(*(np.concatenate([getattr(r, name) for r in rows]) for name in cls.__dataclass_fields__))

    def __len__(self) -> int:
        return len(self.tau)

    def take(self, chosen: np.ndarray) -> Laws:
        """The laws at positions, or where true."""
        return Laws(*(getattr(self, name)[chosen] for name in self.__dataclass_fields__))

    def gap(self, since: np.ndarray) -> np.ndarray:
        """g, float64 (n, K), ``since`` steps after the first evaluation, (K,) or (n, K); inf before a clock starts."""
        u = np.asarray(since, dtype=np.float64) / self.tau[:, None]
        k, out = self.curvature, np.empty(u.shape)
        power, rising, two = k > 0, k < 0, k == 0
        with np.errstate(divide="ignore", over="ignore"):
            bend = k[power, None]
            out[power] = np.maximum(1 + bend * u[power], 0) ** (-1 / bend)
            out[rising] = 1 / (1 + (1 + k[rising, None]) * np.expm1(u[rising]))
            w, r = self.slow[two, None], self.quick[two, None]
            out[two] = (1 - w) * np.exp(-u[two] / r) + w * np.exp(-u[two])
        return out

    def halving(self, first: float, last: float) -> np.ndarray:
        """By which factor ``last`` must grow for half the gap that is left then, float64 (n,), above 1.

        Args:
            first: step of the first evaluation.
            last: step of the last one.
        """
        k, u = self.curvature, (last - first) / self.tau
        power, rising, two = k > 0, k < 0, k == 0
        later = np.empty(len(self))  # time of half the gap, in tau after the first evaluation
        later[power] = ((1 + k[power] * u[power]) * 2.0 ** k[power] - 1) / k[power]
        offset = np.log(1 / (1 + k[rising]) - 1)  # 1/g = (1 + k) (e^offset + e^u)
        doubled = np.log(2) + np.logaddexp(offset, u[rising])
        later[rising] = doubled + np.log1p(-np.exp(offset - doubled))
        later[two] = self._halving_of_two(two, u[two])
        return 1 + (later - u) * self.tau / last

    def _halving_of_two(self, two: np.ndarray, u: np.ndarray) -> np.ndarray:
        """By bisection: the slow part alone takes longest."""
        laws = self.take(two)
        goal = laws.gap((u * laws.tau)[:, None])[:, 0] / 2
        low, high = u, u + np.log(2)
        for _ in range(50):
            middle = (low + high) / 2
            above = laws.gap((middle * laws.tau)[:, None])[:, 0] > goal
            low, high = np.where(above, middle, low), np.where(above, high, middle)
        return high


def exponent(halving: np.ndarray) -> np.ndarray:
    """Exponent of the power law that halves a gap by the same factor: 4 gives 1/2."""
    return np.log(2) / np.log(halving)


def allowed(laws: Laws, first: float, last: float) -> np.ndarray:
    """Which laws keep the module's assumptions, bool (n,); with two rates, ask of the slow part alone."""
    ends = laws.gap(np.array([last - first, last / 10 - first]))
    exponents = 1 / np.maximum(laws.curvature, 1e-9)
    clock = laws.tau * exponents - first  # c
    late = (laws.curvature <= 0) | (clock >= -LATEST_START * first * (1 + 1e-9))
    early = (laws.curvature <= 0) | (clock <= HEAD_START * first + SLOWEST * last * np.maximum(exponents - 1, 0))
    shrinks = ends[:, 0] <= (TENFOLD + 1e-9) * ends[:, 1]
    return shrinks & late & early & (exponents >= LEAST_EXPONENT * (1 - 1e-9)) & (laws.curvature > -1)


def longest(curvatures: np.ndarray, first: float, last: float) -> np.ndarray:
    """The largest allowed tau of one-rate laws, (n,): by bisection, for what keeps them out rises with tau."""
    one = np.ones(len(curvatures))
    shortest = np.maximum((1 - LATEST_START) * first * curvatures, 1e-3 * last)
    low, high = np.log(shortest), np.full(len(curvatures), np.log(1e3 * last))
    for _ in range(45):
        middle = (low + high) / 2
        fine = allowed(Laws(np.exp(middle), curvatures, one, one), first, last)
        low, high = np.where(fine, middle, low), np.where(fine, high, middle)
    return np.exp(low)


def law_grid(first: float, last: float, evaluations: int, scales: int = 20) -> list[Laws]:
    """The families between their bounds, a row for each curvature or pair of rates, tau in even ratios.

    Args:
        first: step of the first evaluation that is fitted.
        last: step of the last one.
        evaluations: their number: no time scale is shorter than a quarter of their mean distance.
        scales: values of tau a row.
    """
    shortest = 0.25 * (last - first) / evaluations
    kinds = [(k, 1.0, 1.0) for k in CURVATURES] + [(0.0, w, r) for r in QUICK for w in SLOW]
    rows = []
    for (k, w, r), high in zip(kinds, longest(np.array([k for k, _, _ in kinds]), first, last)):
        low = (1 - LATEST_START) * first * k if k > 0 else shortest / r
        if high >= low:
            rows.append(Laws.row(np.geomspace(low, high, scales), k, w, r))
    return rows
