"""Kernel distance (KID): the double loop, a closed form, and intervals that cover."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.metrics.pairwise import polynomial_kernel

from cdmem.metrics.quality import fidelity as distances
from cdmem.metrics.quality.fidelity import kernel_interval, reference_of
from cdmem.metrics.quality.frechet import moments
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


def test_kid_interval_is_the_jackknife():
    x, y = normal(8, 4, 30), normal(11, 4, 31) + 0.5
    found = kernel_interval(x, reference_of(y))
    total = 0.0
    for side, rows in enumerate((x, y)):
        left = [rows[torch.arange(len(rows)) != i] for i in range(len(rows))]
        values = np.array([squared_mmd(r, y) if side == 0 else squared_mmd(x, r) for r in left])
        total += (len(rows) - 1) / len(rows) * ((values - values.mean()) ** 2).sum()
    half = 1.959963984540054 * math.sqrt(total)
    assert found == pytest.approx((squared_mmd(x, y), found.value - half, found.value + half), rel=1e-9)


def test_kid_interval_to_a_given_distribution_covers():
    y, w = normal(40, 8, 32) + 0.3, torch.randint(1, 5, (40,), generator=torch.Generator().manual_seed(3))
    reference, big = reference_of(y, w), normal(6000, 8, 33)
    want, hits = kernel_interval(big, reference).value, 0
    for k in range(200):
        found = kernel_interval(normal(100, 8, 3000 + k), reference)
        hits += found.low <= want <= found.high
    assert 0.87 <= hits / 200 <= 0.99


def test_a_copier_is_at_kid_zero_to_a_given_distribution():
    y, w = normal(30, 8, 34), torch.randint(1, 5, (30,), generator=torch.Generator().manual_seed(4))
    reference, generator = reference_of(y, w), torch.Generator().manual_seed(5)
    draws = [y[torch.multinomial(w.double(), 200, True, generator=generator)] for _ in range(200)]
    values = [kernel_interval(x, reference).value for x in draws]
    assert abs(np.mean(values)) < 4 * np.std(values) / math.sqrt(200)
    # As a sample of a population the same rows would put the copier below zero.
    rows = y.repeat_interleave(w, 0)
    assert np.mean([squared_mmd(x, rows) for x in draws]) < -4 * np.std(values) / math.sqrt(200)
