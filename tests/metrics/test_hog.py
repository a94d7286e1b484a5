"""Histograms of oriented gradients, and copies found by them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cdmem.data.subset import TrainingSet
from cdmem.errors import InputError
from cdmem.metrics.memorization.copy_detection import CopyDetection, HogFeatures, copy_similarity
from cdmem.metrics.whitebox.roc import separation
from support import make_training_set
from support.samples import measure

HOG = HogFeatures()


def smooth_images(n: int, seed: int, side: int = 32) -> torch.Tensor:
    """Photo-like: coarse noise, enlarged, with some grain."""
    generator = torch.Generator().manual_seed(seed)
    coarse = F.interpolate(torch.randn(n, 3, 6, 6, generator=generator), size=side, mode="bicubic")
    grain = torch.randn(n, 3, side, side, generator=generator)
    return (110 + 30 * coarse + 3 * grain).round().clamp(0, 255).to(torch.uint8)


def training_set(n: int = 60, held_out: int = 120, flip: bool = False) -> TrainingSet:
    images = smooth_images(n + held_out, 0)
    return make_training_set(images[:n], held_out=images[n:], flip=flip)


@pytest.mark.parametrize("angle", [0.0, 30.0, 90.0, 150.0])
def test_a_ramp_fills_the_bins_of_its_direction(angle):
    """Linear interpolation: a gradient at angle a shares its magnitude between the two nearest bin centres."""
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    a = math.radians(angle)
    # The square of a ramp: the square root that HOG takes is the ramp itself.
    ramp = 7 + (math.cos(a) * (x - 16) + math.sin(a) * (y - 16)) / 4
    image = ramp.square().round().to(torch.uint8).expand(1, 1, 32, 32)
    cell = HOG(image).reshape(8, 8, 8)[:, 3, 3]
    position = angle / 180 * 8 - 0.5
    low, share = math.floor(position) % 8, position - math.floor(position)
    expected = torch.zeros(8)
    expected[low], expected[(low + 1) % 8] = 1 - share, share
    # Grey levels are rounded, which turns gradients a little.
    torch.testing.assert_close(cell / cell.sum(), expected, atol=0.12, rtol=0)


def test_shapes_cells_and_length():
    assert HOG(smooth_images(3, 1)).shape == (3, 512)
    assert HOG(smooth_images(3, 1, 8)).shape == (3, 128)
    assert HOG(smooth_images(3, 1, 18)).shape == (3, 8 * 25)
    torch.testing.assert_close(HOG(smooth_images(3, 1)).norm(dim=1), torch.ones(3))
    assert HOG(torch.full((1, 1, 8, 8), 77, dtype=torch.uint8)).abs().max() == 0
    images = smooth_images(9, 2)
    assert torch.equal(HOG(images), torch.cat([HOG(one[None]) for one in images]))


def test_brighter_copies_are_found():
    t = training_set()
    brighter = (t.images * 1.3).round().clamp(0, 255).to(torch.uint8)
    train = HOG(t.images)
    found, control = (copy_similarity(HOG(images), train) for images in (brighter, t.held_out_images))
    assert separation(found.numpy(), control.numpy()).auc.value > 0.98


def test_similarity_by_hand():
    train = torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.0, 5.0]])
    value = copy_similarity(torch.tensor([[3.0, 0.0], [0.0, 1.0], [0.0, 0.0], [1.0, 1.0]]), train)
    assert value.tolist() == pytest.approx([1, 1, 0, math.sqrt(0.5)])
    rows, queries = torch.randn(2, 50, 6, generator=torch.Generator().manual_seed(0))
    whole, parts = copy_similarity(queries, rows), copy_similarity(queries, rows, block=7)
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-14)
    with pytest.raises(InputError, match="one extractor"):
        copy_similarity(torch.ones(1, 3), train)


def detect(t, images, features: nn.Module | None = None) -> dict[str, float]:
    return measure(CopyDetection(features).prepare(t), images)


def test_detection_counts_copies_and_agrees_with_pixels():
    t = training_set()
    brighter = (t.images[:30] * 1.3).round().clamp(0, 255).to(torch.uint8)
    found = detect(t, torch.cat([t.images[:20], brighter, smooth_images(50, 5)]))
    assert 0.5 <= found["copied"] <= 0.54 and found["copied_low"] < found["copied"] < found["copied_high"]
    assert found["rate_bound"] == pytest.approx(1 / 121) and found["heldout_rate"] == 0
    # The exact copies by both tests, the bright ones by HOG at least.
    assert found["both"] >= 0.2 and found["only_pixels"] == 0
    assert found["both"] + found["only_features"] + found["only_pixels"] + found["neither"] == pytest.approx(1)


def test_held_out_images_are_found_as_rarely_as_promised():
    images = smooth_images(460, 0)
    found = detect(make_training_set(images[:60], held_out=images[60:260]), images[260:])
    assert found["rate_bound"] == pytest.approx(2 / 201) and found["copied"] < 0.05
    assert found["similarity_median"] == pytest.approx(found["heldout_similarity_median"], abs=0.02)


def test_mirrored_copies_are_found_where_training_mirrors():
    t = training_set()
    assert detect(t, t.images.flip(-1))["copied"] < 0.1
    assert detect(training_set(flip=True), t.images.flip(-1))["copied"] == 1


def test_any_extractor_and_few_held_out_images():
    class Means(nn.Module):
        def forward(self, images):
            return F.adaptive_avg_pool2d(images.float(), 4).flatten(1)

    t, samples = training_set(held_out=10), training_set().images[:4]
    found = detect(t, samples // 2 + 30, Means())
    sides = [
        copy_similarity(Means()(side), Means()(t.images)).numpy() for side in (samples // 2 + 30, t.held_out_images)
    ]
    assert [found[key] for key in ("similarity_median", "heldout_similarity_median")] == [np.median(s) for s in sides]
    found = detect(training_set(held_out=9), training_set().images, Means())
    assert found["copied"] == 1 and found["rate_bound"] == pytest.approx(0.1)
    # Two of 199 would be more than 1 %.
    assert detect(training_set(held_out=198), training_set().images, Means())["rate_bound"] == pytest.approx(1 / 199)
    with pytest.raises(InputError, match="held-out"):
        detect(training_set(held_out=0), training_set().images)
