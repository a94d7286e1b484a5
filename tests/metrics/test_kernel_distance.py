"""Kernel distance (KID): the double loop, a closed form, and intervals that cover."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from sklearn.metrics.pairwise import polynomial_kernel

from cdmem.metrics.quality import fidelity as distances
from cdmem.metrics.quality.fidelity import kernel_interval, reference_of
from cdmem.metrics.quality.frechet import moments
from cdmem.metrics.quality.kernel_variance import Between, Within, variance_to_given, variance_to_sample
from cdmem.metrics.statistics import squared_distance_interval
from support.samples import normal


def kid(x, y):
    return kernel_interval(x, reference_of(y)).value


def squared_mmd(x, y):
    """Unbiased, from scikit-learn's kernel (a.b / F + 1)^3."""
    within = [polynomial_kernel(z)[~np.eye(len(z), dtype=bool)].mean() for z in (x, y)]
    return sum(within) - 2 * polynomial_kernel(x, y).mean()


def test_kid_is_the_double_loop():
    x, y = normal(7, 5, 13), normal(9, 5, 14) + 0.5

    def kernel(a, b):
        return (sum(p * q for p, q in zip(a, b)) / 5 + 1) ** 3

    def within(z):
        pairs = [kernel(z[i], z[j]) for i in range(len(z)) for j in range(len(z)) if i != j]
        return sum(pairs) / len(pairs)

    between = [kernel(p, q) for p in x.tolist() for q in y.tolist()]
    want = within(x.tolist()) + within(y.tolist()) - 2 * sum(between) / len(between)
    assert kid(x, y) == pytest.approx(want, rel=1e-10) and squared_mmd(x, y) == pytest.approx(want, rel=1e-10)


@pytest.mark.parametrize("block", [1, 7, 64])
def test_kid_blocks_do_not_matter(block, monkeypatch):
    x, y = normal(50, 6, 15), normal(33, 6, 16) + 0.2
    monkeypatch.setattr(distances, "BLOCK", block)
    assert kid(x, y) == pytest.approx(squared_mmd(x, y), rel=1e-10)


@pytest.mark.parametrize("weighted", [False, True])
def test_a_large_reference_is_thinned_for_kid_alone(weighted, monkeypatch):
    monkeypatch.setattr("cdmem.metrics.quality.fidelity.MOST", 50)
    x, y, w = normal(20, 3, 17), normal(80, 3, 18), torch.arange(80) + 1 if weighted else None
    reference = reference_of(y, w)
    rows = torch.tensor([(y == row).all(1).nonzero().item() for row in reference.features])
    assert len(rows.unique()) == 50 and torch.equal(reference.moments.mean, moments(y, w).mean)
    assert reference.weights.tolist() == (w[rows].tolist() if weighted else [1] * 50)
    kept = reference_of(y[rows], w[rows] if weighted else None)
    assert kernel_interval(x, reference) == pytest.approx(kernel_interval(x, kept), rel=1e-12)
    assert len(reference_of(y[:50]).features) == 50


def jackknife(x, y, distance, both):
    """By leaving out row after row."""
    total = 0.0
    for side, rows in enumerate((x, y)[: 1 + both]):
        left = [rows[torch.arange(len(rows)) != i] for i in range(len(rows))]
        values = np.array([distance(r, y) if side == 0 else distance(x, r) for r in left])
        total += (len(rows) - 1) / len(rows) * ((values - values.mean()) ** 2).sum()
    return total


def test_kid_interval_from_its_parts():
    """The larger of the unbiased and half of the jackknife's variance; growth with the distance with diagonals."""
    halves = 0
    for k in range(12):
        x, y = normal(8, 4, 30 + k), normal(11, 4, 61 + k) + 0.5 * (k % 3)
        found, jack = kernel_interval(x, reference_of(y)), jackknife(x, y, squared_mmd, True)
        biased = polynomial_kernel(x).mean() + polynomial_kernel(y).mean() - 2 * polynomial_kernel(x, y).mean()
        variance = max(variance_to_sample(*sides(x, y)), jack / 2)
        halves += variance == jack / 2
        assert found == pytest.approx(squared_distance_interval(squared_mmd(x, y), variance, jack, biased), rel=1e-8)
    assert 0 < halves < 12


def sides(x, y):
    """Kernel sums by scikit-learn."""
    tables = [polynomial_kernel(z) * (1 - np.eye(len(z))) for z in (x, y)]
    between = torch.from_numpy(polynomial_kernel(x, y))
    own = [Within(torch.from_numpy(t.sum(1)), float((t**2).sum())) for t in tables]
    return *own, Between(between.sum(1), between.sum(0), float(between.square().sum()))


