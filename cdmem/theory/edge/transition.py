"""Where along the capacities does memorisation set in (M_pt and the bounds of the transition), and what have the models
learned there: true means, or samples?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cdmem.theory.curves import crossing
from cdmem.theory.edge.sampling import Copies
from cdmem.theory.measures import nearest_two

START, MIDDLE, END = 0.1, 0.5, 0.9
PERCENTILES = (10, 25, 50, 75, 90)
NEAR = 1 / 3


@dataclass(frozen=True)
class Transition:
    """Capacities of the transition, None where the ratio never gets there.

    Attributes:
        start: the last given capacity below ratio .1 before it is first reached (published rule).
        end: the first given capacity from which on .9 is reached (published rule).
        middle: M_pt, where the ratio first crosses .5, interpolated.
        low: where the upper ends of the ratios' intervals first cross .5: M_pt may be as small.
        high: where the lower ends do: M_pt may be as large.
    """

    start: float | None
    end: float | None
    middle: float | None
    low: float | None
    high: float | None

    def shares(self, n: int) -> dict[str, float | None]:
        """The same as shares M/N: start, end, M_pt and its interval."""
        values = {"start": self.start, "end": self.end, "M_pt": self.middle, "low": self.low, "high": self.high}
        return {key: None if value is None else value / n for key, value in values.items()}


def transition(capacities: Sequence[int], copies: Sequence[Copies]) -> Transition:
    """The transition of ratios measured at ascending capacities."""
    ratios = [c.ratio for c in copies]
    reached = next((k for k, r in enumerate(ratios) if r >= START), None)
    start = None if reached is None else float(capacities[max(0, reached - 1)])
    end = next((float(m) for m, r in zip(capacities, ratios) if r >= END), None)
    ends = (ratios, [c.high for c in copies], [c.low for c in copies])
    return Transition(start, end, *(crossing(capacities, values, MIDDLE) for values in ends))


def refined(capacities: Sequence[int], copies: Sequence[Copies], extra: int) -> list[int]:
    """About ``extra`` more capacities inside the transition, none that was measured already."""
    bounds = transition(capacities, copies)
    first = int(capacities[0] if bounds.start is None else bounds.start)
    last = int(capacities[-1] if bounds.end is None else bounds.end)
    step = max(1, (last - first) // max(1, extra))
    return sorted(set(range(first, last + 1, step)) - set(capacities))


@dataclass(frozen=True)
class Means:
    """Of the M learned means.

    Attributes:
        near_true: how many are near a true mean: less than a third of the distance to the second true mean, and less
            than a third of the distance to the nearest sample.
        near_sample: how many are near a sample, by the mirrored rule.
        to_true: mean distance to the nearest true mean.
        to_sample: mean distance to the nearest sample.
        to_true_percentiles: 10, 25, 50, 75, 90 % of these distances.
        to_sample_percentiles: likewise.
    """

    near_true: int
    near_sample: int
    to_true: float
    to_sample: float
    to_true_percentiles: list[float]
    to_sample_percentiles: list[float]


def count_means(learned: Tensor, true: Tensor, data: Tensor) -> Means:
    """Learned means (M, ...) against true means (K, ...) and samples (N, ...)."""
    a1, a2 = _two(learned, true)
    b1, b2 = _two(learned, data)
    levels = torch.tensor(PERCENTILES, dtype=torch.float64) / 100
    return Means(
        near_true=int(((a1 < NEAR * a2) & (a1 < NEAR * b1)).sum()),
        near_sample=int(((b1 < NEAR * b2) & (b1 < NEAR * a1)).sum()),
        to_true=float(a1.mean()),
        to_sample=float(b1.mean()),
        to_true_percentiles=torch.quantile(a1, levels).tolist(),
        to_sample_percentiles=torch.quantile(b1, levels).tolist(),
    )


def _two(points: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Distances to the nearest and second nearest; the second is infinite if there is one only."""
    near, _ = nearest_two(points.flatten(1), others.flatten(1))
    return near[:, 0], near[:, 1] if near.shape[1] > 1 else torch.full_like(near[:, 0], torch.inf)
