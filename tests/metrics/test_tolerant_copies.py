"""Copies by the tolerant search: which samples count, what stands beside them, and when there is no such number."""

from __future__ import annotations

import pytest
import torch

from cdmem.audit.settings import AuditSettings
from cdmem.audit.suite import measure as audited
from cdmem.audit.suite import prepared
from cdmem.errors import InputError
from cdmem.metrics.memorization.extraction import conformal_threshold
from cdmem.metrics.memorization.fraction import MemorizedFraction, disk_rows
from cdmem.metrics.memorization.tolerant import TolerantCopies
from cdmem.metrics.statistics import wilson_interval
from support import make_training_set, rng
from support.samples import measure, photos

SHAPE = (3, 12, 12)
T, H, NEW = photos(50, 0, SHAPE), photos(300, 1, SHAPE), photos(200, 2, SHAPE)


def training_set(held_out=H, **options):
    return make_training_set(T, held_out=held_out, **options)


def noisy(images, sd=3, seed=0):
    return (images + sd * torch.randn(images.shape, generator=rng(seed))).round().clamp(0, 255).byte()


@pytest.mark.parametrize("damage", ["mirrored", "moved", "brighter", "noise"])
def test_damage_to_half_of_the_copies_takes_no_copy_away(damage):
    """The strict ratio loses that half; images that nobody trained on stay new under both."""
    half = T[:25].float()
    half = {
        "mirrored": half.flip(-1),
        "moved": half.roll((1, 2), (-2, -1)),
        "brighter": half * 0.8 + 40,
        "noise": noisy(half, 25).float(),
    }[damage]
    samples = torch.cat([noisy(T[25:]), noisy(half, seed=1), NEW[:50]])
    found = measure(TolerantCopies().prepare(training_set()), samples)
    assert found["copied"] == pytest.approx(0.5, abs=0.02)
    assert (found["copied_low"], found["copied_high"]) == wilson_interval(round(100 * found["copied"]), 100)
    assert found["both"] == pytest.approx(0.25, abs=0.02) and found["only_tolerant"] == pytest.approx(0.25, abs=0.02)
    assert found["both"] + found["only_tolerant"] + found["neither"] == pytest.approx(1) and found["only_strict"] == 0
    assert found["compared"] == 50


def test_forgetting_stays_forgetting():
    """New images, and even blends of two training images, in place of half of the copies."""
    for other in (NEW[:25], noisy(0.5 * T[:25] + 0.5 * T[1:26], 1)):
        found = measure(TolerantCopies().prepare(training_set()), torch.cat([noisy(T[25:]), other]))
        assert found["copied"] == pytest.approx(0.5, abs=0.04)


def test_every_strict_copy_is_a_tolerant_one():
    """Also a copy of a flat image, which the tolerant search finds nowhere."""
    flat = torch.full((1, *SHAPE), 20, dtype=torch.uint8)
    t = make_training_set(torch.cat([T, flat]), held_out=H)
    metric, samples = TolerantCopies().prepare(t), torch.cat([T, flat, noisy(T, 8), NEW])
    metric.update(samples, torch.arange(len(samples)))
    rows = metric.rows()
    assert rows["tolerant_ratio"][50] == 1 and bool(metric.copies(rows)[50])
    strict = MemorizedFraction().prepare(t)
    strict.update(samples, torch.arange(len(samples)))
    hits = strict.hits(strict.rows())
    assert hits.sum() > 60 and torch.equal(hits & metric.copies(rows), hits)
    # A looser strict threshold finds more, and so does the tolerant test then.
    loose = TolerantCopies(threshold=0.9).prepare(t)
    assert bool(loose.copies(rows)[loose.hits(rows)].all()) and loose.copies(rows).sum() > metric.copies(rows).sum()


def test_the_rows_go_to_disk_beside_the_strict_ones():
    metric = TolerantCopies().prepare(training_set())
    metric.update(T.flip(-1), torch.arange(50) + 7)
    stored = disk_rows(metric.rows())
    assert list(stored) == ["seeds", "squared1", "squared2", "group1", "tolerant_ratio", "tolerant_group"]
    assert stored["tolerant_ratio"].dtype == "float64" and stored["tolerant_group"].tolist() == list(range(50))


def test_the_threshold_and_rate_are_those_of_the_held_out_images():
    metric = TolerantCopies().prepare(training_set())
    found, ratios = measure(metric, NEW), metric.tolerant.control.ratio
    assert found["threshold"] == conformal_threshold(ratios, 0.01) == ratios.sort().values[2]
    assert found["heldout_rate"] == pytest.approx(2 / 300)
    assert found["copied"] < 0.04
    # What the strict ratio finds among them counts too, which is much under a careless threshold.
    careless = measure(TolerantCopies(threshold=1.0).prepare(training_set()), NEW)
    assert careless["heldout_rate"] == careless["copied"] == 1


def test_held_out_images_as_samples_read_the_held_out_rate():
    metric = TolerantCopies().prepare(training_set())
    assert measure(metric, H)["copied"] == metric.heldout_rate


def test_mirror_images_belong_to_their_image_where_training_mirrors():
    for flip in (False, True):
        t = make_training_set(T, held_out=H, flip=flip)
        found = measure(TolerantCopies().prepare(t), torch.cat([T.flip(-1), NEW[:50]]))
        assert found["copied"] == pytest.approx(0.5, abs=0.02)
        assert found["both"] == pytest.approx(0.5 if flip else 0, abs=0.02)


def test_below_99_held_out_images_there_is_none():
    with pytest.raises(InputError, match=r"data.held_out=98: a threshold of 1 % for tolerant copies .* use 99 or more"):
        TolerantCopies().prepare(training_set(H[:98]))
    suite = prepared(AuditSettings(metrics=["memorization"]), [], training_set(H[:98]))
    assert "99 held-out images" in audited(suite, T, torch.arange(50))["tolerant_copies"]["unavailable"]
    found = measure(TolerantCopies().prepare(training_set(H[:99])), T)
    assert found["copied"] == 1 and found["heldout_rate"] == 0
