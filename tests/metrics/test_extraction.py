"""Carlini's extraction tests by hand and by brute force, and the exact false-positive rate of a held-out threshold."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from cdmem.errors import InputError
from cdmem.metrics.memorization.extraction import (
    AbsoluteExtraction,
    AdaptiveExtraction,
    absolute_distance,
    adaptive_score,
    conformal_threshold,
)
from cdmem.metrics.statistics import conformal_p_values, wilson_interval
from support import make_training_set, random_images
from support.samples import flat


def measure(metric, train, samples, **options):
    metric.prepare(make_training_set(train, **options)).update(samples, torch.arange(len(samples)))
    return metric.compute()


def noisy_copies(train, level, seed=5):
    noise = torch.randn(train.shape, generator=torch.Generator().manual_seed(seed)) * level
    return (train + noise).round().clamp(0, 255).to(torch.uint8)


# ---- absolute -------------------------------------------------------------------------------------------------------


def test_absolute_distance_by_hand():
    """51 of 255 levels in each of 12 values is 0.2; 255 in 3 of 12 is 1/2."""
    squared = torch.tensor([0, 12 * 51**2, 3 * 255**2, 12 * 255**2])
    assert absolute_distance(squared, 12).tolist() == pytest.approx([0, 0.2, 0.5, 1], abs=1e-15)


def test_absolute_extraction_by_hand():
    """20, 30 and 0 levels off, of 255: 0.078, 0.118, 0; and 60 levels off."""
    found = measure(AbsoluteExtraction(0.1), flat(0, 100, 250), flat(20, 130, 250, 160))
    assert found["extracted"] == 2 / 4
    assert (found["extracted_low"], found["extracted_high"]) == wilson_interval(2, 4)
    assert found["median_distance"] == pytest.approx((20 + 30) / 2 / 255)
    assert measure(AbsoluteExtraction(0.12), flat(0, 100, 250), flat(20, 130, 250, 160))["extracted"] == 3 / 4


def test_absolute_distance_is_the_root_mean_square_of_the_images():
    train, samples = random_images(20, seed=1), random_images(9, seed=2)
    gaps = (samples[:, None].double() - train[None].double()).div(255).flatten(2)
    rms = gaps.square().mean(2).sqrt().amin(1)
    found = measure(AbsoluteExtraction(0.3), train, samples)
    assert found["median_distance"] == pytest.approx(np.median(rms), rel=1e-12)


@pytest.mark.parametrize("delta", [0, 1, -0.1, math.nan])
def test_absolute_extraction_refuses(delta):
    with pytest.raises(InputError):
        AbsoluteExtraction(delta)


# ---- adaptive -------------------------------------------------------------------------------------------------------


def test_adaptive_score_by_hand():
    """Distances 3, 5, 10: mean 6, half of it 3, so exactly 1 (not extracted); 2, 5, 11 likewise below; a copy is 0."""
    squared = torch.tensor([[9, 25, 100], [4, 25, 121], [0, 25, 100]])
    assert adaptive_score(squared).tolist() == pytest.approx([1.0, 2 / 3, 0.0], abs=1e-15)
    assert adaptive_score(squared, 0.25).tolist() == pytest.approx([2.0, 4 / 3, 0.0], abs=1e-15)


def test_adaptive_extraction_by_hand():
    """Three nearest of 4 images; 20: 20, 20, 80 -> 20 / 20 = 1, not below; 10: 10, 30, 90 -> 10 / 21.7."""
    train = flat(0, 40, 100, 250)
    found = measure(AdaptiveExtraction(0.5, 3), train, flat(20, 10, 40))
    assert found["extracted"] == 2 / 3 and found["median_score"] == pytest.approx(10 / (0.5 * 130 / 3))
    assert (found["extracted_low"], found["extracted_high"]) == wilson_interval(2, 3)


def test_adaptive_score_is_that_of_brute_force():
    train, samples = random_images(70, seed=3), random_images(30, seed=4)
    samples[:10] = noisy_copies(train[:10], 20)
    gaps = samples[:, None].to(torch.int64) - train[None].to(torch.int64)
    near = gaps.square().flatten(2).sum(2).sort(1).values[:, :50].double().sqrt()
    want = near[:, 0] / (0.5 * near.mean(1))
    metric = AdaptiveExtraction().prepare(make_training_set(train))
    metric.update(samples, torch.arange(30))
    assert adaptive_score(metric.rows()["squared"]).tolist() == pytest.approx(want.tolist(), rel=1e-12)
    assert metric.compute()["extracted"] == float((want < 1).double().mean()) > 0


def test_repeated_rows_change_nothing():
    """60 copies of every image: the surroundings of a copy are other images, not its own repetitions."""
    train = random_images(51, seed=6)
    samples = torch.cat([noisy_copies(train[:20], 2.5), random_images(10, seed=7)])
    once = measure(AdaptiveExtraction(), train, samples)
    assert once["extracted"] == 20 / 30
    assert measure(AdaptiveExtraction(), train.repeat(60, 1, 1, 1), samples) == once
    assert measure(AdaptiveExtraction(), train, samples, copies=torch.full((51,), 60)) == once


@pytest.mark.parametrize("groups", [2, 49, 50])
def test_surroundings_need_more_images_than_neighbours(groups):
    train = random_images(groups, seed=8).repeat(2, 1, 1, 1)
    with pytest.raises(InputError, match=rf"training_set={groups}: .*50 neighbours.*lower neighbors"):
        AdaptiveExtraction().prepare(make_training_set(train))
    AdaptiveExtraction().prepare(make_training_set(random_images(51, seed=8)))


@pytest.mark.parametrize(("alpha", "neighbors"), [(0, 50), (1.1, 50), (math.nan, 50), (0.5, 1)])
def test_adaptive_extraction_refuses(alpha, neighbors):
    with pytest.raises(InputError):
        AdaptiveExtraction(alpha, neighbors)


# ---- held-out threshold ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.01, 0.05, 0.29, 0.5])
@pytest.mark.parametrize("h", [1, 18, 19, 98, 99, 100])
def test_threshold_has_the_exact_false_positive_rate(alpha, h):
    """Of h + 1 exchangeable images let each in turn be the fresh one: floor(alpha (h + 1)) of them pass, none more."""
    scores = torch.from_numpy(np.random.default_rng(h).random(h + 1))
    passed = 0
    for k in range(h + 1):
        threshold = conformal_threshold(torch.cat([scores[:k], scores[k + 1 :]]), alpha)
        assert (threshold is None) == (round(alpha * 100) * (h + 1) < 100)
        passed += threshold is not None and bool(scores[k] < threshold)
    assert passed == round(alpha * 100) * (h + 1) // 100


def test_ties_only_lower_the_false_positive_rate():
    scores = torch.from_numpy(np.random.default_rng(0).integers(0, 12, 100) / 12)
    passed = [
        bool(s < conformal_threshold(torch.cat([scores[:k], scores[k + 1 :]]), 0.2)) for k, s in enumerate(scores)
    ]
    assert 0 < sum(passed) <= 20


def test_threshold_says_what_p_values_say():
    rng = np.random.default_rng(1)
    control, scores = rng.random(99), np.concatenate([rng.random(500), [0.0, 1.0]])
    for alpha in (0.01, 0.1, 0.37):
        threshold = conformal_threshold(torch.from_numpy(control), alpha)
        assert ((scores < threshold) == (conformal_p_values(scores, control) <= alpha + 1e-12)).all()
