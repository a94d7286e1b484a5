"""Exact denoisers against brute force, against each other, and along the exact flow."""

from __future__ import annotations

import math

import pytest
import torch

import support
from cdmem.diffusion import analytic, noise, sampling, solvers
from cdmem.errors import InputError

SIGMAS = torch.tensor([0.05, 0.3, 1.0, 5.0, 80.0], dtype=torch.float64)


def pictures(count, shape=(1, 3, 3), seed=0):
    return torch.rand(count, *shape, generator=support.rng(seed), dtype=torch.float64) * 2 - 1


@pytest.mark.parametrize("a", [0.25, 1.0])
@pytest.mark.parametrize("sigma", [0.02, 0.3, 3.0, 80.0])
def test_two_points_give_a_hyperbolic_tangent(a, sigma):
    """D = a tanh(a x / sigma^2); the flow keeps the sign."""
    denoiser = analytic.EmpiricalDenoiser(support.as_images([a, -a]))
    x = support.as_images(torch.linspace(-2, 2, 21))
    out = denoiser(x, support.fill(21, value=sigma))
    exponent = a * x / sigma**2
    # The argument is a difference of squares over sigma^2: relative error of a few 1e-16 times that argument.
    bound = 1e-15 * (8 + 8 * (2 + a) ** 2 / sigma**2 * torch.cosh(exponent.clamp(-300, 300)) ** -2)
    assert bool(((out - a * torch.tanh(exponent)).abs() <= bound).all())


def brute_force(x, sigma, means, variances, weights):
    """Posterior mean of one sample, one term at a time in Python floats."""
    logs, ends = [], []
    for m, v, w in zip(means, variances.tolist(), weights.tolist()):
        total = v + sigma**2
        squared = sum((p - q) ** 2 for p, q in zip(x.flatten().tolist(), m.flatten().tolist()))
        logs.append(math.log(w) - squared / (2 * total) - x.numel() / 2 * math.log(total))
        ends.append(m + v / total * (x - m))
    top = max(logs)
    odds = [math.exp(v - top) for v in logs]
    return sum(o / sum(odds) * e for o, e in zip(odds, ends))


@pytest.mark.parametrize("sigma", SIGMAS.tolist())
def test_mixture_is_the_posterior_mean(sigma):
    means, variances = pictures(5), torch.tensor([0.0, 0.01, 0.3, 0.0, 1.0], dtype=torch.float64)
    weights = torch.tensor([1.0, 2.0, 0.5, 4.0, 1.0])
    denoiser = analytic.MixtureDenoiser(means, variances, weights)
    x = means[:4] + sigma * torch.randn(4, 1, 3, 3, generator=support.rng(1), dtype=torch.float64)
    out = denoiser(x, support.fill(4, value=sigma))
    for k in range(4):
        torch.testing.assert_close(out[k], brute_force(x[k], sigma, means, variances, weights), rtol=0, atol=1e-11)


def test_responsibilities_sum_to_one_without_overflow():
    denoiser = analytic.EmpiricalDenoiser(pictures(7))
    for sigma in (1e-6, 1e-3, 1.0, 1e3):
        r = denoiser.responsibilities(pictures(7), support.fill(7, value=sigma))
        assert bool(r.isfinite().all())
        torch.testing.assert_close(r.sum(1), torch.ones(7, dtype=torch.float64), rtol=1e-14, atol=0)
    r = denoiser.responsibilities(pictures(7), support.fill(7, value=1e-6))
    torch.testing.assert_close(r, torch.eye(7, dtype=torch.float64))


def test_copies_are_weights():
    """m copies of a row and a multiplicity of m are the same law."""
    x0, copies = pictures(3), torch.tensor([1, 3, 2])
    x = 2 * torch.randn(6, 1, 3, 3, generator=support.rng(), dtype=torch.float64)
    sigma = torch.linspace(0.2, 3, 6, dtype=torch.float64)
    weighted = analytic.EmpiricalDenoiser(x0, copies)(x, sigma)
    repeated = analytic.EmpiricalDenoiser(x0.repeat_interleave(copies, 0))(x, sigma)
    torch.testing.assert_close(weighted, repeated, rtol=0, atol=1e-13)
    fit = analytic.GaussianDenoiser.fit
    rows = x0.repeat_interleave(copies, 0)
    torch.testing.assert_close(fit(x0, copies)(x, sigma), fit(rows)(x, sigma), rtol=0, atol=1e-12)
    assert not torch.allclose(weighted, analytic.EmpiricalDenoiser(x0)(x, sigma))


@pytest.mark.parametrize("copies", [(1, 1, 1, 1), (5, 3, 1, 1)])
def test_the_empirical_flow_ends_on_training_images_in_proportion_to_their_copies(copies):
    x0, count = pictures(4, (1, 4, 4)), 2000
    weights = torch.tensor(copies, dtype=torch.float64)
    sampler = sampling.OdeSampler(
        analytic.EmpiricalDenoiser(x0, weights), noise.karras_sigmas(18), solvers.heun_step, (1, 4, 4)
    )
    end = sampler(range(count)).double()
    distance = torch.cdist(end.flatten(1), x0.flatten(1)).sort(1)
    assert bool((distance.values[:, 0] < distance.values[:, 1] / 3).all()), "all are copies by the ratio test"
    # What is left at sigma_min = 0.002 is noise of that size: a chi-square variable of d = 16 degrees of freedom.
    rms = float(distance.values[:, 0].square().mean().sqrt())
    assert rms == pytest.approx(math.sqrt(16) * 0.002, rel=0.25)
    share = torch.bincount(distance.indices[:, 0], minlength=4) / count
    p = weights / weights.sum()
    # Monte-Carlo error, and 0.02 for the coarse grid of 18 points at the borders of the basins.
    assert bool(((share - p).abs() < 4 * (p * (1 - p) / count).sqrt() + 0.02).all())


