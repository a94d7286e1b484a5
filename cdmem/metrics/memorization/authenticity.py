"""Authenticity: is a sample farther from its nearest training image than that image is from the others?

Alaa et al. 2022, corrected for repeated rows, which the published form mistakes for near neighbours: with every image
present twice it calls a near-exact copier 100 % authentic. The share for fresh samples is not 1/2 but grows with
the dimension (1/3 in 1-D, above 0.85 for small images), so it is to be read beside that of held-out images.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cdmem.errors import InputError
from cdmem.metrics.neighbors.features import FeatureIndex
from cdmem.metrics.quality.feature_space import FeatureMetric, content_groups
from cdmem.metrics.statistics import share


def authentic(generated: Tensor, train: Tensor, train_groups: Tensor | None = None) -> Tensor:
    """Which samples are authentic, bool (m,).

    With y_j the training row nearest to x: authentic if d(y_j, nearest row of another group) < d(x, y_j). Strict, as
    published: at equality x is not authentic.

    Features are (m, F) and (n, F); ``train_groups`` is the image of every training row, int64 (n,), by default rows of
    equal content are one image.

    Raises:
        InputError: fewer than two groups, which leaves y_j without another image.
    """
    groups = content_groups(train) if train_groups is None else train_groups
    if len(groups.unique()) < 2:
        raise InputError("data.n", len(groups.unique()), "authenticity needs two different images", "use n >= 2")
    index = FeatureIndex(train, groups)
    found = index.query(generated, 1)
    rows, place = torch.unique(found.nearest, return_inverse=True)  # only images that are nearest to some sample
    spacing = index.query(train[rows], 1, exclude=groups[rows]).squared[:, 0]
    return spacing[place].sqrt() < found.squared[:, 0].sqrt()


class Authenticity(FeatureMetric):
    """Authentic share of the samples and of H, each with its 95 % Wilson interval.

    The interval is over samples of this model and this T; the held-out share is the value of a model that has
    generalised, and is left out without H. Where training mirrors, a mirror image belongs to its image.

    Args:
        features: uint8 (B, C, H, W) -> (B, F); the pixels by default.
    """

    higher_is_better = True

    def evaluate(self, rows: dict[str, Tensor]) -> dict[str, float]:
        """``authenticity``, ``_low``, ``_high``; ``authenticity_heldout``, ``_low``, ``_high``."""
        held_out = self.training_set.held_out_images
        values = self._share(rows["images"], "authenticity")
        if len(held_out):
            values |= self.once("baseline", lambda: self._share(held_out, "authenticity_heldout"))
        return values

    def _share(self, images: Tensor, name: str) -> dict[str, float]:
        train, groups = self.views(self.training_set.images)
        hits = int(authentic(self.features_of(images), train, groups).sum())
        return share(name, hits, len(images))
