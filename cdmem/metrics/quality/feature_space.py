"""What metrics on float features share: exact-near-zero float64 distances in bounded memory, and groups of rows.

A *group* is one image: its repeated rows and, where training mirrors images, its mirror image. Distances to a group are
to its nearest row, so multiplicities cannot change them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from cdmem.data.subset import TrainingSet, first_rows, numbered
from cdmem.errors import InputError
from cdmem.metrics.base import SampleMetric
from cdmem.metrics.neighbors.features import TABLE_ENTRIES, FeatureIndex, direct_squared
from cdmem.metrics.quality.features import PixelFeatures, cached_features

CANCELLED = 1e-6  # below this share of |a|^2 + |b|^2 the product form has lost digits


def squared_blocks(a: Tensor, b: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Squared distances of all rows of ``a`` (m, F) to all of ``b`` (n, F), a block of rows of ``a`` at a time.

    Centred products in float64; entries that cancel are recomputed from differences, so equal rows are at exactly 0.

    Returns:
        positions in ``a`` and the float64 (block, n) table, which the caller may overwrite.
    """
    centre = b.double().mean(0)
    columns = b.double() - centre
    squares = columns.square().sum(1)
    step = max(TABLE_ENTRIES // max(len(b), 1), 1)
    for start in range(0, len(a), step):
        part = slice(start, min(start + step, len(a)))
        rows = a[part].double() - centre
        scale = rows.square().sum(1)[:, None] + squares
        table = torch.addmm(scale, rows, columns.T, alpha=-2)
        i, j = torch.nonzero(table <= CANCELLED * scale, as_tuple=True)
        table[i, j] = direct_squared(a[part], b, i, j)
        yield part, table


def nearest(
    queries: Tensor, rows: Tensor, exclude: Tensor | None = None, groups: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Distance of queries (B, F) to the nearest of rows (n, F), float64 (B,), and its position, int64 (B,).

    ``exclude`` (B,) is a group to skip for every query, of the ``groups`` of the rows (n,); the distance is infinite
    where every row is skipped.
    """
    neighbors = FeatureIndex(rows, groups).query(queries, 1, exclude)
    return neighbors.squared[:, 0].sqrt(), neighbors.nearest


def content_groups(rows: Tensor) -> Tensor:
    """Group of every row by content, numbered by first occurrence: (n, F) -> int64 (n,)."""
    return numbered(row.tobytes() for row in (rows + 0.0).cpu().numpy())  # + 0.0 turns -0.0 into 0.0


def unique_rows(rows: Tensor) -> Tensor:
    """Rows of distinct content in the order of their first occurrence: (n, F) -> (u, F)."""
    return rows[first_rows(content_groups(rows))]


def choose_groups(rows: Tensor, groups: Tensor, size: int, seed: int) -> tuple[Tensor, Tensor]:
    """``size`` groups chosen without replacement: their rows (k, F) and groups 0..size-1, int64 (k,).

    All groups keep their order when there are exactly ``size``.
    """
    numbers = torch.unique(groups, return_inverse=True)[1]
    count = int(numbers.max()) + 1
    place = torch.full((count,), -1)
    chosen = torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:size].sort().values
    place[chosen] = torch.arange(len(chosen))
    kept = place[numbers] >= 0
    return rows[kept], place[numbers][kept]


def halves(rows: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """A seeded split of rows (n, ...) into halves of n // 2 and n - n // 2 rows."""
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    return rows[order[: len(rows) // 2]], rows[order[len(rows) // 2 :]]


class FeatureMetric(SampleMetric):
    """Base of metrics on features; the samples are kept as images, so batches cannot change their features.

    Args:
        features: uint8 (B, C, H, W) -> (B, F); the pixels by default.
    """

    def __init__(self, features: nn.Module | None = None) -> None:
        super().__init__()
        # In a list: not a submodule, so no weights of the extractor reach a checkpoint.
        self._features = [PixelFeatures() if features is None else features]
        self._known: dict[str, Any] = {}

    def prepare(self, training_set: TrainingSet) -> FeatureMetric:
        """Bind T and H; what was worked out from others is forgotten."""
        self._known = {}
        super().prepare(training_set)
        return self

    def once(self, name: str, work: Callable[[], Any]) -> Any:
        """What depends on T and H alone is worked out at the first evaluation and kept over :meth:`reset`."""
        if name not in self._known:
            self._known[name] = work()
        return self._known[name]

    def features_of(self, images: Tensor) -> Tensor:
        """Features on the CPU: uint8 (B, C, H, W) -> (B, F)."""
        return cached_features(self._features[0], images, self.device)

    def views(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features (k, F) and groups (k,) of images, with their mirror images where training mirrors.

        The first rows are those of the images themselves.
        """
        groups = torch.arange(len(images))
        if not self.training_set.flip:
            return self.features_of(images), groups
        return self.features_of(torch.cat([images, images.flip(-1)])), groups.repeat(2)

    def need_held_out(self, least: int) -> Tensor:
        """H, uint8 (h, C, H, W).

        Raises:
            InputError: fewer than ``least`` held-out images.
        """
        held_out = self.training_set.held_out_images
        if len(held_out) < least:
            problem = f"{type(self).__name__} needs at least {least} held-out images"
            raise InputError("data.held_out", len(held_out), problem, f"use {least} or more")
        return held_out
