"""Hits per training image: estimators by hand, and bounds against copiers whose truth is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from cdmem.errors import InputError
from cdmem.metrics.memorization.coverage import (
    HitCoverage,
    chao1,
    coverage,
    hits_against_spacing,
    hits_by_multiplicity,
)
from cdmem.metrics.memorization.duplication import duplication_slope
from cdmem.metrics.statistics import wilson_interval
from support import make_training_set, random_images
from support.samples import flat, measure


def test_coverage_by_hand():
    found = coverage(torch.tensor([0, 1, 1, 1, 2, 5, 0, 0]))
    # S = 5, f1 = 3, f2 = 1, 10 memorised samples.
    entropy = -(3 * 0.1 * math.log(0.1) + 0.2 * math.log(0.2) + 0.5 * math.log(0.5))
    assert found["unique"] == 5 and found["unique_share"] == 5 / 8 and found["most_hits"] == 5
    assert found["chao1"] == 5 + 3 * 2 / (2 * 2)
    assert found["good_turing"] == pytest.approx(1 - 3 / 10, abs=1e-15)
    assert found["effective"] == pytest.approx(math.exp(entropy), rel=1e-12)


def test_chao_bound_by_hand():
    """The counts that scikit-bio's tests take from EstimateS: 9.75; S = 9, f1 = 3, f2 = 3, so 3 / 4 unseen."""
    found = coverage(torch.tensor([0, 1, 1, 4, 2, 5, 2, 4, 1, 2]))
    assert found["chao1"] == 9.75 and found["chao1_low"] == 9 and "chao1_high" not in found
    # f1 = 60, f2 = 0 of 4,000: 1770 unseen, variance 1770 + 60 119^2 / 4 + 60^2 59^2 / 4.
    few = torch.zeros(4000, dtype=torch.int64)
    few[:60] = 1
    variance = 1770 + 60 * 119**2 / 4 + 60**2 * 59**2 / 4
    low = 60 + 1770 / math.exp(1.6448536 * math.sqrt(math.log(1 + variance / 1770**2)))
    assert chao1(few) == (1830, math.floor(low))
    assert chao1(few[:100]) == (1830, 100)  # no more than there are
    # f1 = 7, f2 = 0: 21 unseen, variance 21 + 7 13^2 / 4 + 7^2 6^2 / 4 = 757.75, 21 / 5.18 = 4.05.
    assert chao1((torch.arange(40) < 7).long()) == (28, 11)
    # f1 = 200, f2 = 40: 485.4 unseen, variance 485 + 200 399^2 / (4 41^2) + 200^2 199^2 / (4 41^3), / 1.42 = 341.8.
    assert chao1(torch.tensor([1] * 200 + [2] * 40 + [0] * 900))[1] == 581


def test_coverage_of_nothing_and_of_one():
    nothing = coverage(torch.zeros(4, dtype=torch.int64))
    assert math.isnan(nothing.pop("good_turing")) and set(nothing.values()) == {0.0}
    one = coverage(torch.tensor([0, 9]))
    assert (one["unique"], one["chao1"], one["good_turing"], one["effective"]) == (1, 1, 1, 1)


# ---- duplication and isolation --------------------------------------------------------------------------------------


def test_hits_by_multiplicity_by_hand():
    table = hits_by_multiplicity(torch.tensor([0, 3, 1, 0, 0, 8]), torch.tensor([1, 4, 1, 1, 4, 2]), 20)
    assert [row["copies"] for row in table] == [1, 2, 4] and [row["groups"] for row in table] == [3, 1, 2]
    assert [row["p_hit"] for row in table] == [1 / 3, 1.0, 1 / 2]
    assert [row["hits_per_sample"] for row in table] == pytest.approx([1 / 60, 8 / 20, 3 / 40])
    assert [tuple(row["ci95"]) for row in table] == [
        wilson_interval(1, 3),
        wilson_interval(1, 1),
        wilson_interval(1, 2),
    ]


