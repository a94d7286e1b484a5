"""What has a trained model learned: true means, or samples?"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

PERCENTILES = (10, 25, 50, 75, 90)
NEAR = 1 / 3


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
    """Bookkeeping of learned means (M, ...) against true means (K, ...) and samples (N, ...)."""
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
    far = torch.cdist(
        points.flatten(1).double(), others.flatten(1).double(), compute_mode="donot_use_mm_for_euclid_dist"
    )
    near = far.topk(min(2, far.shape[1]), dim=1, largest=False).values
    return near[:, 0], near[:, 1] if near.shape[1] > 1 else torch.full_like(near[:, 0], torch.inf)
