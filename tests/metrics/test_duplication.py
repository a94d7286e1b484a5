"""The response to duplication: maximum likelihood against SciPy, intervals against simulation, one-sided bounds."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import optimize, stats
from sklearn.linear_model import PoissonRegressor

from cdmem.metrics.memorization.duplication import HitLikelihood, duplication_slope


def drawn(copies, m, power=1.0, seed=0, shape=None):
    """Hits in proportion to copies ** power, and to a gamma factor of every image."""
    rng = np.random.default_rng(seed)
    weights = copies.double().numpy() ** power * (1 if shape is None else rng.gamma(shape, 1 / shape, len(copies)))
    return torch.from_numpy(rng.multinomial(m, weights / weights.sum()))


SKEWED = {
    "10 of 256 x 50": torch.tensor([1] * 246 + [50] * 10),
    "3 of 64 x 8": torch.tensor([1] * 61 + [8] * 3),
    "12 groups": torch.tensor([1] * 6 + [2] * 3 + [8] * 3),
}


def log_likelihood(parameters, hits, copies):
    """Negative binomial of mean exp(a) c^b and variance mu + alpha mu^2, from SciPy's distribution."""
    a, b, log_alpha = parameters
    mean, size = np.exp(a) * copies**b, math.exp(-log_alpha)
    return stats.nbinom.logpmf(hits, size, size / (size + mean)).sum()


def profile(slope, hits, copies):
    """The largest log likelihood with a slope: the best of many alphas, refined, with the intercept by bisection."""
    y, c = hits.numpy(), copies.double().numpy()
    centre = math.log(y.sum() / (c**slope).sum())

    def at(log_alpha):
        def score(a):
            mean = np.exp(a) * c**slope
            return ((y - mean) / (1 + math.exp(log_alpha) * mean)).sum()

        return log_likelihood([optimize.brentq(score, centre - 9, centre + 9, xtol=1e-12), slope, log_alpha], y, c)

    grid = np.linspace(-12, 6, 37)
    best = grid[int(np.argmax([at(g) for g in grid]))]
    fine = optimize.minimize_scalar(lambda g: -at(g), bounds=(best - 0.5, best + 0.5), method="bounded")
    return max(-fine.fun, stats.poisson.logpmf(y, np.exp(centre) * c**slope).sum())


@pytest.mark.parametrize(("shape", "m"), [(0.5, 2000), (3.0, 2000), (3.0, 60), (None, 300)])
def test_the_likelihood_is_the_negative_binomials(shape, m):
    copies = torch.tensor([1, 2, 4, 8, 100]).repeat_interleave(12)
    hits = drawn(copies, m, shape=shape)
    best, likelihood = duplication_slope(hits, copies), HitLikelihood(hits.numpy(), copies.numpy())
    top = profile(best.value, hits, copies)
    for away in (-0.6, -0.05, 0.05, 0.6):
        wanted = top - profile(best.value + away, hits, copies)
        assert likelihood(best.value) - likelihood(best.value + away) == pytest.approx(wanted, rel=1e-5, abs=1e-6)
        assert wanted > 0
    found = likelihood.fit(best.value)
    if found.alpha:
        y, c = hits.numpy(), copies.double().numpy()
        at = [found.intercept, best.value, math.log(found.alpha)]
        assert log_likelihood(at, y, c) == pytest.approx(top, abs=1e-6)


@pytest.mark.parametrize(("power", "m"), [(1.0, 5000), (0.0, 3000), (2.5, 20_000), (-1.0, 1000)])
def test_without_excess_variance_it_is_the_poisson_maximum(power, m):
    """Multinomial counts vary a little less than Poisson's, so that alpha is 0, or next to it."""
    copies = torch.tensor([1, 2, 4, 8, 100]).repeat_interleave(40)
    hits = drawn(copies, m, power)
    x = copies.double().log()[:, None].numpy()
    want = PoissonRegressor(alpha=0, tol=1e-12, max_iter=10_000, solver="newton-cholesky").fit(x, hits.numpy())
    slope, low, high = duplication_slope(hits, copies)
    assert slope == pytest.approx(want.coef_[0], abs=0.02)
    assert low < power < high


@pytest.mark.parametrize(("few", "many"), [(1, 3000), (3000, 1), (40, 50)])
def test_slope_of_two_multiplicities_is_the_ratio_of_their_means(few, many):
    """Two means, two coefficients: the fit is exact, whatever alpha is."""
    copies, hits = torch.ones(501, dtype=torch.int64), torch.zeros(501, dtype=torch.int64)
    copies[-1], hits[0], hits[-1] = 2, few, many
    assert duplication_slope(hits, copies)[0] == pytest.approx(math.log(many / (few / 500)) / math.log(2), abs=1e-7)


def test_proportional_hits_have_slope_one_and_the_interval_of_the_profile():
    copies = torch.tensor([1, 2, 5, 9, 20])
    hits = 7 * copies
    slope, low, high = duplication_slope(hits, copies)
    assert slope == pytest.approx(1, abs=1e-8)
    deficits = [profile(1, hits, copies) - profile(end, hits, copies) for end in (low, high)]
    assert deficits == pytest.approx([3.182446**2 / 2] * 2, rel=1e-3)  # Student's t with 3 degrees of freedom