def test_isolation_is_spearmans():
    rng = np.random.default_rng(0)
    spacing = torch.from_numpy(rng.gamma(3.0, size=50))
    hits = torch.from_numpy(rng.poisson(spacing.numpy()))
    found = hits_against_spacing(hits, spacing)
    ranks = [stats.rankdata(v.numpy()) for v in (hits, spacing)]
    assert found["spearman"] == pytest.approx(np.corrcoef(*ranks)[0, 1], rel=1e-12)
    assert found["p_value"] == pytest.approx(stats.spearmanr(hits.numpy(), spacing.numpy()).pvalue, rel=1e-12)
    assert [b["groups"] for b in found["bins"]] == [13, 13, 12, 12]
    order = torch.argsort(spacing)
    assert found["bins"][0]["hits"] == pytest.approx(float(hits[order[:13]].double().mean()))
    assert found["bins"][3]["spacing"] == pytest.approx(float(spacing[order[-12:]].mean()))


def test_isolation_without_variation_is_unknown():
    for hits, spacing in (([2, 2, 2], [1.0, 2, 3]), ([1, 2, 3], [5.0, 5, 5])):
        found = hits_against_spacing(torch.tensor(hits), torch.tensor(spacing, dtype=torch.float64))
        assert found["spearman"] is None and found["p_value"] is None and len(found["bins"]) == 3
    two = hits_against_spacing(torch.tensor([0, 1, 1]), torch.tensor([2.0, 5.0, 5.0]))
    assert two["spearman"] == pytest.approx(1)


# ---- the metric -----------------------------------------------------------------------------------------------------


def test_metric_counts_the_images_that_came_back():
    train = random_images(6, seed=1)
    copies = torch.tensor([1, 1, 2, 2, 4, 4])
    metric = HitCoverage().prepare(make_training_set(train, copies))
    chosen = torch.tensor([0, 2, 2, 4, 4, 4, 4])
    samples = torch.cat([train[chosen], random_images(3, seed=2)])
    metric.update(samples, torch.arange(10))
    found, rows = metric.compute(), metric.rows()
    hits = torch.tensor([1, 0, 2, 0, 4, 0])
    assert torch.equal(metric.hits_by_group(rows), hits)
    assert found.items() >= coverage(hits).items()
    keys = ("duplication_slope", "duplication_slope_low", "duplication_slope_high")
    assert tuple(found[k] for k in keys) == duplication_slope(hits, copies)
    detail = metric.detail(rows)
    assert detail["top"] == [{"image": 4, "hits": 4}, {"image": 2, "hits": 2}, {"image": 0, "hits": 1}]
    assert detail["by_multiplicity"] == hits_by_multiplicity(hits, copies, 10)
    points = train.flatten(1).double()
    spacing = torch.cdist(points, points).fill_diagonal_(math.inf).amin(1)
    assert detail["by_spacing"]["spearman"] == pytest.approx(stats.spearmanr(hits, spacing).statistic, rel=1e-12)


def test_metric_without_duplication_has_no_slope():
    train = random_images(4, seed=1)
    found = measure(HitCoverage().prepare(make_training_set(train)), train)
    assert "duplication_slope" not in found and found["unique_share"] == 1.0


def test_metric_obeys_its_threshold():
    for threshold, unique in ((0.5, 1), (0.4, 0)):  # 30 / 70 = 0.43
        assert measure(HitCoverage(threshold).prepare(make_training_set(flat(0, 100))), flat(30))["unique"] == unique
    for bad in (0, 1.5, math.nan):
        with pytest.raises(InputError):
            HitCoverage(bad)


@pytest.mark.parametrize(("images", "m"), [(300, 400), (50, 200), (2000, 100), (10, 20)])
@pytest.mark.parametrize("shape", [None, 5.0, 1.0, 0.3])
def test_chao_bound_lies_below_the_truth(images, m, shape):
    """250 copiers, uniform and skewed by gamma factors: a lower bound of the total, at 95 %, never below what was seen.

    As an interval of the total Chao's held the truth in 3 % to 37 % of skewed samples."""
    rng, below = np.random.default_rng(0), 0
    for _ in range(250):
        weights = np.ones(images) if shape is None else rng.gamma(shape, 1, images)
        hits = torch.from_numpy(np.append(rng.multinomial(m, weights / weights.sum()), np.zeros(9 * images, dtype=int)))
        value, low = chao1(hits)
        below += low <= images
        assert int((hits > 0).sum()) <= low <= value and low == int(low)
    assert below / 250 >= 0.93


def test_chao_bound_without_singletons_is_what_was_seen():
    assert chao1(torch.tensor([3, 2, 5, 0])) == (3, 3)
    assert chao1(torch.tensor([1, 2, 5, 0])) == (3, 3)  # one singleton: none is missing
