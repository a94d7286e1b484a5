"""Authenticity: hand values, closed forms, repeated and mirrored rows, and the distances it shares with others."""

from __future__ import annotations

import math

import pytest
import torch

from cdmem.data.subset import first_rows
from cdmem.errors import InputError
from cdmem.metrics.memorization.authenticity import Authenticity, authentic
from cdmem.metrics.quality.feature_space import content_groups, nearest, squared_blocks
from cdmem.metrics.statistics import wilson_interval
from support.samples import images, measure, normal, training_set


def share_of(*sides):
    return float(authentic(*sides).double().mean())


def test_four_points_by_hand():
    train = torch.tensor([[0.0], [1.0], [4.0], [10.0]])  # to the nearest other: 1, 1, 3, 6
    samples = torch.tensor([[-0.5], [-1.0], [-1.5], [6.5], [7.5], [16.0], [16.5], [4.0]])
    #     nearest, distance: 0 .5     0 1      0 1.5    4 2.5    10 2.5   10 6     10 6.5    4 0
    assert authentic(samples, train).tolist() == [False, False, True, False, False, False, True, False]
    assert share_of(samples, train) == 2 / 8


def test_copies_and_far_samples():
    train = normal(80, 12, 0)
    assert share_of(train, train) == 0.0
    assert share_of(train + 1e-9 * normal(80, 12, 1), train) == 0.0
    assert share_of(train + 100, train) == 1.0


def test_one_third_on_a_line():
    # Fresh x and its nearest y are mutual nearest neighbours among T and x with probability 2/3 in one dimension.
    shares = [share_of(normal(200, 1, 2 * k), normal(2000, 1, 2 * k + 1)) for k in range(40)]
    assert sum(shares) / len(shares) == pytest.approx(1 / 3, abs=0.02)


@pytest.mark.parametrize("copies", [1, 2, 6, 60])
def test_repeated_rows_change_nothing(copies):
    train, fresh = normal(50, 20, 3), normal(30, 20, 4)
    samples = torch.cat([fresh, train[:20] + 0.05 * normal(20, 20, 5)])
    expected = authentic(samples, train)
    assert not expected[30:].any() and expected[:30].any()
    assert torch.equal(authentic(samples, train.repeat_interleave(copies, 0)), expected)
    assert torch.equal(authentic(samples, train.repeat(copies, 1)), expected)


def test_rows_of_a_group_are_one_image():
    train, samples = torch.tensor([[0.0], [1.0], [5.0]]), torch.tensor([[-2.0]])
    assert share_of(samples, train) == 1.0
    assert share_of(samples, train, torch.tensor([0, 0, 1])) == 0.0
    with pytest.raises(InputError):
        share_of(samples, train, torch.tensor([3, 3, 3]))


def test_metric_reads_the_control_beside_the_samples():
    train, held_out = images(30, 0), images(40, 1)
    samples = torch.cat([train[:5], images(15, 2)])
    found = measure(Authenticity().prepare(training_set(train, held_out, copies=6)), samples)
    pixels = [side.flatten(1).double() for side in (samples, held_out, train)]
    expected, control = share_of(pixels[0], pixels[2]), share_of(pixels[1], pixels[2])
    assert found["authenticity"] == expected <= 15 / 20 and found["authenticity_heldout"] == control
    low, high = wilson_interval(round(20 * expected), 20)
    assert (found["authenticity_low"], found["authenticity_high"]) == (low, high)
    assert set(measure(Authenticity().prepare(training_set(train, held_out[:0])), samples)) == {
        "authenticity",
        "authenticity_low",
        "authenticity_high",
    }


@pytest.mark.parametrize("flip", [False, True])
def test_mirrored_copies_are_authentic_only_without_flips(flip):
    train = images(30, 3)
    metric = Authenticity().prepare(training_set(train, train[:0], flip=flip))
    found = measure(metric, train.flip(-1))["authenticity"]
    assert found == 0.0 if flip else found > 0.5
    # The mirror image must not become the other image, which would make noisy copies authentic.
    symmetric = torch.cat([train, train.flip(-1)], -1)
    noisy = (symmetric.int() + (torch.arange(8) % 2)).clamp(0, 255).to(torch.uint8)
    metric = Authenticity().prepare(training_set(symmetric, train[:0], flip=flip))
    assert measure(metric, noisy)["authenticity"] == 0.0


def test_features_are_used_and_stay_out_of_checkpoints():
    mean = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 1).requires_grad_(False))
    module = torch.nn.Sequential(AsFloat(), mean)
    metric = Authenticity(module).prepare(training_set(images(30, 7), images(5, 8)))
    samples = images(20, 9)
    assert measure(metric, samples)["authenticity"] == share_of(module(samples), module(images(30, 7)))
    assert not metric.state_dict() and not list(metric.parameters())


class AsFloat(torch.nn.Module):
    def forward(self, x):
        return x.float()


def test_distances_against_differences_in_blocks(monkeypatch):
    a, b = normal(23, 9, 10) + 1e4, normal(31, 9, 11) + 1e4
    a[:4] = b[3:7]
    a[4] = b[9] + 1e-7
    expected = (a[:, None] - b).square().sum(2)
    for entries in (2**22, 64, 1):
        monkeypatch.setattr("cdmem.metrics.quality.feature_space.TABLE_ENTRIES", entries)
        parts = list(squared_blocks(a, b))
        table = torch.cat([part for _, part in parts])
        assert torch.allclose(table, expected, rtol=1e-6, atol=0)
        assert (table == 0).sum() == 4 and torch.equal(table[4, 9], expected[4, 9])
        distance, index = nearest(a, b)
        assert torch.equal(distance.square() == 0, expected.amin(1) == 0)
        assert torch.equal(index, expected.argmin(1)) and torch.allclose(distance, expected.amin(1).sqrt())
    groups = torch.arange(31) % 2
    distance, index = nearest(a, b, torch.zeros(23, dtype=torch.int64), groups)
    assert (index % 2 == 1).all() and torch.allclose(distance, expected[:, 1::2].amin(1).sqrt())
    assert math.isinf(nearest(a[:1], b, torch.tensor([5]), torch.full((31,), 5))[0])


def test_groups_by_content():
    rows = torch.tensor([[1.0, 0.0], [2.0, 0.0], [1.0, -0.0], [2.0, 0.0]])
    assert content_groups(rows).tolist() == [0, 1, 0, 1]
    assert first_rows(torch.tensor([5, 2, 2, 5])).tolist() == [1, 0]
