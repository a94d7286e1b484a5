"""Precision and recall (Kynkaanniemi et al. 2019), density and coverage (Naeem et al. 2020), blind to repeated rows.

Precision and density are *largest for copies*: they say nothing about generalisation and are read beside a copying
metric. Repeated real rows would shrink every ball to radius 0, so real rows are collapsed to one per image first.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cdmem.errors import InputError
from cdmem.metrics.quality.feature_space import (
    FeatureMetric,
    direct_squared,
    squared_blocks,
    unique_rows,
)

TIE = 1e-9  # entries this close to a radius, relative to the largest squared norm, are computed from differences
SPARE = 4  # candidates beyond the k-th, so that rounding cannot choose a wrong one
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
    real_radii, fake_radii = _squared_radii(real, k), _squared_radii(fake, k)
    around, covered = torch.zeros(len(fake), dtype=torch.int64), torch.zeros(len(real), dtype=torch.bool)
    recalled = torch.zeros(len(real), dtype=torch.bool)
    scale = float(sum((x.double() - real.double().mean(0)).square().sum(1).max() for x in (real, fake)))
    for part, table in squared_blocks(fake, real):
        _settle_ties(table, (real_radii[None], fake_radii[part, None]), TIE * scale, fake[part], real)
        inside = table < real_radii
        around[part] = inside.sum(1)
        covered |= inside.any(0)
        recalled |= (table < fake_radii[part, None]).any(0)
    return {
        "precision": float((around > 0).double().mean()),
        "recall": float(recalled.double().mean()),
        "density": float(around.double().mean()) / k,
        "coverage": float(covered.double().mean()),
    }


def _settle_ties(table: Tensor, radii: tuple[Tensor, ...], tolerance: float, a: Tensor, b: Tensor) -> None:
    """Recompute from differences the squared distances (A, B) of rows a to b that nearly equal a radius."""
    near = torch.zeros_like(table, dtype=torch.bool)
    for radius in radii:
        near |= (table - radius).abs() <= tolerance
    i, j = torch.nonzero(near, as_tuple=True)
    table[i, j] = direct_squared(a, b, i, j)


def _squared_radii(rows: Tensor, k: int) -> Tensor:
    """Squared distance of every row (n, F) to its k-th nearest other row, from differences, float64 (n,)."""
    radii = torch.zeros(len(rows), dtype=torch.float64)
    count = min(k + SPARE, len(rows) - 1)
    for part, table in squared_blocks(rows, rows):
        own = torch.arange(part.start, part.stop)
        table[torch.arange(len(own)), own] = torch.inf
        index = table.topk(count, dim=1, largest=False).indices
        pairs = direct_squared(rows, rows, own.repeat_interleave(count), index.flatten())
        radii[part] = pairs.reshape(len(own), count).sort(1).values[:, k - 1]
    return radii


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
