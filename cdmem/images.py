"""Pixel conversions and grids: uint8 grey levels 0..255 on disk, float32 in [-1, 1] in the models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

HALF_RANGE = 127.5


def to_float(images: Tensor) -> Tensor:
    """Grey levels (uint8, any shape) to float32 in [-1, 1]."""
    return images.to(torch.float32) / HALF_RANGE - 1.0


def to_uint8(x: Tensor) -> Tensor:
    """Float images in [-1, 1] (any shape) to grey levels, rounded half to even and clamped to 0..255.

    Every uint8 value survives ``to_uint8(to_float(v))`` unchanged (truncation, as in some FID code, does not).
    """
    return torch.round(HALF_RANGE * (x + 1.0)).clamp(0, 255).to(torch.uint8)


def grid(images: Tensor, columns: int, scale: int = 1) -> np.ndarray:
    """Tile uint8 images (B, C, H, W) row by row into one uint8 picture (H', W', 3), a white pixel between them.

    Args:
        images: grey levels, C = 1 or 3.
        columns: images per row.
        scale: integer magnification (nearest), so that 8x8 images can be seen.
    """
    images = images.repeat_interleave(scale, -1).repeat_interleave(scale, -2)
    if images.shape[1] == 1:
        images = images.expand(-1, 3, -1, -1)
    count, _, height, width = images.shape
    rows = -(-count // columns)
    canvas = np.full((rows * (height + 1) - 1, columns * (width + 1) - 1, 3), 255, np.uint8)
    for k, image in enumerate(images.permute(0, 2, 3, 1).cpu().numpy()):
        top, left = (k // columns) * (height + 1), (k % columns) * (width + 1)
        canvas[top : top + height, left : left + width] = image
    return canvas


def write_png(path: Path, picture: np.ndarray) -> None:
    """Write an (H, W, 3) uint8 picture as PNG."""
    Image.fromarray(picture).save(path)
