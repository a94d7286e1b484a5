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

import torch
from torch import Tensor

from cdmem.errors import InputError
from cdmem.metrics.neighbors.pixels import NeighborIndex, connected

AUTO = 0.5
MOST = 8


def near_duplicate_labels(images: Tensor, *, flip: bool = False, rule: str | float = "auto") -> tuple[Tensor, int]:
    """Join near-duplicates; exact duplicates (and mirror images with ``flip``) are one image to begin with.

    Args:
        images: uint8 (n, C, H, W).
        flip: mirror images count as the same image.
        rule: ``auto`` (tau = 1/2) or tau itself.

    Returns:
        component of every image, int64 (n,), numbered by first occurrence, and how many groups were joined to an
        earlier one.

    Raises:
        InputError: tau outside (0, 1); fewer than two distinct images.
    """
    tau = AUTO if rule == "auto" else rule
    if isinstance(tau, str) or not 0 < tau < 1:
        raise InputError("near_duplicates", rule, "must be a ratio in (0, 1)", "use auto, off or for example 0.5")
    index = NeighborIndex(images, flip=flip)
    count = index.num_groups
    if count < 3:
        return index.row_groups, 0
    rows = index.representatives
    neighbors = index.query(images[rows], MOST + 1, exclude=torch.arange(count))
    distance = neighbors.squared.double().sqrt()
    gap = distance[:, :-1] < tau * distance[:, 1:]
    reach = torch.where(gap, torch.arange(1, gap.shape[1] + 1), 0).amax(1)
    joined = torch.arange(gap.shape[1]) < reach[:, None]
    one, column = joined.nonzero(as_tuple=True)
    component = connected(count, one, neighbors.groups[one, column])
    return component[index.row_groups], count - 1 - int(component.max())
