"""One neighbour index per training set, shared by all metrics, and the base of metrics on neighbours."""

from __future__ import annotations

import weakref

import torch
from torch import Tensor

from cdmem.data.subset import TrainingSet
from cdmem.errors import InputError
from cdmem.metrics.base import SampleMetric
from cdmem.metrics.neighbors.near_duplicates import near_duplicate_labels
from cdmem.metrics.neighbors.pixels import NeighborIndex, Neighbors

NearDuplicates = str | float
_indices: weakref.WeakKeyDictionary[TrainingSet, dict[NearDuplicates, GroupIndex]] = weakref.WeakKeyDictionary()


class GroupIndex:
    """Neighbour index over the groups of one training set, with their multiplicities and spacing.

    A group is one image for the purpose of memorisation: exact duplicates always, mirror images when training flips,
    near-duplicates on request.

    Args:
        training_set: T.
        near_duplicates: ``off``, ``auto`` or the ratio below which two training images are one photo.

    Attributes:
        index: the search over pixels.
        multiplicities: rows of T in every group, int64 (G,).
        merged: images that near-duplicate grouping joined to another one; 0 with ``off``.
    """

    def __init__(self, training_set: TrainingSet, near_duplicates: NearDuplicates = "off") -> None:
        labels, self.merged = None, 0
        if near_duplicates != "off":
            labels, self.merged = near_duplicate_labels(
                training_set.images, flip=training_set.flip, rule=near_duplicates
            )
            if self.merged and len(labels.unique()) < 2:
                problem = "makes one image of the whole training set"
                raise InputError("near_duplicates", near_duplicates, problem, "use a smaller ratio")
        self.index = NeighborIndex(training_set.images, flip=training_set.flip, labels=labels)
        counts = torch.zeros(self.index.num_groups, dtype=torch.int64)
        self.multiplicities = counts.index_add_(0, self.index.row_groups.cpu(), training_set.multiplicities)
        self.training_images, self.flip = training_set.images, training_set.flip
        self._last: tuple[weakref.ref[Tensor], int, Neighbors] | None = None

    def query(self, images: Tensor, k: int = 2) -> Neighbors:
        """Neighbours on the CPU; those of the same tensor object are kept, since several metrics need them."""
        # A tensor that was written to is another one; inference tensors have no version, so they are never kept.
        version = -1 if images.is_inference() else images._version
        if self._last is not None and version >= 0:
            images_of, seen, neighbors = self._last
            enough = neighbors.squared.shape[1] >= min(k, self.index.num_groups)
            if images_of() is images and seen == version and enough:
                return Neighbors(neighbors.squared[:, :k], neighbors.groups[:, :k], neighbors.nearest)
        neighbors = self.index.query(images, k)
        neighbors = Neighbors(neighbors.squared.cpu(), neighbors.groups.cpu(), neighbors.nearest.cpu())
        self._last = (weakref.ref(images), version, neighbors)
        return neighbors

    def spacing(self) -> Tensor:
        """Distance of every group to the nearest other group, float64 (G,) grey levels; its first row speaks for it."""
        rows = self.index.representatives.cpu()
        own = torch.arange(self.index.num_groups)
        return self.index.query(self.training_images[rows], 1, exclude=own).d1.cpu()


def group_index(training_set: TrainingSet, near_duplicates: NearDuplicates = "off") -> GroupIndex:
    """The index of a training set, built once per grouping.

    Raises:
        InputError: fewer than two groups; a ratio outside (0, 1).
    """
    if isinstance(near_duplicates, str) and near_duplicates not in ("off", "auto"):
        raise InputError("near_duplicates", near_duplicates, "is no rule", "use auto, off or a ratio such as 0.5")
    known = _indices.setdefault(training_set, {})
    if near_duplicates not in known:
        known[near_duplicates] = GroupIndex(training_set, near_duplicates)
    return known[near_duplicates]


class NeighborMetric(SampleMetric):
    """Base of metrics on the distances to the nearest groups of T: columns ``squared`` and ``groups`` (m, k).

    Args:
        k: neighbours kept per sample.
        near_duplicates: grouping, see :class:`GroupIndex`.
    """

    def __init__(self, k: int = 2, near_duplicates: NearDuplicates = "off") -> None:
        super().__init__()
        self.k, self.near_duplicates = k, near_duplicates

    def prepare(self, training_set: TrainingSet) -> NeighborMetric:
        """Build the index, or take the one that another metric built."""
        self.search = group_index(training_set, self.near_duplicates)
        super().prepare(training_set)
        return self

    def columns(self, images: Tensor) -> dict[str, Tensor]:
        """Squared distances and group ids of the k nearest groups, int64 (B, k)."""
        neighbors = self.search.query(images, self.k)
        return {"squared": neighbors.squared, "groups": neighbors.groups}
