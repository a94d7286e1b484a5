"""Precision, recall, density and coverage: hand-computed grids, an independent brute force, repeated rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cdmem.errors import InputError
from cdmem.metrics.quality import feature_space
from cdmem.metrics.quality.prdc import ManifoldQuality, precision_recall_density_coverage
from support import random_images
from support.samples import measure, normal, training_set


def line(*points):
    return torch.tensor(points, dtype=torch.float64)[:, None]


def shares(precision, recall, density, coverage):
    return {"precision": precision, "recall": recall, "density": density, "coverage": coverage}


def brute_force(real, fake, k):
    """The definitions, pair by pair, in numpy."""

    def distance(a, b):
        return np.sqrt(((a[:, None, :] - b[None, :, :]) ** 2).sum(-1))

    real, fake = real.numpy(), fake.numpy()
    real_radii = np.sort(distance(real, real), 1)[:, k]  # column 0 is the point itself
    fake_radii = np.sort(distance(fake, fake), 1)[:, k]
    table = distance(real, fake)
    inside = table < real_radii[:, None]
    recall = (table < fake_radii[None]).any(1).mean()
    return shares(inside.any(0).mean(), recall, inside.sum(0).mean() / k, inside.any(1).mean())


def test_grid_by_hand():
    # Balls of radius 1 around 0, 1, 2, 3 (k = 1), of radius 1 around 0.5, 1.5 and 2.5 around 4.
    found = precision_recall_density_coverage(line(0, 1, 2, 3), line(0.5, 1.5, 4), k=1)
    # 0.5 is in the balls of 0 and 1, 1.5 in those of 1 and 2, 4 lies on the boundary of 3's.
    assert found == pytest.approx(shares(2 / 3, 1, 4 / 3, 3 / 4))


def test_boundaries_are_outside():
    real = line(0, 1, 2, 3)
    # No real ball holds a fake; the fake at -1 reaches to 4, past every real point.
    assert precision_recall_density_coverage(real, line(-1, 4, 5), k=1) == pytest.approx(shares(0, 1, 0, 0))


def test_exact_copies_by_hand():
    # Every ball (k = 1) of an exact copy holds its own centre alone.
    x = line(0, 1, 2, 3, 4)
    assert precision_recall_density_coverage(x, x, k=1) == pytest.approx(shares(1, 1, 1, 1))
    # k = 2: the two ends reach to distance 2 and hold two points, the others reach to 1 and hold themselves.
    assert precision_recall_density_coverage(x, x, k=2) == pytest.approx(shares(1, 1, 7 / 10, 1))


def test_far_samples_have_none():
    x = normal(20, 4, 0)
    assert precision_recall_density_coverage(x, x + 100, k=3) == shares(0, 0, 0, 0)


@pytest.mark.parametrize("n, m, d, k", [(40, 30, 2, 1), (30, 40, 8, 3), (100, 100, 3, 5), (6, 6, 20, 5)])
def test_equals_brute_force(n, m, d, k):
    real, fake = normal(n, d, 1), normal(m, d, 2) * 0.9 + 0.2
    assert precision_recall_density_coverage(real, fake, k) == pytest.approx(brute_force(real, fake, k), rel=1e-12)


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("seed", range(6))
def test_equals_brute_force_where_points_tie_with_radii(seed, k):
    """Whole numbers: differences are exact, products about a mean of 37 or 35 points are not."""
    draw = torch.Generator().manual_seed(seed)
    real, fake = (torch.randint(0, 7, (n, 2), generator=draw).double() for n in (50, 35))
    real = torch.unique(real, dim=0)[:37]
    assert precision_recall_density_coverage(real, fake, k) == pytest.approx(brute_force(real, fake, k), rel=1e-12)


@pytest.mark.parametrize("seed", range(8))
def test_a_radius_is_exact_among_neighbours_that_products_confuse(seed):
    """From the origin one point is at S = 2^52 squared and four at S + 1, less than rounding; two others, also at S,
    lie on the boundary of its ball, which is outside."""
    signs = torch.randint(0, 2, (7, 64), generator=torch.Generator().manual_seed(seed)).double() * 2 - 1
    corners = torch.cat([2.0**23 * signs, torch.tensor([[0.0, 1, 1, 1, 1, 0, 0]]).T], 1)
    ball, outside = torch.cat([torch.zeros(1, 65), corners[:5]]), corners[5:]
    assert precision_recall_density_coverage(ball, outside, 1)["precision"] == 0
    assert precision_recall_density_coverage(outside, ball, 1)["recall"] == 0


@pytest.mark.parametrize("copies", [1, 2, 6, 60])
def test_repeated_real_rows_change_nothing(copies):
    real, fake = normal(30, 5, 4), normal(40, 5, 5)
    want = precision_recall_density_coverage(real, fake)
    assert precision_recall_density_coverage(real.repeat(copies, 1), fake) == want
    assert precision_recall_density_coverage(real.repeat_interleave(copies, 0), fake) == want


def test_blocks_do_not_matter(monkeypatch):
    real, fake = normal(50, 5, 6), normal(60, 5, 7)
    want = precision_recall_density_coverage(real, fake)
    monkeypatch.setattr(feature_space, "TABLE_ENTRIES", 170)
    assert precision_recall_density_coverage(real, fake) == want


@pytest.mark.parametrize("n, m, side", [(5, 9, "real"), (9, 5, "generated"), (5, 20, "real")])
def test_too_few_points_are_refused(n, m, side):
    with pytest.raises(InputError, match=f"more than 5 {side} images"):
        precision_recall_density_coverage(normal(n, 2, 8).repeat(max(m // n, 1), 1), normal(m, 2, 9))


def images(n, seed):
    return random_images(n, (1, 4, 4), seed)


def metric_of(train, held_out, copies=1, flip=False, k=5):
    return ManifoldQuality(k=k).prepare(training_set(train, held_out, flip=flip, copies=copies))


def test_metric_compares_equal_sizes():
    samples, held_out = images(40, 1), images(12, 2)
    found = measure(metric_of(images(30, 3), held_out), samples)
    want = precision_recall_density_coverage(*(to.flatten(1).double() for to in (held_out, samples[:12])))
    assert {name: found[name] for name in want} == want
    assert len(found) == 8
    swapped = measure(metric_of(held_out, images(30, 3)), samples)
    assert {name: swapped[f"{name}_train"] for name in want} == want


@pytest.mark.parametrize("flip", [False, True])
def test_mirror_images_belong_to_the_training_set(flip):
    train = images(20, 7)
    found = measure(metric_of(train, images(3, 8), flip=flip, k=1), torch.cat([train.flip(-1), train]))
    # Without mirroring the twenty first samples are compared, which are all mirror images.
    assert (found["precision_train"] == found["coverage_train"] == 1) is flip


def test_metric_refuses_too_few():
    with pytest.raises(InputError, match="k=0"):
        ManifoldQuality(k=0)
    with pytest.raises(InputError, match="at least 6"):
        measure(metric_of(images(20, 9), images(20, 10)), images(5, 11))


@pytest.mark.parametrize("held_out", [5, 6])
def test_held_out_images_are_left_out_unless_there_are_more_than_k(held_out):
    found = measure(metric_of(images(20, 9), images(held_out, 10)), images(9, 11))
    assert len(found) == (8 if held_out > 5 else 4)
