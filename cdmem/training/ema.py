r"""Exponential moving averages of a network, several half-lives at once.

.. math:: \bar\theta \leftarrow \beta\bar\theta + (1-\beta)\theta,\qquad \beta = 2^{-1/h}

One update per optimizer step. The average lives inside the LightningModule, so it is saved, moved and resumed with it;
Lightning's own averaging callbacks would also copy the teacher.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import nn

from cdmem.networks.parameters import move_towards


def ema_beta(half_life: float, step: int, ramp: float) -> float:
    """Decay of one step; the half-life is at most ``ramp * step`` early on (EDM: 5 %), so that short runs do not lag.

    Args:
        half_life: optimizer steps after which an old weight counts half.
        step: optimizer steps taken, including this one, >= 1.
        ramp: share of the run so far that the half-life may span; 0 switches the ramp off.
    """
    if ramp > 0:
        half_life = min(half_life, max(ramp * step, 1e-8))
    return 0.5 ** (1.0 / half_life)


class EMA(nn.Module):
    """Averaged copies of ``network``, one per half-life; frozen, in eval mode.

    Args:
        network: what to average; only copied here, never kept.
        half_lives: in optimizer steps, each >= 1.
        ramp: see :func:`ema_beta`.
    """

    def __init__(self, network: nn.Module, half_lives: Sequence[int], ramp: float = 0.05) -> None:
        super().__init__()
        self.half_lives = tuple(int(h) for h in half_lives)
        self.ramp = ramp
        self.buffered = any(True for _ in network.buffers())
        self.copies = nn.ModuleList(copy.deepcopy(network) for _ in self.half_lives)
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> EMA:
        """Averages never train."""
        return super().train(False)

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Move every average towards ``network``; call once after optimizer step number ``step`` (from 1)."""
        for half_life, average in zip(self.half_lives, self.copies):
            move_towards(average, network, 1 - ema_beta(half_life, step, self.ramp))
            if self.buffered:
                for mine, theirs in zip(average.buffers(), network.buffers()):
                    mine.copy_(theirs)

    def names(self) -> list[str]:
        """Weight names as used in settings and records: ``ema_200`` is the average of half-life 200 steps."""
        return [f"ema_{h}" for h in self.half_lives]

    def get(self, name: str) -> nn.Module:
        """The averaged network called ``name``."""
        return self.copies[self.names().index(name)]