def draws(points, law, size):
    """All multisets of so many points, with their probabilities."""
    for counts in itertools.product(range(size + 1), repeat=len(points)):
        if sum(counts) == size:
            weight = math.factorial(size) * math.prod(p**c / math.factorial(c) for p, c in zip(law, counts))
            yield points.repeat_interleave(torch.tensor(counts), 0), weight


@pytest.mark.parametrize("other", [(0.2, 0.5, 0.3), (0.6, 0.1, 0.3)], ids=["null", "apart"])
def test_kid_variance_is_unbiased(other):
    """Every sample of four and five out of three points: the mean of the estimate is the variance of KID."""
    points, law = torch.tensor([[0.0, 1.0], [2.0, -1.0], [0.5, 0.5]], dtype=torch.float64), (0.2, 0.5, 0.3)
    values, weights, variances = [], [], []
    for (x, p), (y, q) in itertools.product(draws(points, law, 4), list(draws(points, other, 5))):
        values.append(squared_mmd(x, y))
        variances.append(variance_to_sample(*sides(x, y)))
        weights.append(p * q)
    mean = np.average(values, weights=weights)
    apart = np.array(law) - np.array(other)
    assert sum(weights) == pytest.approx(1)
    assert mean == pytest.approx(apart @ polynomial_kernel(points) @ apart, abs=1e-9)
    assert np.average(variances, weights=weights) == pytest.approx(np.average((values - mean) ** 2, weights=weights))


def test_kid_variance_to_a_given_distribution_is_unbiased():
    points = torch.tensor([[0.0, 1.0], [2.0, -1.0], [0.5, 0.5]], dtype=torch.float64)
    table, given = torch.from_numpy(polynomial_kernel(points)), torch.tensor([0.3, 0.3, 0.4], dtype=torch.float64)
    values, weights, variances = [], [], []
    for x, p in draws(points, (0.2, 0.5, 0.3), 5):
        across = torch.from_numpy(polynomial_kernel(x, points)) @ given
        values.append(sides(x, x)[0].rows.sum() / 20 + given @ table @ given - 2 * across.mean())
        variances.append(variance_to_given(sides(x, x)[0], across))
        weights.append(p)
    mean = np.average(values, weights=weights)
    wanted = np.average((np.array(values) - mean) ** 2, weights=weights)
    assert np.average(variances, weights=weights) == pytest.approx(wanted)


def population(shift, d):
    """Squared MMD of N(0, I) and N(shift, I): E (a.b)^k in closed form."""

    def kernel(ab, aa, bb):
        first, second = ab, ab**2 + aa + bb + d
        third = ab**3 + 3 * ab * (aa + bb + d + 2)
        return third / d**3 + 3 * second / d**2 + 3 * first / d + 1

    s = d * shift**2
    return kernel(0, 0, 0) + kernel(s, s, s) - 2 * kernel(0, 0, s)


@pytest.mark.parametrize("shift", [0.0, 0.1, 0.3, 1.0])
@pytest.mark.parametrize(("n", "m"), [(60, 90), (30, 20)])
def test_kid_interval_covers_the_population(n, m, shift):
    """400 repetitions, both sides drawn anew. The jackknife's interval held the truth 99 % of the time at shift 0."""
    want, low, high = population(shift, 8), 0, 0
    for k in range(400):
        found = kernel_interval(normal(n, 8, 5000 + k), reference_of(normal(m, 8, 9000 + k) + shift))
        low, high = low + (found.low > want), high + (found.high < want)
    assert 0.92 <= 1 - (low + high) / 400 <= 0.98 and max(low, high) / 400 < 0.06


@pytest.mark.parametrize("shift", [0.0, 0.3])
def test_kid_interval_to_a_given_distribution_covers(shift):
    y, w = normal(40, 8, 32) + shift, torch.randint(1, 5, (40,), generator=torch.Generator().manual_seed(3))
    reference, big = reference_of(y, w), normal(6000, 8, 33)
    want, hits = kernel_interval(big, reference).value, 0
    for k in range(400):
        found = kernel_interval(normal(100, 8, 3000 + k), reference)
        hits += found.low <= want <= found.high
    assert 0.92 <= hits / 400 <= 0.98


def test_a_copier_is_at_kid_zero_to_a_given_distribution():
    y, w = normal(30, 8, 34), torch.randint(1, 5, (30,), generator=torch.Generator().manual_seed(4))
    reference, generator = reference_of(y, w), torch.Generator().manual_seed(5)
    draws = [y[torch.multinomial(w.double(), 200, True, generator=generator)] for _ in range(200)]
    values = [kernel_interval(x, reference).value for x in draws]
    assert abs(np.mean(values)) < 4 * np.std(values) / math.sqrt(200)
    # As a sample of a population the same rows would put the copier below zero.
    rows = y.repeat_interleave(w, 0)
    assert np.mean([squared_mmd(x, rows) for x in draws]) < -4 * np.std(values) / math.sqrt(200)
