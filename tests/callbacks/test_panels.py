"""Pictures drawn from triples whose content is known, and the files of a small run."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from callbacks.panels import (
    FRAME,
    STRIP,
    Triples,
    curves_panel,
    nearest_of_group,
    neighbor_panel,
    pairs_panel,
    table_rows,
    triples,
)
from cdmem.metrics.memorization.fraction import CDF_GRID
from cdmem.metrics.neighbors.index import GroupIndex
from support import make_training_set, random_images

VERMILLION = np.array((213, 94, 0), np.uint8)


def rows_of(samples: torch.Tensor, search: GroupIndex) -> dict[str, torch.Tensor]:
    found, seeds = search.query(samples, 2), torch.arange(len(samples))
    return {"seeds": seeds, "images": samples, "squared": found.squared, "groups": found.groups}


@pytest.mark.parametrize(("channels", "size"), [(1, 8), (3, 32), (3, 40)])
def test_only_memorised_samples_are_framed_and_they_come_first(channels, size):
    t = random_images(6, (channels, size, size))
    samples = torch.cat([random_images(3, (channels, size, size), seed=1), t[4:5]])
    found = triples(rows_of(samples, search := GroupIndex(make_training_set(t))), search, 1 / 3, 4)
    assert found.hit.tolist() == [True, False, False, False]
    assert found.seeds[0] == 3 and found.row1[0] == 4 and found.ratio[0] == 0
    assert torch.equal(found.nearest[0], t[4]) and (found.ratio.diff() >= 0).all()
    picture = neighbor_panel(found, columns=4)
    framed = (picture == VERMILLION).all(-1)
    assert framed[STRIP, 1] and framed[STRIP : STRIP + FRAME, 1:20].all()
    assert not framed[:, picture.shape[1] // 4 :].any()
    # The sample's first pixel lies just inside the frame, and below it its nearest image's.
    inside = picture[STRIP + FRAME, 1 + FRAME]
    assert (inside == samples[3, :, 0, 0].expand(3).numpy()).all()


def test_a_mirrored_copy_is_shown_mirrored():
    t = random_images(5, (1, 8, 8))
    search = GroupIndex(make_training_set(t, flip=True))
    row, shown = nearest_of_group(t[2].flip(-1), int(search.index.row_groups[2]), search)
    assert row == 2 and torch.equal(shown, t[2].flip(-1))
    assert torch.equal(nearest_of_group(t[2], int(search.index.row_groups[2]), search)[1], t[2])


def test_table_rows_are_plain_numbers_and_colour_pictures():
    t = random_images(5, (1, 8, 8))
    search = GroupIndex(make_training_set(t))
    found: Triples = triples(rows_of(t[:3], search), search, 1 / 3, 2)
    row = table_rows(found)[0]
    assert [type(v) for v in row[:3]] == [int, float, bool] and len(table_rows(found)) == 2
    assert row[3].shape == (8, 8, 3) and row[3].dtype == np.uint8 and (row[3] == row[4]).all()


@pytest.mark.parametrize("columns", [4, 16])
def test_each_image_stands_above_its_partner(columns):
    above, below = random_images(5, (1, 8, 8)), random_images(5, (1, 8, 8), seed=1)
    picture, cell = pairs_panel(above, below, columns), 4 * 8 + 1  # magnified to 32 pixels, one of white between
    wide, tall = min(columns, 5), -(-5 // columns)
    assert picture.shape == (2 * tall * cell - 1, wide * cell - 1, 3)
    for k in range(wide * tall):
        for row, images in enumerate((above, below)):
            corner = picture[(2 * (k // wide) + row) * cell, (k % wide) * cell]
            assert (corner == (images[k, 0, 0, 0].item() if k < 5 else 255)).all()


def test_curves_have_content():
    multiplicities = [{"copies": 1, "groups": 4, "p_hit": 0.5, "ci95": [0.2, 0.8]}]
    curves = curves_panel(CDF_GRID, 1 / 3, multiplicities)
    assert (curves == VERMILLION).all(-1).any()
