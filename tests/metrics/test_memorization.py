"""The memorised fraction: hand values, the closed form of its threshold, copies, mirrors, seeds and processes."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from cdmem.diffusion import noise, sampling, solvers
from cdmem.diffusion.analytic import EmpiricalDenoiser
from cdmem.errors import InputError
from cdmem.images import to_float, to_uint8
from cdmem.metrics.memorization.fraction import CDF_GRID, MemorizedFraction, disk_rows, fraction, ratio_cdf
from cdmem.metrics.memorization.ratio import memorized, ratios
from cdmem.metrics.statistics import wilson_interval
from support import make_training_set, random_images
from support.samples import flat

COLUMNS = ("seeds", "squared", "groups")


def prepared(train, threshold=1 / 3, **options):
    return MemorizedFraction(threshold).prepare(make_training_set(train, **options))


def measure(train, samples, *, flip=False, threshold=1 / 3):
    metric = prepared(train, threshold, flip=flip)
    metric.update(samples, torch.arange(len(samples)))
    return metric.compute()


def test_three_images_by_hand():
    train = flat(0, 100, 250)
    # d1 / d2: 24/76 < 1/3, 25/75 = 1/3 (not below), 26/74, 10/140, 0.
    metric = prepared(train)
    metric.update(flat(24, 25, 26, 240, 100), torch.tensor([14, 13, 12, 11, 10]))
    result = metric.compute()
    assert result["f_mem"] == 3 / 5 and result["samples"] == 5 and result["unique"] == 3
    assert (result["f_mem_low"], result["f_mem_high"]) == wilson_interval(3, 5)
    assert result["median_ratio"] == pytest.approx(24 / 76)
    rows = disk_rows(metric.rows())
    assert tuple(rows) == ("seeds", "squared1", "squared2", "group1")
    assert tuple(metric.rows()) == COLUMNS and all(column.dtype == np.int64 for column in rows.values())
    assert rows["seeds"].tolist() == [10, 11, 12, 13, 14]
    assert rows["group1"].tolist() == [1, 2, 0, 0, 0]
    assert rows["squared1"].tolist() == [0, 4 * 10**2, 4 * 26**2, 4 * 25**2, 4 * 24**2]
    assert rows["squared2"].tolist() == [4 * 100**2, 4 * 140**2, 4 * 74**2, 4 * 75**2, 4 * 76**2]


@pytest.mark.parametrize(("share", "copied"), [(2499, True), (2500, False), (2501, False)])
def test_a_quarter_of_another_image_is_the_limit(share, copied):
    """A blend with a share a of the other image lies a s from one and (1 - a) s from the other; here s = 10,000."""
    squared = torch.tensor([[share**2, (10_000 - share) ** 2]])
    assert bool(memorized(squared[:, 0], squared[:, 1])) is copied
    assert float(ratios(squared)) == pytest.approx(share / (10_000 - share), rel=1e-15)


def test_other_thresholds_and_the_area_by_hand():
    # d1 / d2: 24/76 = 0.316, 25/75, 26/74 = 0.351, 10/140, 0, 45/55 = 0.818, 19/81 = 0.235.
    found = measure(flat(0, 100, 250), flat(24, 25, 26, 240, 100, 45, 19))
    assert [found[f"f_mem_1/{k}"] for k in (2, 3, 4)] == pytest.approx([6 / 7, 4 / 7, 3 / 7])
    mean = (24 / 76 + 25 / 75 + 26 / 74 + 10 / 140 + 0 + 45 / 55 + 19 / 81) / 7
    assert found["cdf_area"] == pytest.approx(1 - mean, rel=1e-12)
    assert found["median_ratio"] == pytest.approx(24 / 76)
    # Of an even number, the mean of the two in the middle.
    found = measure(flat(0, 100, 250), flat(24, 26, 45, 100))
    assert found["median_ratio"] == pytest.approx((24 / 76 + 26 / 74) / 2)


def test_cdf_counts_what_lies_below():
    ratio = torch.tensor([0.5, 0.0, 0.25, 1.0], dtype=torch.float64)
    assert ratio_cdf(ratio, torch.tensor([0.0, 0.25, 0.3, 0.5, 1.0, 1.1])).tolist() == [0, 0.25, 0.5, 0.5, 0.75, 1]
    # The area under it is 1 minus the mean, up to half a step of the grid.
    ratio = torch.rand(500, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    area = torch.trapezoid(ratio_cdf(ratio), CDF_GRID)
    assert float(area) == pytest.approx(1 - float(ratio.mean()), abs=0.005)
    assert ratio_cdf(ratio[:0]).tolist() == [0.0] * 101


def test_fraction_is_wilsons():
    hits = torch.tensor([True, False, True, False, False])
    assert fraction(hits) == {"value": 0.4, "ci95": list(wilson_interval(2, 5))}


def test_threshold():
    d1, d2 = torch.tensor([0, 1, 24, 25, 100]), torch.tensor([1, 100, 100, 100, 100])
    assert memorized(d1, d2, 0.5).tolist() == [True, True, True, False, False]
    assert measure(flat(0, 100, 250), flat(26, 49), threshold=0.4)["f_mem"] == 0.5
    for bad in (0, -1, 1.5, math.nan):
        with pytest.raises(InputError):
            MemorizedFraction(bad)


@pytest.mark.parametrize("factor, low, high", [(0.9, 0.97, 1.0), (1.1, 0.0, 0.03)])
def test_noise_around_the_closed_form_threshold(factor, low, high):
    # sep / sqrt(8 D) grey levels of noise put d1 / d2 at 1/3; levels 96..159 keep the noise away from 0 and 255.
    train = random_images(60, (3, 32, 32), 0, 96, 160)
    points = train.double().flatten(1)
    separation = torch.cdist(points, points).fill_diagonal_(math.inf).amin(1)
    sigma = factor * separation / math.sqrt(8 * points.shape[1])
    noise = torch.randn(points.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    samples = (points + sigma[:, None] * noise).round().clamp(0, 255).to(torch.uint8).reshape(train.shape)
    assert low <= measure(train, samples)["f_mem"] <= high


@pytest.mark.parametrize("copies", [1, 2, 60])
def test_a_copier_of_duplicated_rows_reads_one(copies):
    train = random_images(5, (3, 8, 8), 2).repeat_interleave(copies, 0)
    result = measure(train, train)
    assert result["f_mem"] == 1.0 and result["unique"] == 5 and result["median_ratio"] == 0.0


@pytest.mark.parametrize("flip", [False, True])
def test_mirrored_copies_count_only_with_flips(flip):
    train = random_images(40, (3, 8, 8), 3)
    assert measure(train, train.flip(-1), flip=flip)["f_mem"] == float(flip)
    assert measure(train, train, flip=flip)["f_mem"] == 1.0


def test_near_duplicates_are_one_image_on_request():
    """Of two photos s apart a sample s from one is 1.4 s from the other: no copy, unless the two count as one."""
    images = random_images(10, (3, 8, 8), 3, 64, 192)
    twins, samples = (images[:3] + random_images(3, (3, 8, 8), seed, 0, 9) - 4 for seed in (4, 5))
    training_set = make_training_set(torch.cat([images, twins]))
    for rule, share, groups, merged in (("off", 0.0, 13, 0), (0.5, 1.0, 10, 3), ("auto", 1.0, 10, 3)):
        metric = MemorizedFraction(near_duplicates=rule).prepare(training_set)
        metric.update(samples, torch.arange(3))
        assert metric.compute()["f_mem"] == share
        assert (metric.search.index.num_groups, metric.search.merged) == (groups, merged)


def exact_sampler(steps, m=10_000, seed=0):
    """Samples of the exact empirical denoiser of 60 images with 1, 2 or 8 copies, by Heun's method."""
    train = random_images(60, (1, 4, 4), 10)
    copies = torch.tensor([1, 2, 8]).repeat(20)
    sigmas = noise.sampler_sigmas(steps)
    start = torch.randn(m, 1, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * sigmas[0]
    denoiser = EmpiricalDenoiser(to_float(train), copies)
    return train, copies, to_uint8(sampling.sample_ode(denoiser, start, sigmas, solvers.heun_step))


@pytest.mark.parametrize(("steps", "right"), [(18, True), (6, False)])
def test_the_exact_sampler_copies_everything_in_proportion(steps, right):
    """Every sample is a copy; which image, is multinomial in the copies, unless the steps are too coarse."""
    train, copies, samples = exact_sampler(steps)
    metric = prepared(train, copies=copies)
    metric.update(samples, torch.arange(len(samples)))
    assert metric.compute()["f_mem"] == 1.0
    hits = torch.bincount(metric.rows()["groups"][:, 0], minlength=60).numpy()
    expected = len(samples) * copies.numpy() / copies.sum().item()
    p = stats.chisquare(hits, expected).pvalue
    assert p > 1e-3 if right else p < 1e-6


def test_numpy_rows_read_the_same():
    """The predicate to the bit; the ratio within one rounding of the root, which MKL's is not always right in."""
    squared = torch.randint(0, 2**40, (5000, 2), generator=torch.Generator().manual_seed(0)).sort(1).values
    squared[:50, 0] = 0
    quotient = squared[:, 0].double() / squared[:, 1].double()
    assert torch.equal(ratios(squared), quotient.sqrt())
    assert ratios(squared.numpy()).tolist() == [math.sqrt(q) for q in quotient.tolist()]
    assert np.allclose(ratios(squared.numpy()), ratios(squared), rtol=2**-52, atol=0)
    for threshold in (1 / 2, 1 / 3):
        hit = memorized(*squared.numpy().T, threshold)
        assert np.array_equal(hit, memorized(*squared.T, threshold)) and hit.dtype == bool and 0 < hit.mean() < 1


def test_what_a_report_needs_loads_no_torch():
    names = ("statistics", "memorization.ratio", "comparison.verdict", "comparison.convergence", "comparison.specific")
    code = f"import sys, {', '.join(f'cdmem.metrics.{n}' for n in names)}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], timeout=60).returncode == 0
