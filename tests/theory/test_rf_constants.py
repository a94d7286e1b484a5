"""Random features: constants and moments against published numbers, other quadratures, closed forms and sampling."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.integrate import dblquad, quad

from cdmem.theory.random_features import moments
from cdmem.theory.random_features.model import (
    ACTIVATIONS,
    Features,
    constants,
    delta,
    gaussian_data,
    make_features,
    noised,
)
from cdmem.theory.random_features.moments import drawn_moments, population_moments, training_moments

# t: Delta, a_t, b_t, v_t^2, s_t^2, |sigma|^2, mu_1 for tanh at sigma_x = 1
ORACLE = {
    0.01: (0.019801, 0.605706, 0.085233, 0.025542, 0.001874, 0.394294, 0.605706),
    0.05: (0.095163, 0.605706, 0.186851, 0.019362, 0.008053, 0.394294, 0.605706),
    0.1: (0.181269, 0.605706, 0.257884, 0.013841, 0.013574, 0.394294, 0.605706),
    0.5: (0.632121, 0.605706, 0.481572, 0.001124, 0.026291, 0.394294, 0.605706),
}


@pytest.mark.parametrize("t", ORACLE)
def test_constants_of_tanh(t):
    c = constants(t)
    assert (c.Delta, c.a, c.b, c.v2, c.s2, c.norm2, c.mu_1) == pytest.approx(ORACLE[t], abs=1e-6)
    assert c.mu_0 == pytest.approx(0, abs=1e-14)


def _normal(x):
    return math.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_constants_by_their_definitions(name):
    """Adaptive two-dimensional integrals of eq. (2.7), without Stein's identity."""
    c, sigma = constants(0.3, 1.7, name), ACTIVATIONS[name]
    signal, noise = math.exp(-0.3) * 1.7, math.sqrt(1 - math.exp(-0.6))
    assert c.gamma == pytest.approx(math.hypot(signal, noise))

    def expected(f, kink=0.0):
        kinks = [kink] if abs(kink) < 9 else None
        return quad(lambda u: f(u) * _normal(u), -9, 9, points=kinks, epsabs=1e-9, limit=200)[0]

    def pre(u, v):
        return float(sigma(np.array(signal * u + noise * v)))

    b = expected(lambda u: expected(lambda v: v * pre(u, v), -signal * u / noise))
    a = expected(lambda u: expected(lambda v: u * pre(u, v), -signal * u / noise)) / signal
    assert (c.a, c.b) == pytest.approx((a, b), abs=1e-7)
    assert c.a**2 * signal**2 + c.b**2 == pytest.approx(c.mu_1**2, abs=1e-10)
    mean, norm2 = (expected(lambda u, k=k: float(sigma(np.array(c.gamma * u))) ** k) for k in (1, 2))
    assert (c.norm2, c.mu_0) == pytest.approx((norm2, mean), abs=1e-8)
    rng = np.random.default_rng(0)
    u, v, w = rng.standard_normal((3, 1_000_000))
    products = sigma(signal * u + noise * v) * sigma(signal * u + noise * w)
    shared = c.v2 + c.mu_0**2 + c.a**2 * signal**2
    assert shared == pytest.approx(products.mean(), abs=5 * products.std() / 1000)
    assert c.s2 == pytest.approx(c.norm2 - shared - c.b**2, abs=1e-12)


def test_constants_in_closed_form():
    """E sin(G u)^2 = (1 - exp(-2 G^2)) / 2, E[sin(G u) u] = G exp(-G^2 / 2); of relu, half of a Gaussian's moments."""
    c, relu = (constants(0.2, 1.3, name) for name in ("sin", "relu"))
    g2 = c.gamma**2
    assert c.norm2 == pytest.approx((1 - math.exp(-2 * g2)) / 2, abs=1e-12)
    assert c.mu_1 == pytest.approx(c.gamma * math.exp(-g2 / 2), abs=1e-12)
    shared = math.exp(-g2) * math.sinh(math.exp(-0.4) * 1.69)
    assert c.v2 == pytest.approx(shared - (c.a * math.exp(-0.2) * 1.3) ** 2, abs=1e-12)
    halves = (relu.gamma / math.sqrt(2 * math.pi), relu.gamma / 2, relu.gamma**2 / 2)
    assert (relu.mu_0, relu.mu_1, relu.norm2) == pytest.approx(halves, abs=1e-12)


