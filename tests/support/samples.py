"""Features, images and training sets that the metrics' tests share, and how samples are fed to a metric."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from support.parts import make_training_set, random_images, rng

SIDE = 4


def normal(n, size, seed):
    """Features float64 (n, size) from the unit Gaussian."""
    return torch.randn(n, size, generator=rng(seed), dtype=torch.float64)


def images(n, seed, shape=(3, SIDE, SIDE)):
    return random_images(n, shape, seed)


def photos(n, seed, shape=(3, 8, 8), grain=4):
    """Photo-like: coarse noise, enlarged, with some grain; uint8 (n, C, H, W)."""
    channels, height, width = shape
    coarse = torch.randn(n, channels, 4, 4, generator=rng(seed))
    coarse = coarse + torch.randn(n, 1, 4, 4, generator=rng(seed + 100))  # channels of photos are alike
    images = F.interpolate(coarse, size=(height, width), mode="bicubic")
    return (120 + 30 * images + grain * torch.randn(n, *shape, generator=rng(seed + 200))).clamp(0, 255).byte()


def flat(*levels):
    """Images of one grey level each, uint8 (n, 1, 2, 2)."""
    return torch.tensor(levels, dtype=torch.uint8).reshape(-1, 1, 1, 1).expand(-1, 1, 2, 2).contiguous()


def training_set(train, held_out, *, flip=False, copies=1):
    """T and H; ``copies`` rows of every image, or int64 (n,)."""
    return make_training_set(train, torch.zeros(len(train), dtype=torch.int64) + copies, held_out, flip)


def measure(metric, samples):
    """The numbers of a prepared metric; samples have seeds from 100 on."""
    metric.update(samples, torch.arange(len(samples)) + 100)
    return metric.compute()
