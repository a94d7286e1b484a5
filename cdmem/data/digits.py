"""scikit-learn's handwritten digits: 1,797 grey images of 8x8, part of the package."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from cdmem.data.pixels import ImagePool, PixelOptions, transform_array
from cdmem.errors import InputError


def read_digits(path: Path | None, options: PixelOptions, download: bool) -> ImagePool:
    """The 1797 UCI test digits that scikit-learn carries, uint8 (1797, 1, 8, 8) before the options.

    The 17 levels v = 0..16 become grey levels round(255 v / 16).

    Raises:
        InputError: a path was given.
    """
    if path is not None:
        raise InputError("data.path", path, "digits come with scikit-learn", "leave data.path out")
    import sklearn
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = np.rint(digits.images * 255.0 / 16.0).astype(np.uint8)[:, None]
    return ImagePool(
        images=transform_array(pixels, options),
        labels=torch.from_numpy(digits.target.astype(np.int64)),
        class_names=tuple(map(str, range(10))),
        indices=torch.arange(len(pixels)),
        source="digits",
        provenance={"package": f"scikit-learn {sklearn.__version__}"},
    )
