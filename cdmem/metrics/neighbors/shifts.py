"""Images moved against each other by whole pixels: overlaps, exact sums over them, small images to compare coarsely.

Pixels are int8 (grey levels minus 128). Sums and products are integers that float64 holds, so blocks change no bit.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from cdmem.metrics.neighbors.pixels import BLOCK, full_float32

COARSE = 7  # side of the small images
LEVELS = 127  # of their values


def centred(images: Tensor) -> Tensor:
    """uint8 grey levels minus 128 as int8 of the same shape."""
    return images.bitwise_xor(128).view(torch.int8)


def exact_products(a: Tensor, b: Tensor) -> Tensor:
    """Products of whole numbers from -128 to 127, exact: float32 (..., q, P) and (..., P, r) -> float64 (..., q, r)."""
    with full_float32(a.device):
        # 1024 products of at most 128^2 sum to at most 2^24: exact in float32 in any order.
        parts = [(p @ q).double() for p, q in zip(a.split(BLOCK, -1), b.split(BLOCK, -2))]
    return sum(parts[1:], parts[0])


class Shifts:
    """All moves of an image by whole pixels up to a limit, and the overlap with an image that stays.

    Args:
        height, width: of the images, H and W.
        most: largest shift along either side; a quarter of the side where that is less.

    Attributes:
        offsets: rows down and columns to the right, S pairs; entry S - 1 - k is the opposite of entry k.
        masks: pixels of the image that stays under the moved one, 0 or 1, float64 (S, H * W).
        area: their number, float64 (S,).
        mirrored: entry of the same rows and the opposite columns, int64 (S,).
    """

    def __init__(self, height: int, width: int, most: int = 2) -> None:
        self.size = height, width
        self.limit = down, right = min(most, height // 4), min(most, width // 4)
        self.offsets = [(a, b) for a in range(-down, down + 1) for b in range(-right, right + 1)]
        self.masks = self.move(torch.ones(1, height, width), torch.arange(len(self)))[0].double()
        self.area = self.masks.sum(1)
        self.mirrored = torch.tensor([self.offsets.index((a, -b)) for a, b in self.offsets])

    def __len__(self) -> int:
        return len(self.offsets)

    def to(self, device: torch.device | str) -> Shifts:
        """Move the masks to a device."""
        for name in ("masks", "area", "mirrored"):
            setattr(self, name, getattr(self, name).to(device))
        return self

    def _moved(self, images: Tensor, k: int) -> Tensor:
        (a, b), (height, width) = self.offsets[k], self.size
        inside = images[..., max(0, -a) : height - max(0, a), max(0, -b) : width - max(0, b)]
        return F.pad(inside, (max(0, b), max(0, -b), max(0, a), max(0, -a)))

    def move(self, images: Tensor, shifts: Tensor) -> Tensor:
        """Images (..., H, W) at every one of the shifts (s,), zero where they do not reach: float32 (..., s, H * W)."""
        return torch.stack([self._moved(images, k).float() for k in shifts.tolist()], -3).flatten(-2)

    def move_each(self, images: Tensor, shifts: Tensor) -> Tensor:
        """Images (B, C, H, W), each at its own shift (B,): float32 (B, C, H * W)."""
        moved = torch.zeros(*images.shape[:2], self.masks.shape[1], device=images.device)
        for k in shifts.unique().tolist():
            here = shifts == k
            moved[here] = self._moved(images[here], k).float().flatten(2)
        return moved

    def moments(self, images: Tensor, moving: bool = False) -> tuple[Tensor, Tensor]:
        """Sum, and variance times area^2, of int8 (n, C, H, W) over every overlap: integers, float64 (n, C, S).

        ``moving`` says that these are the images that are moved.
        """
        masks = (self.masks.flip(0) if moving else self.masks).T
        values = images.flatten(2).double()
        sums = values @ masks
        return sums, values.square() @ masks * self.area - sums.square()

    # ---- coarse comparison ------------------------------------------------------------------------------------------

    def inner(self, images: Tensor) -> Tensor:
        """What no shift moves out of sight: (..., H, W) less the limit on every side."""
        return self._crop(images, 0, 0)

    def crops(self, images: Tensor) -> Tensor:
        """The parts (..., 9, h, w) of images (..., H, W) that :meth:`inner` has under nine shifts: none, and the limit
        in every direction."""
        (down, right), steps = self.limit, (-1, 0, 1)
        return torch.stack([self._crop(images, down * a, right * b) for a in steps for b in steps], -3)

    def _crop(self, images: Tensor, a: int, b: int) -> Tensor:
        (height, width), (down, right) = self.size, self.limit
        return images[..., down + a : height - down + a, right + b : width - right + b]


def small_images(images: Tensor) -> Tensor:
    """Images (n, C, h, w) at 7x7, every channel with mean 0 and norm 127, rounded: float32 (n, C * 49).

    Products of rows are 127^2 times the sum of the channels' correlations, and whole numbers. A flat channel is 0.
    """
    small = F.adaptive_avg_pool2d(images.double(), COARSE).flatten(2)
    small = small - small.mean(2, keepdim=True)
    return (LEVELS * F.normalize(small, dim=2, eps=1e-9)).round().float().flatten(1)