SIZES = [("tanh", 0.05), ("tanh", 0.7), ("relu", 0.1), ("softplus", 0.3)]


@pytest.mark.parametrize(("activation", "t"), SIZES)
def test_training_moments_by_quadrature_over_the_noise_plane(activation, t):
    """Two features see the noise only in the plane of their weights: a brute-force integral over that plane."""
    rng = np.random.default_rng(1)
    features, data = make_features(3, 4, rng, activation), gaussian_data(2, np.array([2.0, 1.0, 0.5, 0.1]), rng)
    found = training_moments(features, data, t)
    sigma = ACTIVATIONS[activation]
    for i, j in ((0, 1), (1, 2), (2, 2)):
        basis, _ = np.linalg.qr(features.weights[[i, (j + 1) % 3 if i == j else j]].T)
        total = 0.0
        for x in data:

            def product(b, a, x=x, i=i, j=j, basis=basis):
                y = math.exp(-t) * x + math.sqrt(delta(t)) * (basis @ np.array([a, b]))
                return float(np.prod([sigma(features.weights[k] @ y / 2) for k in (i, j)])) * _normal(a) * _normal(b)

            total += dblquad(product, -7, 7, -7, 7, epsabs=1e-5, epsrel=1e-5)[0] / len(data)
        assert found.U[i, j] == pytest.approx(total, abs=3e-5)
    assert found.error < 1e-5


@pytest.mark.parametrize(("activation", "t"), SIZES)
def test_moments_by_sampling(activation, t):
    rng = np.random.default_rng(2)
    features, spectrum = make_features(40, 8, rng, activation), np.linspace(0.2, 2, 8)
    data = gaussian_data(6, spectrum, rng)
    exact, population = training_moments(features, data, t), population_moments(features, spectrum, t)
    fresh = gaussian_data(200_000, spectrum, rng)
    for found, points, draws in ((exact, data, 40_000), (population, fresh, 1)):
        xi = rng.standard_normal((draws, *points.shape))
        sampled = drawn_moments(features, points, t, xi)
        bound = 6 / math.sqrt(draws * len(points)) * (1 + exact.U.max())
        assert np.abs(found.U - sampled.U).max() < bound and np.abs(found.V - sampled.V).max() < bound
    y = noised(fresh, t, xi[0])
    gradient = -y / (math.exp(-2 * t) * spectrum + delta(t))
    S = features(y).T @ gradient / len(y)
    assert np.abs(population.S - S).max() < 3 * bound
    assert population.score2 == pytest.approx((gradient**2).sum(1).mean(), rel=0.01)


def test_moments_of_erf_in_closed_form():
    """Williams 1997: E[erf(a) erf(b)] = 2/pi arcsin(2 c_ab / sqrt((1 + 2 c_aa)(1 + 2 c_bb))) for centred a, b."""
    rng = np.random.default_rng(3)
    features = Features(rng.standard_normal((30, 6)), "erf")
    spectrum, t = np.linspace(0.5, 1.5, 6), 0.2
    found = population_moments(features, spectrum, t)
    total = math.exp(-2 * t) * spectrum + delta(t)
    C = (features.weights * total) @ features.weights.T / 6
    root = np.sqrt(1 + 2 * np.diag(C))
    np.testing.assert_allclose(found.U, 2 / math.pi * np.arcsin(2 * C / root / root[:, None]), rtol=0, atol=1e-5)
    slope = 2 / math.sqrt(math.pi) / root[:, None] * features.weights / math.sqrt(6)
    np.testing.assert_allclose(found.S, -slope, rtol=0, atol=1e-9)
    np.testing.assert_allclose(found.V, math.sqrt(delta(t)) * slope, rtol=0, atol=1e-9)


def test_blocks_of_points_change_nothing(monkeypatch):
    rng = np.random.default_rng(4)
    features, data = make_features(24, 6, rng), gaussian_data(17, np.ones(6), rng)
    whole = training_moments(features, data, 0.3)
    monkeypatch.setattr(moments, "BLOCK", 8 * 41 * 24 * 5)
    parts = training_moments(features, data, 0.3)
    np.testing.assert_allclose(parts.U, whole.U, rtol=0, atol=2e-9)
    np.testing.assert_allclose(parts.V, whole.V, rtol=0, atol=1e-14)
