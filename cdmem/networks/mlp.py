"""``MLP``: a residual network on flat pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cdmem.errors import InputError
from cdmem.networks.config import NetworkConfig
from cdmem.seeds import generator_seed


class MLPNetwork(nn.Module):
    """Residual MLP on the flattened image with a sinusoidal embedding of c_noise."""

    def __init__(self, shape: Sequence[int], width: int, depth: int, dropout: float, num_classes: int) -> None:
        super().__init__()
        size = math.prod(shape)
        self.inputs = nn.Linear(size, width)
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.classes = nn.Embedding(num_classes, width) if num_classes else None
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(width),
                nn.Linear(width, 2 * width),
                nn.SiLU(),
                nn.Dropout(dropout),
                nn.Linear(2 * width, width),
            )
            for _ in range(depth)
        )
        self.outputs = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, size))
        nn.init.zeros_(self.outputs[1].weight)
        nn.init.zeros_(self.outputs[1].bias)
        half = width // 2
        self.register_buffer(
            "frequencies", torch.exp(-math.log(10_000.0) * torch.arange(half) / half), persistent=False
        )

    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None) -> Tensor:
        angles = c_noise[:, None].float() * self.frequencies
        condition = self.time(torch.cat([angles.sin(), angles.cos()], 1))
        if self.classes is not None:
            condition = condition + self.classes(labels)
        h = self.inputs(x.flatten(1))
        for block in self.blocks:
            h = h + block(h + condition)
        return self.outputs(h).reshape(x.shape)


@dataclass
class MLP(NetworkConfig):
    """Residual multilayer perceptron for small images and vectors.

    Args:
        width: hidden size, even.
        depth: residual blocks.
        dropout: probability inside the blocks.
    """

    width: int = 160
    depth: int = 4
    dropout: float = 0.0

    def build(self, shape: Sequence[int], num_classes: int, seed: int) -> nn.Module:
        if self.width % 2:
            raise InputError("model.network.width", self.width, "must be even", "add one")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(generator_seed(seed, "network"))
            return MLPNetwork(shape, self.width, self.depth, self.dropout, num_classes)
