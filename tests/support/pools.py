"""Random pixels for files, and what every pool of images must satisfy."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from cdmem.data.sources import load_source
from cdmem.errors import InputError

RNG = np.random.default_rng(0)


def grey_levels(*shape):
    return RNG.integers(0, 256, shape, dtype=np.uint8)


def save(path, array):
    """A picture, in the format of the path's suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def key_of(*args, **more):
    with pytest.raises(InputError) as caught:
        load_source(*args, **more)
    assert "\n" not in str(caught.value)
    return caught.value.key


def check(pool, count, shape):
    assert pool.images.dtype == torch.uint8
    assert pool.images.shape == (count, *shape)
    assert pool.images.is_contiguous()
    assert pool.labels.dtype == pool.indices.dtype == torch.int64
    assert len(pool.labels) == len(pool.indices) == len(pool) == count
    json.dumps(pool.provenance)
