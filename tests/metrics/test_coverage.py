"""Hits per training image: estimators by hand, the uniform copier, Poisson regression against scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.linear_model import PoissonRegressor

from cdmem.errors import InputError
from cdmem.metrics.memorization.coverage import (
    HitCoverage,
    coverage,
    duplication_slope,
    hits_against_spacing,
    hits_by_multiplicity,
)
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


def test_chao_interval_is_that_of_estimates():
    """EstimateS on the counts 0 1 1 4 2 5 2 4 1 2, two decimals, as scikit-bio's tests quote it."""
    found = coverage(torch.tensor([0, 1, 1, 4, 2, 5, 2, 4, 1, 2]))
    assert found["chao1"] == 9.75
    assert (round(found["chao1_low"], 2), round(found["chao1_high"], 2)) == (9.07, 17.45)


def test_coverage_of_nothing_and_of_one():
    nothing = coverage(torch.zeros(4, dtype=torch.int64))
    assert math.isnan(nothing.pop("good_turing")) and set(nothing.values()) == {0.0}
    one = coverage(torch.tensor([0, 9]))
    assert (one["unique"], one["chao1"], one["good_turing"], one["effective"]) == (1, 1, 1, 1)


# ---- duplication and isolation --------------------------------------------------------------------------------------


def drawn(copies, m, power=1.0, seed=0):
    weights = copies.double() ** power
    return torch.from_numpy(np.random.default_rng(seed).multinomial(m, (weights / weights.sum()).numpy()))


@pytest.mark.parametrize(("power", "m"), [(1.0, 5000), (0.0, 3000), (2.5, 20_000), (-1.0, 1000)])
def test_slope_is_the_poisson_maximum(power, m):
    copies = torch.tensor([1, 2, 4, 8, 100]).repeat_interleave(40)
    hits = drawn(copies, m, power)
    x = copies.double().log()[:, None].numpy()
    want = PoissonRegressor(alpha=0, tol=1e-12, max_iter=10_000, solver="newton-cholesky").fit(x, hits.numpy())
    slope, low, high = duplication_slope(hits, copies)
    assert slope == pytest.approx(want.coef_[0], abs=1e-6)
    assert low < power < high


@pytest.mark.parametrize(("few", "many"), [(1, 3000), (3000, 1), (40, 50)])
def test_slope_of_two_multiplicities_is_the_ratio_of_their_means(few, many):
    """Two means, two coefficients: the fit is exact, also where a full Newton step from the start would overflow."""
    copies, hits = torch.ones(501, dtype=torch.int64), torch.zeros(501, dtype=torch.int64)
    copies[-1], hits[0], hits[-1] = 2, few, many
    assert duplication_slope(hits, copies)[0] == pytest.approx(math.log(many / (few / 500)) / math.log(2), abs=1e-9)


def test_slope_interval_is_whites_sandwich_with_three_degrees_of_freedom():
    copies, hits = torch.tensor([1, 1, 2, 2, 3]), torch.tensor([1, 3, 2, 6, 5])
    slope, low, high = duplication_slope(hits, copies)
    x = np.stack([np.ones(5), np.log(copies.numpy())], 1)
    intercept = math.log(17 / np.exp(slope * x[:, 1]).sum())  # the score of the intercept: fitted hits sum to hits
    mean = np.exp(intercept + slope * x[:, 1])
    assert x.T @ (hits.numpy() - mean) == pytest.approx(0, abs=1e-9)
    bread = np.linalg.inv((x * mean[:, None]).T @ x)
    error = math.sqrt((bread @ (x * ((hits.numpy() - mean) ** 2)[:, None]).T @ x @ bread)[1, 1])
    half = 3.182446 * math.sqrt(5 / 3) * error  # Student's t, G / (G - 2)
    assert (high - slope, slope - low) == pytest.approx((half, half), rel=1e-6)


def test_proportional_hits_have_slope_one_exactly():
    copies = torch.tensor([1, 2, 5, 9, 20])
    assert duplication_slope(7 * copies, copies) == pytest.approx((1, 1, 1), abs=1e-9)


def test_slope_that_cannot_be_known():
    copies = torch.tensor([1, 1, 4, 4])
    assert duplication_slope(torch.tensor([3, 1, 2, 5]), torch.full((4,), 3)) is None
    assert duplication_slope(torch.tensor([0, 0, 2, 5]), copies) is None
    assert duplication_slope(torch.tensor([3, 1, 0, 0]), copies) is None
    assert duplication_slope(torch.zeros(4, dtype=torch.int64), copies) is None
    assert duplication_slope(torch.tensor([0, 1, 0, 5]), copies) is not None


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


def test_slope_interval_covers_with_few_groups():
    """Twelve groups, three multiplicities: the plain sandwich covers 88 % here."""
    copies = torch.tensor([1] * 6 + [2] * 3 + [8] * 3)
    found = [duplication_slope(drawn(copies, 400, seed=s), copies) for s in range(400)]
    assert 0.92 <= sum(low <= 1 <= high for _, low, high in found) / 400 <= 0.98


def test_chao_interval_holds_the_truth_and_vanishes_without_singletons():
    """A uniform copier over 300 images, 400 samples, 200 times: the log-normal interval of the total."""
    inside = 0
    for seed in range(200):
        record = coverage(drawn(torch.ones(300, dtype=torch.int64), 400, seed=seed))
        inside += record["chao1_low"] <= 300 <= record["chao1_high"]
        assert record["unique"] <= record["chao1_low"] <= record["chao1"] <= record["chao1_high"]
    assert inside / 200 >= 0.9
    full = coverage(torch.tensor([3, 2, 5, 0]))
    assert full["chao1_low"] == full["chao1"] == full["chao1_high"] == 3
