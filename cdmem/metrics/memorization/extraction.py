r"""Extraction tests of Carlini et al. (2023, arXiv 2301.13188): by absolute distance, and relative to the surroundings.

Absolute: a sample extracts y if :math:`\|x - y\|_2 / \sqrt{D} \le \delta` with pixels in [0, 1]. Adaptive:

.. math:: a(x) = \frac{\|x - y_1\|}{\alpha \, \frac1k \sum_{y \in S_x} \|x - y\|} < 1

with S_x the k nearest training images of x, y_1 among them. Both over *groups*: with 60 copies of an image the
surroundings of a perfect copy would be the copies themselves, and it would count as new.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cdmem.data.subset import TrainingSet
from cdmem.errors import InputError
from cdmem.metrics.neighbors.index import NearDuplicates, NeighborMetric
from cdmem.metrics.statistics import median, share

LEVELS = 255.0


def absolute_distance(squared1: Tensor, pixels: int) -> Tensor:
    """Root mean square difference, pixels in [0, 1], float64 (m,), from squared L2 distances in grey levels, (m,), of
    images of so many values, C * H * W."""
    return squared1.double().sqrt() / (LEVELS * math.sqrt(pixels))


def adaptive_score(squared: Tensor, alpha: float = 0.5) -> Tensor:
    """a(x) from squared distances to the k nearest groups, int64 (m, k): float64 (m,); below 1 means extracted."""
    distance = squared.double().sqrt()
    # A mean of 0 needs k equal groups, which cannot be; the clamp keeps 0 / 0 out all the same.
    return distance[:, 0] / (alpha * distance.mean(1)).clamp_min(1e-300)


class AbsoluteExtraction(NeighborMetric):
    """Share of samples within ``delta`` of a training image. Comparable only between data sets of equal contrast.

    Args:
        delta: bound on the root mean square difference, pixels in [0, 1]; 0.05 to 0.15 in the paper.
        near_duplicates: grouping; changes nothing here but the id of the image.
    """

    higher_is_better = False

    def __init__(self, delta: float = 0.1, near_duplicates: NearDuplicates = "off") -> None:
        super().__init__(2, near_duplicates)
        if not 0 < delta < 1:
            raise InputError("delta", delta, "must be in (0, 1)", "0.05 to 0.15 in Carlini et al.")
        self.delta = delta

    def evaluate(self, rows: dict[str, Tensor]) -> dict[str, float]:
        """``extracted`` with ``_low`` and ``_high`` (95 % Wilson), ``median_distance``."""
        distance = absolute_distance(rows["squared"][:, 0], math.prod(self.training_set.shape))
        hit = int((distance <= self.delta).sum())
        return share("extracted", hit, len(distance)) | {"median_distance": median(distance)}


class AdaptiveExtraction(NeighborMetric):
    """Share of samples with a(x) < 1.

    Args:
        alpha: 0.5 in the paper.
        neighbors: k, 50 in the paper; T needs more groups than that.
        near_duplicates: grouping.
    """

    higher_is_better = False

    def __init__(self, alpha: float = 0.5, neighbors: int = 50, near_duplicates: NearDuplicates = "off") -> None:
        super().__init__(neighbors, near_duplicates)
        if not 0 < alpha <= 1 or neighbors < 2:
            raise InputError("alpha, neighbors", (alpha, neighbors), "out of range", "0.5 and 50 in Carlini et al.")
        self.alpha = alpha

    def prepare(self, training_set: TrainingSet) -> AdaptiveExtraction:
        """Refuses a T without surroundings: k groups or fewer.

        Raises:
            InputError: too few distinct images.
        """
        super().prepare(training_set)
        groups = self.search.index.num_groups
        if groups <= self.k:
            problem = f"adaptive extraction over {self.k} neighbours needs more distinct training images than that"
            raise InputError("training_set", groups, problem, "lower neighbors or use a larger T")
        return self

    def evaluate(self, rows: dict[str, Tensor]) -> dict[str, float]:
        """``extracted`` with ``_low`` and ``_high`` (95 % Wilson), ``median_score``."""
        score = adaptive_score(rows["squared"], self.alpha)
        return share("extracted", int((score < 1).sum()), len(score)) | {"median_score": median(score)}


def conformal_threshold(control: Tensor, alpha: float) -> float | None:
    """Largest threshold that a fresh held-out sample passes with probability at most ``alpha``.

    Args:
        control: scores of held-out images, (h,); small means suspicious.
        alpha: false-positive rate.

    Returns:
        "suspicious" means strictly below it; None with fewer than 1 / alpha - 1 held-out images.
    """
    rank = math.floor(alpha * (len(control) + 1) + 1e-9)
    return None if rank < 1 else float(torch.sort(control.double()).values[rank - 1])
