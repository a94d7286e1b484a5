"""Edge: denoisers against dense algebra and each other."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

from cdmem.theory.edge.denoisers import general, isotropic, low_rank
from cdmem.theory.edge.mixture import alpha, grid, noisy, psi
from support.laboratory import tensor


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


@pytest.mark.parametrize("t", [0.001, 0.2, 0.7, 0.999])
def test_denoisers_against_dense_algebra(t):
    """Of images whose templates have unequal sizes the covariance is s^2 (I (x) T T^t), by Sherman-Morrison."""
    means, roots = tensor(3, 4, seed=1, scale=2), tensor(3, 4, 4, seed=2)
    x = noisy(tensor(6, 4, seed=3), torch.tensor(t), tensor(6, 4, seed=4))
    templates, colours, images = tensor(3, 5, seed=1), tensor(3, 2, seed=2), tensor(7, 2, 5, seed=3)
    painted, eye = (colours[..., None] * templates[:, None]).flatten(1), torch.eye(4, dtype=torch.float64)
    spread = torch.stack([0.6 * torch.kron(torch.eye(2, dtype=torch.float64), torch.outer(i, i)) for i in templates])
    for result, points, centres, covariances in (
        (general(x, t, means, roots @ roots.mT), x, means, roots @ roots.mT),
        (isotropic(x, t, means, 0.7), x, means, 0.7 * eye.expand(3, 4, 4)),
        (low_rank(images, t, templates, colours, 0.6).flatten(1), images.flatten(1), painted, spread),
    ):
        exact = dense(points.numpy(), t, centres.numpy(), covariances.numpy())
        np.testing.assert_allclose(result.numpy(), exact, rtol=1e-7, atol=1e-7)


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
    images, templates, colours = tensor(5, 2, 6, seed=3), tensor(2, 4, 6, seed=4), tensor(2, 4, 2, seed=5)
    painted = low_rank(images, t, templates, colours, var, mask)
    for e, m in enumerate((4, 2)):
        for r, (time, spread) in enumerate((float(s), float(var[e])) for s in t):
            alone = isotropic(x[r : r + 1], time, means[e, :m], spread)
            torch.testing.assert_close(result[e, r : r + 1], alone)
            alone = low_rank(images[r : r + 1], time, templates[e, :m], colours[e, :m], spread)
            torch.testing.assert_close(painted[e, r : r + 1], alone)
