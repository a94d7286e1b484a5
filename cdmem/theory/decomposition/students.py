"""Few-step students: what they return, split into target and the rest, beside the teacher's endpoint of the same
noise."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Split:
    """Of B outputs: ``a`` along x* - mu, ``across`` in units of |x* - mu|, ``cosine`` with the teacher's output (both
    mean-centred)."""

    a: Tensor
    across: Tensor
    cosine: Tensor


def split(output: Tensor, teacher: Tensor, target: Tensor, mean: Tensor) -> Split:
    """From outputs, teacher's endpoints and targets (B, size), and the mean (size,)."""
    y, t, goal = output.double() - mean, teacher.double() - mean, target.double() - mean
    a = (y * goal).sum(1) / (goal**2).sum(1)
    across = (y - a[:, None] * goal).norm(dim=1) / goal.norm(dim=1)
    return Split(a, across, torch.nn.functional.cosine_similarity(y, t, dim=1))
