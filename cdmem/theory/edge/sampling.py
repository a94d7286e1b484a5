"""The published deterministic sampler, and the share of its samples that copy a training point."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from torch import Tensor

from cdmem.metrics.statistics import wilson_interval
from cdmem.theory.edge.losses import Denoiser
from cdmem.theory.edge.mixture import alpha
from cdmem.theory.measures import Interval, nearest_two

COPY = 1 / 9  # of squared distances: ratio 1/3


def advance(x: Tensor, centre: Tensor, t: Tensor, later: Tensor) -> Tensor:
    """x' = (sigma'/sigma) x + (alpha' - alpha sigma'/sigma) xbar; t and later are numbers or broadcast against x."""
    share = later / t
    return share * x + (alpha(later) - alpha(t) * share) * centre


def integrate(denoise: Denoiser, x: Tensor, times: Tensor) -> Tensor:
    """Follow the sampler from times[0] to times[-1]; x and the result are (R, ...)."""
    for t, later in pairwise(times):
        x = advance(x, denoise(x, float(t)), t.to(x.dtype), later.to(x.dtype))
    return x


@dataclass(frozen=True)
class Copies(Interval):
    """Memorisation ratio of samples with Wilson's 95 % interval."""

    samples: int

    @classmethod
    def of(cls, count: int, samples: int) -> Copies:
        """From how many of the samples are copies."""
        return cls(count / samples, *wilson_interval(count, samples), samples)

    @property
    def ratio(self) -> float:
        """The memorisation ratio."""
        return self.mean


def copied(samples: Tensor, data: Tensor) -> Tensor:
    """Whether samples (S, ...) have d1^2 <= d2^2 / 9, d1 and d2 to the nearest two of the training points (N, ...)."""
    near = nearest_two(samples.flatten(1), data.flatten(1))[0] ** 2
    return near[:, 0] <= COPY * near[:, 1]


def tally(flags: Tensor) -> Copies:
    """The share of yes."""
    return Copies.of(int(flags.sum()), len(flags))


def pooled(parts: Sequence[Copies]) -> Copies:
    """Several tallies as one."""
    return Copies.of(sum(round(p.ratio * p.samples) for p in parts), sum(p.samples for p in parts))


def ratio_numbers(copies: Sequence[Copies]) -> dict[str, Any]:
    """Ratios along the capacities, for results.json."""
    return {
        "ratio": [c.ratio for c in copies],
        "ratio_low": [c.low for c in copies],
        "ratio_high": [c.high for c in copies],
        "samples": copies[0].samples,
    }


def spread_ratio(samples: Tensor, reference: Tensor) -> float:
    """tr Cov of samples over tr Cov of a reference: below 1, samples are blurred or few modes are visited."""
    return float(samples.flatten(1).var(0).sum() / reference.flatten(1).var(0).sum())
