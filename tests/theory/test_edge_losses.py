"""Edge: losses and crossovers against the measured oracles, enumeration and formulas (theory 3.2 and 3.4)."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch

from cdmem.theory.curves import first_below
from cdmem.theory.edge.capacity_sweep import gaussian_problem
from cdmem.theory.edge.denoisers import isotropic
from cdmem.theory.edge.losses import constant, generalising, monte_carlo, nearest_loss, partly_memorising
from cdmem.theory.edge.mixture import Sizes, grid
from cdmem.theory.edge.untrained import predicted, untrained_losses, weighted
from support.laboratory import tensor

D, K, N = 50, 12, 200
ALL = np.arange(1, N + 1)
T36 = float(grid()[16])


@pytest.fixture(scope="module")
def problems():
    return [gaussian_problem(Sizes(N, D, K), 10, 10, seed) for seed in range(3)]


def true_loss(problems, t):
    return float(np.mean([monte_carlo(p.true, p.data, t, 10, 1).mean for p in problems]))


def memorising_loss(problems, t, draws):
    """Of the denoiser that knows the data alone."""
    losses = [monte_carlo(lambda x, s, p=p: isotropic(x, s, p.data, 0.0), p.data, t, draws, 1) for p in problems]
    return float(np.mean([loss.mean for loss in losses]))


def exact_partly(problems, capacities):
    """The average over all subsets, and over three data sets."""
    return np.mean([partly_memorising(p.data, np.asarray(capacities)) for p in problems], 0)


@pytest.mark.parametrize(
    ("t", "oracle", "tolerance"), [(0.1, 0.5, 0.01), (0.2007, 2.012, 0.03), (0.3603, 6.494, 0.09), (0.5, 12.53, 0.2)]
)
def test_generalising_loss(problems, t, oracle, tolerance):
    assert true_loss(problems, t) == pytest.approx(oracle, abs=tolerance)
    assert float(generalising(t, D)) == pytest.approx(oracle, abs=tolerance)


def test_losses_at_t_08(problems):
    """Where the posterior is no longer one component: 32.55, and .22 of the memorising denoiser."""
    assert true_loss(problems, 0.8) == pytest.approx(32.55, abs=0.6)
    assert memorising_loss(problems, 0.8, 30) == pytest.approx(0.22, abs=0.12)
    assert memorising_loss(problems, 0.5, 10) < 0.01


@pytest.mark.parametrize(
    ("capacity", "oracle", "c"),
    [(20, 91.9, 2.04), (40, 71.6, 1.79), (100, 38.0, 1.52), (160, 14.4, 1.44), (180, 7.10, 1.42), (198, 0.71, 1.42)],
)
def test_partly_memorising_loss(problems, capacity, oracle, c):
    """The average over all subsets, for three data sets; single subsets scatter by several percent."""
    loss = float(exact_partly(problems, [capacity])[0])
    assert loss == pytest.approx(oracle, rel=0.05)
    assert constant(loss, capacity, N, D) == pytest.approx(c, abs=0.08)


def test_the_average_over_subsets_by_enumeration():
    data = tensor(7, 3)
    far = torch.cdist(data, data) ** 2
    for m in range(1, 8):
        each = [float(far[:, list(kept)].min(1).values.mean()) for kept in combinations(range(7), m)]
        assert nearest_loss(data, torch.arange(m)) == pytest.approx(each[0], abs=1e-9)
        assert partly_memorising(data, np.array([m]))[0] == pytest.approx(np.mean(each), abs=1e-9)


def test_monte_carlo_of_the_partly_memorising_loss_agrees(problems):
    """Nested random subsets at t = .36, three data sets, against the average over subsets."""
    losses = [untrained_losses(p, [T36], 10, 4) for p in problems]
    drawn = np.mean([f.pmem[:, 0] for f in losses], 0)[:-1]
    exact = exact_partly(problems, losses[0].capacities)[:-1]
    np.testing.assert_allclose(drawn, exact, rtol=0.12)
    means = np.mean([f.pmem_mean[:, 0] for f in losses], 0)[:-1]
    np.testing.assert_allclose(means, exact, rtol=0.01)  # what the choice of samples adds is taken off
    assert all(f.pmem[-1, 0] == pytest.approx(f.mem[0].mean) for f in losses)


@pytest.mark.parametrize(("t", "oracle"), [(0.1, 0.993), (T36, 0.91), (0.5, 0.82)])
def test_crossover_of_single_times(problems, t, oracle):
    crossover = first_below(ALL, exact_partly(problems, ALL), float(generalising(t, D)))
    assert crossover / N == pytest.approx(oracle, abs=0.015)


def test_crossover_at_t_08(problems):
    """The oracle .54 takes C = 1.42 of M near N; at the crossing itself C is 1.5 and M*/N .58, by either method."""
    level = true_loss(problems, 0.8)
    assert 1 - level / (1.42 * D) == pytest.approx(0.54, abs=0.01)
    by_average = first_below(ALL, exact_partly(problems, ALL), level)
    losses = untrained_losses(problems[0], [0.8], 20, 4)
    drawn = first_below(losses.capacities, losses.pmem[:, 0], losses.gen[0].mean)
    assert by_average / N == pytest.approx(0.575, abs=0.015) and drawn / N == pytest.approx(0.575, abs=0.04)


def test_grid_average_and_bounds_of_the_formula():
    """E[t^2] = .3396, and M*/N = .66, .76, .83 for C = 1, 1.43, 2."""
    times, ones = grid().numpy(), np.ones(26)
    assert (times**2).mean() == pytest.approx(0.3396, abs=5e-4)
    for c, oracle in ((1.0, 0.66), (1.43, 0.76), (2.0, 0.83)):
        assert predicted(times, ones, 1.0, c) == pytest.approx(oracle, abs=0.005)
    assert predicted(times, (1 - times**2) / times**2, 1.0, 1.43) > 0.999


def test_weighted_crossover_by_hand():
    capacities = [1, 2, 3, 4]
    partly = np.array([[8.0, 6.0], [6.0, 4.0], [2.0, 2.0], [0.0, 0.0]])
    general = np.array([1.0, 5.0])
    # Weights 1:3 give 6.5, 4.5, 2, 0 against 4: between 2 and 3, at a fifth.
    assert weighted(capacities, partly, general, np.array([1, 3])) == pytest.approx(2.2)
    assert weighted(capacities, partly, general, np.array([1, 0])) == pytest.approx(3.5)


def test_the_interval_of_a_loss_holds_its_value():
    """For one sample and a constant denoiser the loss is a number; else intervals cover the limit of many draws."""
    problem = gaussian_problem(Sizes(5, 4, 2), 2, 10, 0)
    fixed = monte_carlo(lambda x, t: torch.zeros_like(x), problem.data, 0.5, 3, 0)
    exact = float((problem.data**2).sum(1).mean())
    assert (fixed.low, fixed.mean, fixed.high) == pytest.approx((exact, exact, exact))
    limit = monte_carlo(problem.true, problem.data, 0.5, 20_000, 99).mean
    drawn = [monte_carlo(problem.true, problem.data, 0.5, 60, seed) for seed in range(200)]
    assert 178 <= sum(e.low <= limit <= e.high for e in drawn) <= 198
