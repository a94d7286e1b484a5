"""Edge: denoisers against quadrature, dense algebra and each other."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from scipy.stats import multivariate_normal, norm

from cdmem.theory.edge.denoisers import general, isotropic, low_rank
from cdmem.theory.edge.mixture import alpha, grid, noisy, psi
from support.laboratory import tensor

TIMES = [0.001, 0.2, 0.7, 0.999]


def dense(x, t, means, covariances):
    """Posterior mean by Bayes' rule with inverses and scipy's densities."""
    a = np.sqrt(1 - t * t)
    out = np.zeros_like(x)
    for r, point in enumerate(x):
        logs, inner = [], []
        for mu, cov in zip(means, covariances):
            s = a * a * cov + t * t * np.eye(len(mu))
            logs.append(multivariate_normal(a * mu, s).logpdf(point))
            inner.append(mu + a * cov @ np.linalg.inv(s) @ (point - a * mu))
        out[r] = np.exp(np.array(logs) - logsumexp(logs)) @ np.array(inner)
    return out


def test_the_published_grid():
    times = grid()
    assert len(times) == 26 and float(times[0]) == 0.999 and float(times[-1]) == pytest.approx(0.001)
    assert float(times[16]) == pytest.approx(0.36028) and float(psi(times[16])) == pytest.approx(6.704, abs=1e-3)
    assert torch.allclose(alpha(times) ** 2 + times**2, torch.ones(26, dtype=torch.float64))


@pytest.mark.parametrize("t", TIMES)
def test_one_dimension_by_quadrature(t):
    means, var = np.array([-1.0, 0.3, 2.0]), 0.2
    x0 = np.linspace(-6, 7, 400_001)
    prior = norm.pdf(x0[:, None], means, var**0.5).mean(1)
    for x in (-1.2, 0.1, 1.7):
        likelihood = norm.pdf(x, np.sqrt(1 - t * t) * x0, t) * prior
        exact = (x0 * likelihood).sum() / likelihood.sum()
        result = isotropic(torch.tensor([[x]], dtype=torch.float64), t, torch.from_numpy(means)[:, None], var)
        assert float(result) == pytest.approx(exact, abs=1e-6)


@pytest.mark.parametrize("t", TIMES)
def test_general_covariances_against_dense_algebra(t):
    means = tensor(3, 4, seed=1, scale=2)
    roots = np.random.default_rng(2).standard_normal((3, 4, 4))
    covariances = roots @ roots.transpose(0, 2, 1)
    x = noisy(tensor(6, 4, seed=3), torch.tensor(t), tensor(6, 4, seed=4))
    result = general(x, t, means, torch.from_numpy(covariances))
    np.testing.assert_allclose(result.numpy(), dense(x.numpy(), t, means.numpy(), covariances), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("t", TIMES)
def test_isotropic_is_a_special_case(t):
    means, x = tensor(5, 6, seed=1), tensor(7, 6, seed=2)
    eye = 0.7 * torch.eye(6, dtype=torch.float64).expand(5, 6, 6)
    torch.testing.assert_close(isotropic(x, t, means, 0.7), general(x, t, means, eye), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("t", TIMES)
def test_low_rank_is_a_special_case(t):
    """Sherman-Morrison against the dense covariance s^2 (I (x) T T^t), templates of unequal size."""
    templates, colours, var = tensor(3, 5, seed=1), tensor(3, 2, seed=2), 0.6
    x = tensor(7, 2, 5, seed=3)
    means = (colours[..., None] * templates[:, None]).flatten(1)
    outer = templates[:, :, None] * templates[:, None]
    covariances = torch.stack([torch.kron(torch.eye(2, dtype=torch.float64), o) for o in outer]) * var
    result = low_rank(x, t, templates, colours, var).flatten(1)
    torch.testing.assert_close(result, general(x.flatten(1), t, means, covariances), rtol=1e-7, atol=1e-7)


def test_the_memorising_denoiser_at_the_smallest_noise():
    """At t = .001 and variance 0 it names the sample itself, without an overflow far away."""
    data = tensor(50, 30)
    x = noisy(data, torch.tensor(0.001), tensor(50, 30, seed=1))
    torch.testing.assert_close(isotropic(x, 0.001, data, 0.0), data, rtol=0, atol=1e-12)
    assert torch.isfinite(isotropic(1e6 * x, 0.001, data, 0.0)).all()


def test_batches_times_and_masks():
    """Members, times of their own and switched-off means give what single calls give."""
    means, var = tensor(2, 4, 3, seed=1), torch.tensor([0.5, 0.1], dtype=torch.float64)
    x, t = tensor(5, 3, seed=2), torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9], dtype=torch.float64)
    mask = torch.tensor([[0, 0, 0, 0], [0, 0, -torch.inf, -torch.inf]], dtype=torch.float64)
    result = isotropic(x, t, means, var, mask)
    for e, m in enumerate((4, 2)):
        for r in range(5):
            alone = isotropic(x[r : r + 1], float(t[r]), means[e, :m], float(var[e]))
            torch.testing.assert_close(result[e, r : r + 1], alone)
    images, templates, colours = tensor(5, 2, 6, seed=3), tensor(2, 4, 6, seed=4), tensor(2, 4, 2, seed=5)
    result = low_rank(images, t, templates, colours, var, mask)
    for e, m in enumerate((4, 2)):
        for r in range(5):
            alone = low_rank(images[r : r + 1], float(t[r]), templates[e, :m], colours[e, :m], float(var[e]))
            torch.testing.assert_close(result[e, r : r + 1], alone)
