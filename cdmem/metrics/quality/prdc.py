"""Precision and recall (Kynkaanniemi et al. 2019), density and coverage (Naeem et al. 2020), blind to repeated rows.

Precision and density are *largest for copies*: they say nothing about generalisation and are read beside a copying
metric. Repeated real rows would shrink every ball to radius 0, so real rows are collapsed to one per image first.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cdmem.errors import InputError
from cdmem.metrics.neighbors.features import FeatureIndex
from cdmem.metrics.quality.feature_space import FeatureMetric, unique_rows

SPARE = 4  # candidates beyond the k-th that usually settle which one it is
SUBSAMPLE_SEED = 0


def precision_recall_density_coverage(real: Tensor, fake: Tensor, k: int = 5) -> dict[str, float]:
    """Shares of k-nearest-neighbour balls, as in the package prdc: a point *on* the boundary is outside (``<``).

    - precision: fakes inside the ball of some real image;
    - recall: real images inside the ball of some fake;
    - density: real balls around a fake, mean over fakes, divided by k;
    - coverage: real balls that hold a fake.

    The ball of a point reaches to its k-th nearest other point of the same side. Ties are decided exactly. Only one
    block of the distance table is kept. The values depend on both numbers of points: compare equal sizes.

    Args:
        real: features (n, F), equal rows are one image.
        fake: features (m, F).
        k: neighbours, at least 1.

    Raises:
        InputError: not more than k real images or fakes.
    """
    real = unique_rows(real)
    for name, rows in (("real", real), ("generated", fake)):
        if len(rows) <= k:
            raise InputError(
                "samples", len(rows), f"balls of {k} neighbours need more than {k} {name} images", "add some"
            )
    index, other = FeatureIndex(real, candidates=SPARE), FeatureIndex(fake, candidates=SPARE)
    radii = [i.query(i.features, k, exclude=torch.arange(len(i.features))).squared[:, k - 1] for i in (index, other)]
    around, covered = torch.zeros(len(fake), dtype=torch.int64), torch.zeros(len(real), dtype=torch.bool)
    recalled = torch.zeros(len(real), dtype=torch.bool)
    for part, in_real, in_fake in index.inside(fake, *radii):
        around[part] = in_real.sum(1)
        covered |= in_real.any(0)
        recalled |= in_fake.any(0)
    return {
        "precision": float((around > 0).double().mean()),
        "recall": float(recalled.double().mean()),
        "density": float(around.double().mean()) / k,
        "coverage": float(covered.double().mean()),
    }


class ManifoldQuality(FeatureMetric):
    """Precision, recall, density and coverage of the samples against H and against T.

    Keys are ``precision``, ``recall``, ``density``, ``coverage`` against H, and with ``_train`` against T: distinct
    images whatever their multiplicity and, where training mirrors, their mirror images. Both sides have equal size: the
    samples of the lowest seeds, and a fixed seeded choice of the real images. H is left out if it has not more than k.

    Args:
        features: uint8 (B, C, H, W) -> (B, F); the pixels by default.
        k: neighbours.
    """

    higher_is_better = True

    def __init__(self, features: nn.Module | None = None, k: int = 5) -> None:
        super().__init__(features)
        if k < 1:
            raise InputError("k", k, "a number of neighbours", "use 5")
        self.k = k
        self.min_samples = k + 1

    def evaluate(self, rows: dict[str, Tensor]) -> dict[str, float]:
        """The shares by key, see the class.

        Raises:
            InputError: T has not more than k images.
        """
        fake = self.features_of(rows["images"])
        values = self._against(fake, self.views(self.training_set.images)[0], "_train")
        held_out = self.training_set.held_out_images
        if len(held_out) > self.k:
            values |= self._against(fake, self.features_of(held_out), "")
        return values

    def _against(self, fake: Tensor, real: Tensor, suffix: str) -> dict[str, float]:
        real = unique_rows(real)
        size = min(len(real), len(fake))
        chosen = torch.randperm(len(real), generator=torch.Generator().manual_seed(SUBSAMPLE_SEED))[:size]
        shares = precision_recall_density_coverage(real[chosen.sort().values], fake[:size], self.k)
        return {name + suffix: value for name, value in shares.items()}
