r"""Which training images are one photo? Near-duplicates by a relative rule.

An absolute pixel threshold does not work: on CIFAR-10 true re-crops start near the distance of unrelated pictures of
sky. So image i is joined to its k nearest other images where the distances have a gap behind them,

.. math:: d_k(i) / d_{k+1}(i) < \tau,\qquad k \le 8,

with tau = 1/2. With k = 1 this is the ratio test of memorisation itself, applied to T. Larger k are needed because of
three or more near-duplicates of one photo: each has two neighbours at a like distance, and the ratio of the first two
sees nothing. Joined images form connected components. More than nine near-duplicates of one photo stay apart, and so do
fewer than three images in all, where no other distance is there to compare with.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from cdmem.errors import InputError
from cdmem.metrics.neighbors.pixels import NeighborIndex

AUTO = 0.5
MOST = 8


@dataclass(frozen=True)
class NearDuplicates:
    """Components of near-duplicates.

    Attributes:
        labels: component of every image, int64 (n,), numbered by first occurrence.
        merged: groups that were joined to an earlier one.
        rule: the ratio used.
    """

    labels: Tensor
    merged: int
    rule: float


def near_duplicate_labels(
    images: Tensor, *, flip: bool = False, rule: str | float = "auto", memory_mib: int = 256
) -> NearDuplicates:
    """Join near-duplicates; exact duplicates (and mirror images with ``flip``) are one image to begin with.

    Args:
        images: uint8 (n, C, H, W).
        flip: mirror images count as the same image.
        rule: ``auto`` (tau = 1/2) or tau itself.
        memory_mib: bound on temporary memory.

    Raises:
        InputError: tau outside (0, 1); fewer than two distinct images.
    """
    tau = AUTO if rule == "auto" else rule
    if isinstance(tau, str) or not 0 < tau < 1:
        raise InputError("near_duplicates", rule, "must be a ratio in (0, 1)", "use auto, off or for example 0.5")
    index = NeighborIndex(images, flip=flip, memory_mib=memory_mib)
    count = index.num_groups
    if count < 3:
        return NearDuplicates(index.row_groups, 0, tau)
    rows = index.representatives
    neighbors = index.query(images[rows], MOST + 1, exclude=torch.arange(count))
    distance = neighbors.squared.double().sqrt()
    gap = distance[:, :-1] < tau * distance[:, 1:]
    reach = torch.where(gap, torch.arange(1, gap.shape[1] + 1), 0).amax(1)
    joined = torch.arange(gap.shape[1]) < reach[:, None]
    one, column = joined.nonzero(as_tuple=True)
    other = neighbors.groups[one, column]
    graph = coo_array((np.ones(len(one), dtype=np.int8), (one.numpy(), other.numpy())), shape=(count, count))
    total, component = connected_components(graph, directed=False)
    # scipy numbers components by their first member, and groups are numbered by first occurrence already.
    labels = torch.from_numpy(component.astype(np.int64))[index.row_groups]
    return NearDuplicates(labels, count - total, tau)
