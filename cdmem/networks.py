r"""Networks F(x, c_noise, labels): diffusers' ``UNet2DModel`` from a short config, and an MLP for tiny images.

A config object knows everything but the image shape, which comes from the data: ``UNet(channels=[16, 32]).build(...)``.
"""

from __future__ import annotations

import importlib
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from cdmem.errors import InputError


class NetworkConfig(ABC):
    """How to build a network once the image shape is known."""

    @abstractmethod
    def build(self, shape: Sequence[int], num_classes: int, seed: int) -> nn.Module:
        """A network for images (C, H, W), weights a function of ``seed``; ``num_classes`` 0 is unconditional."""

    def record(self) -> dict[str, Any]:
        """Plain types that :func:`from_record` turns back into the config."""
        return {"class_path": f"{type(self).__module__}.{type(self).__qualname__}", "init_args": asdict(self)}


def from_record(record: dict[str, Any]) -> NetworkConfig:
    """Rebuild a config stored in a checkpoint. Only classes of this module: a file must not choose code."""
    module, _, name = str(record.get("class_path")).rpartition(".")
    known = {"UNet": UNet, "MLP": MLP}
    if module != __name__ or name not in known:
        raise InputError(
            "checkpoint.network", record.get("class_path"), "not a network of cdmem", f"known: {sorted(known)}"
        )
    return known[name](**record["init_args"])


class UNetNetwork(nn.Module):
    """``UNet2DModel`` behind the signature F(x, c_noise, labels)."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None) -> Tensor:
        # c_noise must be a float tensor: a Python number would be truncated to an integer time step.
        return self.unet(x, c_noise, class_labels=labels).sample


@dataclass
class UNet(NetworkConfig):
    """diffusers ``UNet2DModel``.

    Args:
        channels: width of each level; the image side must be divisible by 2^(levels - 1).
        layers: residual blocks per level.
        attention: sides (in pixels) at which self-attention is added, for example [16].
        dropout: probability in the residual blocks; 0 because dropout works against memorisation.
        norm_groups: groups of GroupNorm; must divide every width.
    """

    channels: list[int] = field(default_factory=lambda: [128, 256, 256])
    layers: int = 2
    attention: list[int] = field(default_factory=list)
    dropout: float = 0.0
    norm_groups: int = 8

    def _check(self, shape: Sequence[int]) -> None:
        factor = 2 ** (len(self.channels) - 1)
        if shape[1] % factor or shape[2] % factor:
            raise InputError(
                "data.resolution",
                f"{shape[1]}x{shape[2]}",
                f"sides must be divisible by {factor} for {len(self.channels)} network levels",
                f"set data.resolution to a multiple of {factor} or use fewer model.network.channels",
            )
        for width in self.channels:
            if width % self.norm_groups:
                raise InputError(
                    "model.network.norm_groups",
                    self.norm_groups,
                    f"does not divide the width {width}",
                    "choose a common divisor of model.network.channels",
                )

    def build(self, shape: Sequence[int], num_classes: int, seed: int) -> nn.Module:
        from diffusers import UNet2DModel

        self._check(shape)
        sides = [shape[1] // 2**level for level in range(len(self.channels))]
        attends = [side in self.attention for side in sides]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            unet = UNet2DModel(
                sample_size=shape[1] if shape[1] == shape[2] else tuple(shape[1:]),
                in_channels=shape[0],
                out_channels=shape[0],
                time_embedding_type="positional",
                freq_shift=1,
                block_out_channels=tuple(self.channels),
                layers_per_block=self.layers,
                down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attends),
                up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)),
                mid_block_type="UNetMidBlock2D",
                add_attention=any(attends),
                # diffusers makes width // head_dim heads: a level narrower than one head would have none.
                attention_head_dim=min(64, self.channels[-1], *(w for w, a in zip(self.channels, attends) if a)),
                norm_num_groups=self.norm_groups,
                dropout=self.dropout,
                num_class_embeds=num_classes or None,
            )
        # An untrained D starts at c_skip x, as in EDM; diffusers leaves conv_out random.
        nn.init.zeros_(unet.conv_out.weight)
        nn.init.zeros_(unet.conv_out.bias)
        return UNetNetwork(unet)


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
            torch.manual_seed(seed)
            return MLPNetwork(shape, self.width, self.depth, self.dropout, num_classes)


def save_diffusers(network: nn.Module, folder: str) -> None:
    """Write the ``UNet2DModel`` as a diffusers folder (config.json + safetensors)."""
    if not isinstance(network, UNetNetwork):
        raise InputError("model.network", type(network).__name__, "is not a UNet2DModel", "export a UNet")
    network.unet.save_pretrained(folder, safe_serialization=True)


def load_diffusers(folder: str) -> nn.Module:
    """Read what :func:`save_diffusers` wrote (or any ``UNet2DModel`` folder); safetensors only, no network access."""
    unet_class = importlib.import_module("diffusers").UNet2DModel
    return UNetNetwork(unet_class.from_pretrained(folder, use_safetensors=True, local_files_only=True))
