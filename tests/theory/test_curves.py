"""Crossings, power laws, means and neighbours against closed forms, scipy and hand-made cases."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import linregress, t

from cdmem.theory.curves import crossing, first_below, power_law, power_law_of_seeds
from cdmem.theory.measures import mean_interval, nearest_two


def test_crossing():
    assert crossing([10, 20, 40], [0.0, 0.2, 0.6], 0.5) == pytest.approx(35)
    assert crossing([10, 100, 1000], [0.0, 0.0, 0.2], 0.1, log_x=True) == pytest.approx(10**2.5)
    for log_x in (False, True):
        assert crossing([10, 100], [0.3, 0.4], 0.1, log_x=log_x) == 10
        assert crossing([10, 100], [0.0, 0.09], 0.1, log_x=log_x) is None
    assert first_below([1, 2, 3], [6.5, 4.5, 2.0], 4.0) == pytest.approx(2.2)
    assert first_below([1, 2, 3, 4], [9, 8, 7, 6], 5.0) is None


def test_exponents_are_recovered():
    n, width = [16, 32, 64, 16, 32, 64], [64, 64, 64, 128, 128, 128]
    tau = [7 * a**1.2 / b**0.8 for a, b in zip(n, width)]
    law = power_law({"n": n, "width": width}, tau)
    for name, exponent in (("n", 1.2), ("width", -0.8)):
        assert (law[name].value, law[name].low, law[name].high) == pytest.approx((exponent,) * 3)
    noisy = [time * f for time, f in zip(tau[:3] * 2, (1.1, 0.9, 1.2, 1, 0.8, 1.05))]
    law, theirs = power_law({"n": n[:3] * 2, "width": [64] * 6}, noisy), linregress(np.log(n[:3] * 2), np.log(noisy))
    assert law["width"] is None and law["n"].value == pytest.approx(theirs.slope)
    assert law["n"].high - law["n"].value == pytest.approx(t.ppf(0.975, 4) * theirs.stderr)
    assert power_law({"n": [16, 32]}, [1.0, 2.0]) == {"n": None}  # no residual to judge by
    assert power_law({"n": []}, []) == {"n": None}


def test_power_law_over_seeds():
    x = np.array([2.0, 4.0, 8.0, 16.0])
    law = power_law_of_seeds(x, np.stack([3 * x**-0.5, 3 * x**-0.7], 1))
    assert law.exponent == pytest.approx(-0.6) and law.low < -0.6 < law.high
    assert law.constant == pytest.approx(3)
    assert power_law_of_seeds([2.0], np.ones((1, 3))) is None


def test_means_and_their_intervals():
    values = np.random.default_rng(0).normal(size=9)
    narrow, wide = mean_interval(values), mean_interval(values, 4)
    assert (narrow.low, narrow.high) == pytest.approx(t.interval(0.95, 8, values.mean(), values.std(ddof=1) / 3))
    assert wide.high - wide.mean == pytest.approx(t.ppf(1 - 0.025 / 4, 8) * values.std(ddof=1) / 3)
    assert mean_interval([1.0]).low == -math.inf


def test_two_nearest_by_hand():
    distances, index = nearest_two(torch.tensor([[1.0, 0.0]]), torch.tensor([[5.0, 0.0], [0.0, 0.0], [1.0, 2.0]]))
    assert distances.tolist() == [[1.0, 2.0]] and index.tolist() == [[1, 2]]
    assert nearest_two(torch.zeros(3, 2), torch.ones(1, 2))[0].shape == (3, 1)
