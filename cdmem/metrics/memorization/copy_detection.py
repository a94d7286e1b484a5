r"""Copies that pixels miss: similarity of histograms of oriented gradients, calibrated on held-out images.

Pixel distances lose a copy whose brightness changed; gradients of the square root of grey levels scale out a gain. A
sample counts as copied if its largest cosine to T is as rare among held-out images as 1 %: conformal,
(k + 1) / (h + 1). Mirrored copies are found where training mirrors (T is then searched with its mirror images).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cdmem.errors import InputError
from cdmem.metrics.memorization.ratio import memorized
from cdmem.metrics.neighbors.index import group_index
from cdmem.metrics.quality.feature_space import FeatureMetric
from cdmem.metrics.statistics import conformal_p_values, median, share

BINS = 8
SMALL = 16  # below this side cells are 2 pixels wide, above 4
FALSE_POSITIVES = 0.01


class HogFeatures(nn.Module):
    """Histograms of oriented gradients (Dalal & Triggs 2005) of small images, without weights.

    Square root of the grey level (mean of the channels), central differences (0 at the border), 8 unsigned
    orientations with linear interpolation between neighbouring bins, cells of 4x4 pixels (2x2 for images below 16
    pixels), the whole vector normalised to length 1. A flat image is the zero vector.
    """

    name = "hog"
    digest = "exact"

    def forward(self, images: Tensor) -> Tensor:
        """uint8 (B, C, H, W) -> float32 (B, 8 * cells)."""
        grey = images.double().mean(1).sqrt()
        dy, dx = torch.zeros_like(grey), torch.zeros_like(grey)
        dy[:, 1:-1] = grey[:, 2:] - grey[:, :-2]
        dx[:, :, 1:-1] = grey[:, :, 2:] - grey[:, :, :-2]
        magnitude = torch.hypot(dx, dy)
        # Bin centres at (k + 1/2) pi / 8; a direction and its opposite are one.
        position = torch.remainder(torch.atan2(dy, dx), math.pi) * BINS / math.pi - 0.5
        low = position.floor()
        upper = position - low
        first = low.long() % BINS
        planes = magnitude.new_zeros(len(grey), BINS, *grey.shape[1:])
        planes.scatter_add_(1, first[:, None], (magnitude * (1 - upper))[:, None])
        planes.scatter_add_(1, ((first + 1) % BINS)[:, None], (magnitude * upper)[:, None])
        side = 2 if min(grey.shape[1:]) < SMALL else 4
        # A last, incomplete cell keeps its sum: zeros add nothing.
        planes = F.pad(planes, (0, -grey.shape[2] % side, 0, -grey.shape[1] % side))
        cells = F.avg_pool2d(planes, side) * side**2
        return F.normalize(cells.flatten(1), dim=1).float()


def copy_similarity(generated_features: Tensor, train_features: Tensor, block: int = 4096) -> Tensor:
    """Largest cosine of features (m, F) to training rows (n, F), ``block`` of them at once: float64 (m,), 0 for a zero
    vector.

    Raises:
        InputError: no training rows, or features of another length.
    """
    if not len(train_features) or generated_features.shape[1:] != train_features.shape[1:]:
        given = f"{tuple(generated_features.shape)} against {tuple(train_features.shape)}"
        raise InputError("features", given, "must be (m, F) and (n, F) with n >= 1", "use one extractor for both")
    queries = F.normalize(generated_features.double(), dim=1)
    best = torch.full((len(queries),), -torch.inf, dtype=torch.float64)
    for start in range(0, len(train_features), block):
        rows = F.normalize(train_features[start : start + block].double(), dim=1)
        best = torch.maximum(best, (queries @ rows.T).amax(1))
    return best


class CopyDetection(FeatureMetric):
    """Share of samples more similar to T than 99 % of held-out images are, beside what the pixel test finds.

    With fewer than 99 held-out images 1 % cannot be had: then the smallest rate that can is taken, 1 / (h + 1).

    Args:
        features: uint8 (B, C, H, W) -> (B, F); HOG by default. Other extractors (a classifier's, for crops and
            mirror images) must not be thresholded alone: noise hides copies from them.
    """

    def __init__(self, features: nn.Module | None = None) -> None:
        super().__init__(HogFeatures() if features is None else features)

    def evaluate(self, rows: dict[str, Tensor]) -> dict[str, float]:
        """``copied`` with ``copied_low`` and ``copied_high`` (Wilson), ``heldout_rate`` (share of H above the
        threshold), ``rate_bound`` (the conformal level), ``threshold``, ``similarity_median``,
        ``heldout_similarity_median``; against d1/d2 < 1/3 in pixels, shares of samples: ``both``, ``only_features``,
        ``only_pixels``, ``neither``."""
        held_out = self.need_held_out(1)
        train, _ = self.views(self.training_set.images)
        similarity, control = (copy_similarity(self.features_of(x), train) for x in (rows["images"], held_out))
        h, m = len(control), len(similarity)
        level = max(FALSE_POSITIVES, 1 / (h + 1))
        # Rounding must not decide between k + 1 and level (h + 1).
        p = conformal_p_values(-similarity.numpy(), -control.numpy())
        copied = torch.from_numpy(p <= level + 1e-12)
        allowed = math.floor(level * (h + 1) + 1e-9) - 1
        threshold = float(control.sort(descending=True).values[allowed])
        values = {
            **share("copied", int(copied.sum()), m),
            "heldout_rate": float((control > threshold).double().mean()),
            "rate_bound": (allowed + 1) / (h + 1),
            "threshold": threshold,
            "similarity_median": median(similarity),
            "heldout_similarity_median": median(control),
        }
        return values | self._agreement(rows["images"], copied)

    def _agreement(self, images: Tensor, copied: Tensor) -> dict[str, float]:
        """The 2x2 table with the pixel test, as shares of samples."""
        neighbors = group_index(self.training_set).query(images, 2)
        pixels = memorized(neighbors.squared[:, 0], neighbors.squared[:, 1])
        cells = {
            "both": copied & pixels,
            "only_features": copied & ~pixels,
            "only_pixels": pixels & ~copied,
            "neither": ~(copied | pixels),
        }
        return {name: int(hit.sum()) / len(images) for name, hit in cells.items()}
