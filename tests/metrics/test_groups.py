"""Near-duplicates by the gap rule: pairs and larger families, and what must not be joined."""

from __future__ import annotations

import pytest
import torch

from cdmem.errors import InputError
from cdmem.metrics.memorization.ratio import ratios
from cdmem.metrics.neighbors.near_duplicates import near_duplicate_labels
from cdmem.metrics.neighbors.pixels import NeighborIndex
from support.samples import images


def photos(n, seed):
    return images(n, seed, (3, 12, 12))


def noisy(image, count, seed):
    noise = torch.randint(-6, 7, (count, *image.shape), generator=torch.Generator().manual_seed(seed))
    return (image.int() + noise).clamp(0, 255).to(torch.uint8)


def test_unrelated_images_stay_apart():
    """Distances of unrelated images concentrate, so no gap of a factor of two arises."""
    labels, merged = near_duplicate_labels(photos(200, 0))
    assert merged == 0 and labels.tolist() == list(range(200))


@pytest.mark.parametrize("family", [1, 2, 5, 8])
def test_families_of_up_to_nine_are_found(family):
    """With two or more near-copies the first two distances are alike: d1 / d2 alone would join nothing."""
    base = photos(50, 1)
    copies = noisy(base[7], family, 2)
    labels, merged = near_duplicate_labels(torch.cat([base, copies]))
    assert merged == family
    assert set(labels[50:].tolist()) == {7} and labels[:50].tolist() == list(range(50))


def test_larger_families_stay_apart_as_documented():
    base = photos(50, 1)
    assert near_duplicate_labels(torch.cat([base, noisy(base[7], 12, 2)]))[1] == 0


def test_exact_duplicates_and_mirror_images_are_one_image_before():
    base = photos(20, 3)
    rows = torch.cat([base, base[:4], noisy(base[5].flip(-1), 1, 4)])
    labels, merged = near_duplicate_labels(rows)
    assert labels[20:24].tolist() == [0, 1, 2, 3] and merged == 0
    labels, merged = near_duplicate_labels(rows, flip=True)
    assert merged == 1 and labels[24] == labels[5]


def test_labels_join_groups_in_the_index():
    base = photos(30, 5)
    images = torch.cat([base, noisy(base[3], 2, 6)])
    index = NeighborIndex(images, labels=near_duplicate_labels(images)[0])
    assert index.num_groups == 30
    answer = index.query(base[3:4])
    assert answer.squared1.item() == 0 and answer.group1.item() == 3
    # Ungrouped, a copy of a near-duplicated image has its twin as second neighbour, and slight noise hides it.
    sample = noisy(base[3], 1, 7)
    plain, grouped = (float(ratios(i.query(sample).squared)) for i in (NeighborIndex(images), index))
    assert plain > 1 / 3 > grouped


def test_the_ratio_decides():
    base = photos(40, 8)
    images = torch.cat([base, noisy(base[0], 1, 9)])
    d = float(ratios(NeighborIndex(images).query(images[:1], 2, exclude=torch.tensor([0])).squared))
    assert near_duplicate_labels(images, rule=d * 1.001)[1] == 1
    assert near_duplicate_labels(images, rule=d * 0.5)[1] == 0


@pytest.mark.parametrize("rule", [0.0, 1.0, -1.0, 2.0, "often"])
def test_impossible_rules(rule):
    with pytest.raises(InputError, match="near_duplicates"):
        near_duplicate_labels(photos(5, 0), rule=rule)


@pytest.mark.parametrize(("others", "merged"), [(0, 0), (1, 1)])
def test_a_pair_is_joined_where_there_is_a_third_image_to_compare_with(others, merged):
    base = photos(1 + others, 0)
    assert near_duplicate_labels(torch.cat([base, noisy(base[0], 1, 1)]))[1] == merged
