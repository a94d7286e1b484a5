"""Several residual MLPs trained side by side in one batched product; they share nothing but the clock."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class StackedMLP(nn.Module):
    """``members`` independent noise predictors eps(x, t).

    Three residual blocks h + B silu(A h + c t + a) + b between a linear map in and one out. Published are
    "3-block residual MLP, width 128, 102,024 parameters"; the inside of a block is **assumed**, and at width 128 and 8
    dimensions it has exactly that many.

    Args:
        members: number of networks E.
        dim: dimension d of the data.
        width: W.
        generator: of the initial weights, uniform within 1 / sqrt(inputs) as torch's linear layers.
    """

    BLOCKS = 3

    def __init__(self, members: int, dim: int, width: int, generator: torch.Generator) -> None:
        super().__init__()

        def linear(inputs: int, outputs: int) -> list[nn.Parameter]:
            shapes = (members, inputs, outputs), (members, 1, outputs)
            bound = 1 / math.sqrt(inputs)
            return [nn.Parameter((torch.rand(shape, generator=generator) * 2 - 1) * bound) for shape in shapes]

        self.first = nn.ParameterList(linear(dim, width))
        blocks = [linear(width, width) + linear(1, width) + linear(width, width) for _ in range(self.BLOCKS)]
        self.blocks = nn.ModuleList(nn.ParameterList(block) for block in blocks)
        self.last = nn.ParameterList(linear(width, dim))
        self.members = members

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Predicted noise (E, B, d) of x (E, B, d) at times (E, B, 1) in [0, 1)."""
        h = torch.baddbmm(self.first[1], x, self.first[0])
        for a, a0, c, c0, b, b0 in self.blocks:
            inner = torch.baddbmm(a0, h, a) + time * c + c0
            h = h + torch.baddbmm(b0, nn.functional.silu(inner), b)
        return torch.baddbmm(self.last[1], h, self.last[0])

    def size(self) -> int:
        """Parameters of one member."""
        return sum(p.numel() for p in self.parameters()) // self.members
