"""``UNet``: diffusers' UNet2DModel with few settings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from cdmem.errors import InputError
from cdmem.networks.config import MAX_ITEMS, NetworkConfig
from cdmem.seeds import generator_seed


class UNetNetwork(nn.Module):
    """``UNet2DModel`` behind the signature F(x, c_noise, labels)."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None) -> Tensor:
        # c_noise must be a float tensor: a Python number would be truncated to an integer time step.
        return self.unet(x, c_noise, class_labels=labels).sample

    @classmethod
    def untrained(cls, make: Callable[[], nn.Module], seed: int) -> UNetNetwork:
        """With the random weights of ``seed``, but a D that starts at c_skip x, as in EDM."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(generator_seed(seed, "network"))
            unet = make()
        nn.init.zeros_(unet.conv_out.weight)
        nn.init.zeros_(unet.conv_out.bias)
        return cls(unet)


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
        if not self.channels or min(self.channels) < 1:
            raise InputError("model.network.channels", self.channels, "is no list of widths", "e.g. [32, 64]")
        for key in ("layers", "norm_groups"):
            if getattr(self, key) < 1:
                raise InputError(f"model.network.{key}", getattr(self, key), "is below 1", "e.g. 2")
        if len(self.channels) > MAX_ITEMS:
            count = f"{len(self.channels)} levels"
            raise InputError("model.network.channels", count, f"are more than {MAX_ITEMS}", "use fewer widths")
        factor = 2 ** (len(self.channels) - 1)
        if shape[1] % factor or shape[2] % factor:
            problem = f"sides must be divisible by {factor} for {len(self.channels)} network levels"
            hint = f"set data.resolution to a multiple of {factor} or use fewer model.network.channels"
            raise InputError("data.resolution", f"{shape[1]}x{shape[2]}", problem, hint)
        for width in self.channels:
            if width % self.norm_groups:
                problem, hint = (
                    f"does not divide the width {width}",
                    "choose a common divisor of model.network.channels",
                )
                raise InputError("model.network.norm_groups", self.norm_groups, problem, hint)

    def build(self, shape: Sequence[int], num_classes: int, seed: int) -> nn.Module:
        from diffusers import UNet2DModel

        self._check(shape)
        sides = [shape[1] // 2**level for level in range(len(self.channels))]
        attends = [side in self.attention for side in sides]
        make = partial(
            UNet2DModel,
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
        return UNetNetwork.untrained(make, seed)
