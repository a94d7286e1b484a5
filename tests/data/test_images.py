"""Pixels on disk and in models, and pictures of many images."""

import numpy as np
import pytest
import torch
from PIL import Image

from cdmem import images
from support.pools import grey_levels


@pytest.mark.parametrize("channels", [1, 3])
def test_a_grid_is_tiled_row_by_row_on_white(channels, tmp_path):
    """Five images of 2x3 in two columns, each pixel two by two, a white pixel between neighbours and none around."""
    tiles = grey_levels(5, channels, 2, 3)
    canvas = np.full((3 * 5 - 1, 2 * 7 - 1, 3), 255)
    for k, tile in enumerate(tiles):
        rows, columns = slice(k // 2 * 5, k // 2 * 5 + 4), slice(k % 2 * 7, k % 2 * 7 + 6)
        canvas[rows, columns] = np.kron(tile, np.ones((2, 2))).transpose(1, 2, 0)
    picture = images.grid(torch.from_numpy(tiles), columns=2, scale=2)
    assert picture.dtype == np.uint8 and np.array_equal(picture, canvas)
    assert images.grid(torch.from_numpy(tiles), columns=5).shape == (2, 5 * 4 - 1, 3)
    images.write_png(tmp_path / "grid.png", picture)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "grid.png")), canvas)
