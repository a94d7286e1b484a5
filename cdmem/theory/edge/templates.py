"""Templates of the image model: 15 x 15 grey pictures in [0, 1].

Published: FashionMNIST, resized bicubically. It is not shipped with any dependency; here the templates are handwritten
digits of scikit-learn, or grey CIFAR-10 images from a folder.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cdmem.data.sources import load_source
from cdmem.errors import InputError

SIDE = 15
Source = Literal["digits", "cifar10"]


def templates(source: Source, count: int, folder: str | None, rng: np.random.Generator) -> Tensor:
    """(count, 225) templates of different classes, float64.

    Raises:
        InputError: more templates than classes, or CIFAR-10 without a folder.
    """
    if not 1 <= count <= 10:
        raise InputError("image_k", count, "is no number of classes", "give 1 to 10")
    pool = load_source(source, folder if source == "cifar10" else None, grayscale=True)
    pictures, labels = pool.images[:, 0], pool.labels.numpy()
    classes = rng.permutation(10)[:count]
    chosen = [pictures[rng.choice(np.flatnonzero(labels == c))].numpy() for c in classes]
    return torch.from_numpy(np.stack([_resized(p) for p in chosen]).reshape(count, -1))


def _resized(picture: np.ndarray) -> np.ndarray:
    """Bicubic to 15 x 15, then stretched to [0, 1]."""
    small = Image.fromarray(picture.astype(np.float32)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    values = np.asarray(small, dtype=float)
    return (values - values.min()) / (values.max() - values.min())