def test_gaussian_is_fitted_by_mean_and_population_covariance():
    x0 = pictures(30)
    denoiser = analytic.GaussianDenoiser.fit(x0)
    flat = x0.flatten(1)
    covariance = torch.cov(flat.T, correction=0)
    x, sigma = 3 * pictures(5, seed=1), SIGMAS
    out = denoiser(x, sigma)
    for k in range(5):
        gain = covariance @ torch.linalg.inv(covariance + sigma[k] ** 2 * torch.eye(9, dtype=torch.float64))
        expected = flat.mean(0) + gain @ (x[k].flatten() - flat.mean(0))
        torch.testing.assert_close(out[k].flatten(), expected, rtol=0, atol=1e-11)


def test_gaussian_endpoint_is_where_the_flow_leads():
    denoiser = analytic.GaussianDenoiser.fit(pictures(30))
    start = 80 * torch.randn(4, 1, 3, 3, generator=support.rng(), dtype=torch.float64)
    exact = denoiser.endpoint(start, support.fill(4, value=80), 0.002)
    errors = []
    for points in (100, 200, 400):
        end = support.walk(solvers.heun_step, denoiser, start, noise.karras_sigmas(points))
        errors.append(float((end - exact).abs().max()))
    # Second order: Richardson's estimate of the error of the finest walk is a third of the last difference.
    assert errors[2] < 1e-3 * float(exact.abs().max())
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.1) and errors[1] / errors[2] == pytest.approx(4, rel=0.1)


def test_endpoints_compose():
    denoiser = analytic.GaussianDenoiser.fit(pictures(30))
    x = pictures(3, seed=4) * 10
    half = denoiser.endpoint(x, support.fill(3, value=10), 1.0)
    both = denoiser.endpoint(half, support.fill(3, value=1), 0.01)
    torch.testing.assert_close(both, denoiser.endpoint(x, support.fill(3, value=10), 0.01), rtol=1e-12, atol=1e-12)


def test_partial_memoriser_that_keeps_all_is_the_empirical_law():
    x0, copies, x = pictures(5), torch.tensor([1, 2, 1, 1, 3]), 2 * pictures(5, seed=1)
    all_kept = analytic.PartialMemorizer(x0, 1.0, copies)(x, SIGMAS)
    # Also far from all images at little noise, where a left-over Gaussian of any weight would win.
    torch.testing.assert_close(all_kept, analytic.EmpiricalDenoiser(x0, copies)(x, SIGMAS), rtol=0, atol=1e-13)


def test_partial_memoriser_that_keeps_none_is_one_gaussian_of_the_same_mean_and_variance():
    x0, copies, x = pictures(5), torch.tensor([1, 2, 1, 1, 3]), 2 * pictures(5, seed=1)
    rows = x0.repeat_interleave(copies, 0)
    variance = (rows - rows.mean(0)).square().mean()
    expected = analytic.MixtureDenoiser(rows.mean(0, keepdim=True), variance[None], torch.ones(1))(x, SIGMAS)
    torch.testing.assert_close(analytic.PartialMemorizer(x0, 0.0, copies)(x, SIGMAS), expected, rtol=0, atol=1e-13)


def test_partial_memoriser_keeps_the_first_images_and_the_mass_of_the_rest():
    x0, copies = pictures(4), torch.tensor([1.0, 2.0, 3.0, 4.0])
    denoiser = analytic.PartialMemorizer(x0, 0.5, copies)
    torch.testing.assert_close(denoiser.log_weights.exp(), torch.tensor([0.1, 0.2, 0.7], dtype=torch.float64))
    torch.testing.assert_close(denoiser.means[:2], x0[:2])
    assert denoiser.variances[:2].tolist() == [0, 0] and denoiser.variances[2] > 0


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("analytic:empirical", analytic.EmpiricalDenoiser),
        ("analytic:gaussian", analytic.GaussianDenoiser),
        ("analytic:partial:0.5", analytic.PartialMemorizer),
        ("analytic:partial:0", analytic.PartialMemorizer),
    ],
)
def test_names_build_their_denoiser(name, kind):
    built = analytic.build_analytic(name, pictures(4).float(), torch.ones(4).long())
    assert type(built) is kind
    assert built(pictures(2).float(), torch.ones(2), torch.zeros(2).long()).dtype == torch.float64


@pytest.mark.parametrize(
    "name",
    ["analytic:", "analytic:nonsense", "analytic:partial", "analytic:partial:x", "analytic:partial:1.5"]
    + ["analytic:partial:-0.1", "analytic:partial:nan", "analytic:empirical:1", "analytic:gaussian:2"],
)
def test_unknown_names_are_refused(name):
    with pytest.raises(InputError, match=r"^model\.teacher="):
        analytic.build_analytic(name, pictures(4), torch.ones(4))
