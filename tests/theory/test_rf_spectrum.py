"""Random features: the limiting spectrum against published edges, closed forms, traces and random matrices."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from sklearn.datasets import load_digits

from cdmem.errors import InputError
from cdmem.theory.random_features.model import constants, gaussian_data, make_features
from cdmem.theory.random_features.moments import population_moments, spectrum_of, training_moments
from cdmem.theory.random_features.spectrum import (
    Shape,
    density,
    describe,
    equivalent_eigenvalues,
    find_bulks,
    mass,
    measure,
    memorising,
    rho_1_edges,
    rho_2_edges,
    shape_of,
    stieltjes,
    theory,
    training_time,
)

EDGES = {
    (0.01, 4): (0.2317, 0.6404), (0.01, 8): (0.0873, 0.3762), (0.01, 16): (0.0274, 0.2317),
    (0.01, 32): (0.0063, 0.1507),
    (0.1, 4): (0.1381, 0.3596), (0.1, 8): (0.0598, 0.2164), (0.1, 16): (0.0274, 0.1381), (0.1, 32): (0.0159, 0.0942),
}  # fmt: skip
TAU_MEM = {4: 2556, 8: 5899, 16: 12878, 32: 22138}


@pytest.mark.parametrize(("t", "psi_n"), EDGES)
def test_edges_of_the_memorisation_bulk(t, psi_n):
    assert rho_1_edges(constants(t), 64, psi_n) == pytest.approx(EDGES[t, psi_n], abs=1e-4)


@pytest.mark.parametrize("psi_n", TAU_MEM)
def test_memorisation_times(psi_n):
    c = constants(0.1)
    assert training_time(c, 64, rho_1_edges(c, 64, psi_n)[0]) == pytest.approx(TAU_MEM[psi_n], rel=1e-3)


def test_published_figure_4():
    """Gen bulk about 10 to 45, atom .0019; and every bulk has the eigenvalues that the theorem counts."""
    c = constants(0.01)
    found = theory(c, 64, 8, np.ones(100))
    assert found.rho_2 == pytest.approx((9.84, 44.69), abs=0.01)
    assert c.s2 == pytest.approx(0.0019, abs=5e-5)
    assert sum(b.mass for b in found.bulks) == pytest.approx((1 + 8) / 64, abs=1e-6)
    assert [round(b.mass * 64, 4) for b in found.bulks] == [1.0, 7.0, 1.0] and found.memorising == 2


SHAPES = [(16.0, 4.0, [1.0]), (16.0, 4.0, [0.5, 1.5]), (6.0, 12.0, [1.0]), (12.0, 0.5, [0.2, 2.0])]


@pytest.mark.parametrize(("psi_p", "psi_n", "levels"), SHAPES)
def test_limit_against_a_random_matrix(psi_p, psi_n, levels):
    """The resolvent of one Gaussian equivalent at points off the axis, and how many eigenvalues each bulk holds."""
    d, rng = 80, np.random.default_rng(0)
    spectrum = np.repeat(levels, d // len(levels))
    c = constants(0.1, math.sqrt(spectrum.mean()))
    s = shape_of(psi_p, psi_n, spectrum)
    features = make_features(int(psi_p * d), d, rng)
    data = gaussian_data(int(psi_n * d), spectrum, rng)
    eigenvalues = equivalent_eigenvalues(features, data, c, rng)
    bulks = find_bulks(c, s)
    atom = max(1 - (1 + psi_n) / psi_p, 0)
    assert sum(b.mass for b in bulks) == pytest.approx(1 - atom, abs=1e-4)
    middles = [math.sqrt(a.high * b.low) for a, b in itertools.pairwise(bulks)]
    cuts = [c.s2 * 1.0001, *middles, math.inf]
    for b, low, high in zip(bulks, cuts, cuts[1:]):
        assert ((eigenvalues > low) & (eigenvalues <= high)).mean() == pytest.approx(b.mass, abs=3 / features.p)
        z = np.linspace(b.low, b.high, 9) + 1j * (b.high - b.low) / 2
        empirical = (1 / (eigenvalues[:, None] - z)).mean(0)
        points, weights = np.polynomial.legendre.leggauss(200)
        limit = atom / (c.s2 - z)
        for other in bulks:
            half = (other.high - other.low) / 2
            at = (other.low + other.high) / 2 + half * np.sin(math.pi / 2 * points)
            rho = density(at, c, s) * half * math.pi / 2 * np.cos(math.pi / 2 * points) * weights
            limit = limit + (rho / (at - z[:, None])).sum(1)
        assert np.abs(empirical / limit - 1).max() < 0.02


def test_density_solves_the_published_equation():
    """Eq. (2.9), written out once more with the unknowns eliminated in another order."""
    c, s = constants(0.1), Shape(16.0, 4.0, np.array([0.5, 1.5]), np.array([0.5, 0.5]))
    bulk = find_bulks(c, s)[-1]
    for x in np.linspace(bulk.low, bulk.high, 7)[1:-1]:
        q = stieltjes(np.array([x]), c, s)[0]
        signal = c.a**2 * math.exp(-2 * c.t)
        r = 0.1 - 0.1j
        for _ in range(5000):
            D = 1 + signal * 4 * r + 4 * c.v2 * q
            hat_s, hat_r = c.b**2 * 16 + 1 / q, 16 * signal / D
            s_ = sum(0.5 / (hat_s + lam * hat_r) for lam in (0.5, 1.5))
            r = 0.5 * r + 0.5 * sum(0.5 * lam / (hat_s + lam * hat_r) for lam in (0.5, 1.5))
        left = 16 * (c.s2 - x) + 16 * c.v2 / D + (1 - 16) / q - s_ / q**2
        assert abs(left) < 1e-6 * 16 * x


def test_many_points_leave_the_population_bulk():
    """n -> infinity: Marchenko and Pastur's edges; the population's own U has them too."""
    c, psi_p = constants(0.1), 16.0
    found = theory(c, psi_p, 4.0, np.ones(60))
    closed = rho_2_edges(c, psi_p, np.ones(1))
    assert found.rho_2_many == pytest.approx(closed, rel=1e-3)
    features = make_features(16 * 60, 60, np.random.default_rng(1))
    top = np.linalg.eigvalsh(population_moments(features, np.ones(60), 0.1).U)[-60:]
    assert (top[0], top[-1]) == pytest.approx(closed, rel=0.08)
    assert found.tau_gen == pytest.approx(psi_p / (c.Delta * closed[0]), rel=1e-3)


def test_edges_are_those_of_the_density():
    c, s = constants(0.01), shape_of(64, 8, np.ones(4))
    for b in find_bulks(c, s):
        width = b.high - b.low
        outside = np.array([b.low - 1e-3 * width, b.high + 1e-3 * width])
        inside = np.array([b.low + 1e-3 * width, b.high - 1e-3 * width])
        assert density(outside, c, s).max() < 1e-3 * density(inside, c, s).min()
        assert mass(b.low, b.high, c, s, nodes=900) == pytest.approx(b.mass, rel=1e-5)


def test_bulks_that_touch_have_no_roles():
    """Directions of almost no variance lie among those that memorise."""
    c, spread = constants(0.01), np.geomspace(0.001, 3, 64)
    assert memorising(find_bulks(c, shape_of(16, 4, spread)), 16) is None
    assert memorising(find_bulks(c, shape_of(16, 4, np.ones(4))), 16) == 2


def test_eigenvalues_by_the_small_matrix():
    """The low-rank route against an eigen-decomposition of eq. (2.8) written out, with the same draws; n + d below and
    above p."""
    for n in (20, 200):
        rng = np.random.default_rng(2)
        features, data = make_features(90, 10, rng), gaussian_data(n, np.ones(10), rng)
        c = constants(0.2)
        fast = equivalent_eigenvalues(features, data, c, np.random.default_rng(3))
        W, Omega = features.weights / math.sqrt(10), np.random.default_rng(3).standard_normal((90, n))
        G = math.exp(-0.2) * c.a * W @ data.T + math.sqrt(c.v2) * Omega
        U = G @ G.T / n + c.b**2 * W @ W.T + c.s2 * np.eye(90)
        assert fast == pytest.approx(np.linalg.eigvalsh(U), abs=1e-12)


def test_a_mean_is_one_more_eigenvalue():
    """relu: p mu_0^2 above all, and the generalisation bulk below it where the constants without the mean put it."""
    c = constants(0.1, 1.0, "relu")
    found = theory(c, 10.0, 2.0, np.ones(40))
    measured = describe(measure(40, 400, 80, np.ones(40), c, "relu", 0, 1, 0).exact, 40, 80, found.rho_1, True)
    assert measured.mean == pytest.approx(400 * c.mu_0**2, rel=0.1)
    assert measured.gen == pytest.approx(found.rho_2, rel=0.15)
    assert measured.atom == pytest.approx(c.s2, rel=0.3)


def test_noise_floor_of_draws():
    """Half the difference of two halves is as large as the error, which exact moments tell."""
    c = constants(0.1)
    spectrum = measure(10, 80, 30, np.ones(10), c, "tanh", 40, 1, 0)
    rng = np.random.default_rng([0, 0, 1])
    features = make_features(80, 10, rng)
    exact = np.linalg.eigvalsh(training_moments(features, gaussian_data(30, np.ones(10), rng), 0.1).U)
    assert math.isnan(spectrum.error)
    assert 0.025 * spectrum.floor < np.abs(spectrum.exact[0] - exact).max() < 3 * spectrum.floor
    assert measure(10, 80, 30, np.ones(10), c, "tanh", 4000, 1, 0).floor < 0.2 * spectrum.floor


def test_spectra_of_the_data():
    assert spectrum_of("isotropic", 5, 2.0, [], None, 3) == pytest.approx([4] * 5)
    assert spectrum_of("levels", 4, None, [0.5, 1.5], None, 3) == pytest.approx([1.5, 1.5, 0.5, 0.5])
    pixels = np.rint(load_digits().data[:200] * 255 / 16)
    by_svd = np.linalg.svd(pixels - pixels.mean(0), compute_uv=False)[:20] ** 2
    found = spectrum_of("digits", 20, None, [], None, 200)
    assert found == pytest.approx(by_svd / by_svd.mean())
    with pytest.raises(InputError, match="do not share d = 5 evenly"):
        spectrum_of("levels", 5, None, [0.5, 1.5], None, 3)
    with pytest.raises(InputError, match="64 pixels span 64 directions; use d <= 64"):
        spectrum_of("digits", 65, None, [], None, 200)


@pytest.mark.slow
@pytest.mark.parametrize("levels", [[1.0], [0.5, 1.5]])
def test_published_size_of_figure_4(levels):
    """p = 6,400, n = 800: the true U beside the limit."""
    spectrum = np.repeat(levels, 100 // len(levels))
    c = constants(0.01)
    found = theory(c, 64.0, 8.0, spectrum)
    eigenvalues = measure(100, 6400, 800, spectrum, c, "tanh", 0, 1, 0)
    measured = describe(eigenvalues.exact, 100, 800, found.rho_1, False)
    assert measured.gen == pytest.approx(found.rho_2, rel=0.06)
    mem = np.sort(eigenvalues.exact[0])[6400 - 800 : 6400 - 100]
    assert (mem[0], mem[-1]) == pytest.approx(found.rho_1, rel=0.2)
    assert measured.atom == pytest.approx(c.s2, rel=0.12)


def test_groups_by_index():
    """Two seeds of p = 10, d = 2, n = 3, ascending: five others, three of Mem, two of Gen; with a mean one less."""
    eigenvalues = np.array([[1, 2, 3, 4, 5, 10, 20, 30, 100, 200], [1, 2, 3, 4, 5, 11, 21, 31, 90, 210]], float)
    plain = describe(eigenvalues, 2, 3, (15.0, 40.0), False)
    assert (plain.gen, plain.mem, plain.below, plain.atom, plain.mean) == ((90, 210), (10, 31), 1, 3, None)
    shifted = describe(eigenvalues, 2, 3, (15.0, 40.0), True)
    assert (shifted.gen, shifted.mem, shifted.atom, shifted.mean) == ((30, 100), (5, 21), 2.5, 205)
    assert math.isnan(describe(eigenvalues, 2, 8, (15.0, 40.0), False).atom)