def test_robust_interval_is_the_corrected_sandwich():
    """Written out with matrices of all groups: CR2 with Bell and McCaffrey's degrees of freedom."""
    copies, hits = np.array([1, 1, 1, 1, 2, 2, 3]), np.array([1, 9, 0, 2, 2, 6, 5])
    likelihood = HitLikelihood(hits, copies)
    slope = duplication_slope(torch.from_numpy(hits), torch.from_numpy(copies)).value
    fit = likelihood.fit(slope)
    x = np.stack([np.ones(7), np.log(copies)], 1)
    mean = np.exp(fit.intercept + slope * x[:, 1])
    assert fit.alpha > 0.1
    weight, total = 1 / (1 + fit.alpha * mean), np.diag(mean * (1 + fit.alpha * mean))
    bread = np.linalg.inv((x * (weight * mean)[:, None]).T @ x)
    # What a hit adds to a fitted mean, and to the slope.
    onto_mean, onto_slope = np.diag(mean) @ x @ bread @ x.T @ np.diag(weight), (bread @ x.T @ np.diag(weight))[1]
    assert np.diag(onto_mean).sum() == pytest.approx(2)
    corrected = np.diag(onto_slope**2 / (1 - np.diag(onto_mean)))
    residuals = np.eye(7) - onto_mean
    spread = residuals @ total @ residuals.T
    variance = float((hits - mean) @ corrected @ (hits - mean))
    product = corrected @ spread
    freedom = np.trace(product) ** 2 / np.trace(product @ product)
    half = stats.t.ppf(0.975, freedom) * math.sqrt(variance)
    assert likelihood.robust_interval(slope) == pytest.approx((slope - half, slope + half), rel=1e-6)


def test_slope_that_cannot_be_known():
    copies = torch.tensor([1, 1, 4, 4])
    assert duplication_slope(torch.tensor([3, 1, 2, 5]), torch.full((4,), 3)) is None
    assert duplication_slope(torch.zeros(4, dtype=torch.int64), copies) is None
    assert duplication_slope(torch.tensor([1, 5]), torch.tensor([1, 4])) is None
    assert duplication_slope(torch.tensor([0, 1, 5]), torch.tensor([1, 1, 4])) is not None


@pytest.mark.parametrize(("hits", "number"), [([1, 0, 0], 1), ([1, 1, 0], 2), ([1, 1, 1], 3), ([2, 2, 1], 5)])
def test_only_duplicated_images_bound_the_slope_from_below(hits, number):
    """Counts that do not vary more than Poisson's: all n hits fall on the 3 of 64 images with probability 2.5 %."""
    copies = SKEWED["3 of 64 x 8"]
    counts = torch.zeros(64, dtype=torch.int64)
    counts[-3:] = torch.tensor(hits)
    value, low, high = duplication_slope(counts, copies)
    assert value == high == math.inf
    share = 3 * 8**low / (61 + 3 * 8**low)
    assert share**number == pytest.approx(0.025, rel=0.03)


def test_only_images_that_are_not_duplicated_bound_it_from_above():
    copies = SKEWED["3 of 64 x 8"]
    counts = torch.zeros(64, dtype=torch.int64)
    counts[:10] = 1
    value, low, high = duplication_slope(counts, copies)
    assert value == low == -math.inf
    assert profile(-40, counts, copies) - profile(high, counts, copies) == pytest.approx(-math.log(0.025), rel=1e-3)
    assert (61 / (61 + 3 * 8**high)) ** 10 < 0.025  # for Poisson counts the bound is on the safe side
    # Hits of one image alone may be its own: little is known.
    alone, spread = torch.zeros(64, dtype=torch.int64), torch.zeros(64, dtype=torch.int64)
    alone[-1], spread[-3:] = 60, 20
    assert duplication_slope(alone, copies).low < duplication_slope(spread, copies).low - 0.5


def test_hits_in_the_middle_have_a_finite_slope():
    copies, hits = torch.tensor([1, 1, 2, 2, 4, 4]), torch.tensor([0, 0, 3, 4, 0, 0])
    value, low, high = duplication_slope(hits, copies)
    assert abs(value) < 1 and low < value < high


@pytest.mark.parametrize(
    ("design", "m", "shape"),
    [
        *(("10 of 256 x 50", 300, None), ("3 of 64 x 8", 300, None), ("12 groups", 400, None)),
        ("3 of 64 x 8", 300, 2.0),
    ],
)
def test_slope_interval_covers(design, m, shape):
    """100 repetitions: the plain sandwich's covered 78 to 89 % of skewed designs. More: benchmarks/coverage.py."""
    copies = SKEWED[design]
    found = [duplication_slope(drawn(copies, m, seed=s, shape=shape), copies) for s in range(100)]
    assert sum(low <= 1 <= high for _, low, high in found) / 100 >= 0.93
    assert np.median([high - low for _, low, high in found]) < (0.5 if shape is None else 2.5)


def test_slope_interval_covers_where_hits_are_few():
    """Slope 2: often only duplicated images are hit."""
    copies = SKEWED["10 of 256 x 50"]
    found = [duplication_slope(drawn(copies, 10, power=2.0, seed=s), copies) for s in range(100)]
    assert sum(value == math.inf for value, _, _ in found) > 20
    assert np.mean([low <= 2 <= high for _, low, high in found]) >= 0.93


def test_an_image_alone_with_its_multiplicity_leaves_the_interval_to_the_likelihood():
    copies, hits = torch.tensor([1, 1, 1, 1, 1, 9]), torch.tensor([3, 1, 2, 2, 4, 30])
    value, low, high = duplication_slope(hits, copies)
    assert value == pytest.approx(math.log(30 / 2.4) / math.log(9), abs=1e-7) and low < value < high
    wanted = stats.t.ppf(0.975, 4) ** 2 / 2
    assert profile(value, hits, copies) - profile(low, hits, copies) == pytest.approx(wanted, rel=1e-3)
