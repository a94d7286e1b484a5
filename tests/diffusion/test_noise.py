"""Noise levels: grids, interval probabilities, curricula, the VP schedule."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import DDPMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

import support
from cdmem.diffusion import curriculum, ddpm, noise


@pytest.mark.parametrize(
    "check",
    [support.check_grid, support.check_every_interval_is_trained, support.check_curriculum_values],
    ids=lambda check: check.__name__,
)
def test_statements(check):
    check()


@given(points=st.integers(2, 300), low=st.floats(1e-4, 0.5), ratio=st.floats(1.1, 1e5), rho=st.floats(1, 10))
@settings(max_examples=30, deadline=None)
def test_every_grid_decreases_strictly_between_its_exact_ends(points, low, ratio, rho):
    sigmas = noise.karras_sigmas(points, low, low * ratio, rho)
    assert sigmas[0].item() == low * ratio and sigmas[-1].item() == low
    assert bool((sigmas.diff() < 0).all())


def test_inner_points_follow_the_formula():
    sigmas = noise.karras_sigmas(18)
    for i in range(18):
        expected = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
        assert sigmas[i].item() == pytest.approx(expected, rel=1e-12)


def test_a_grid_of_one_point_is_refused():
    with pytest.raises(ValueError, match="2 points"):
        noise.karras_sigmas(1)


def test_sampler_grid_is_the_grid_and_zero():
    sigmas = noise.sampler_sigmas(18)
    assert sigmas.shape == (19,) and sigmas[-1] == 0
    assert torch.equal(sigmas[:-1], noise.karras_sigmas(18))


@pytest.mark.parametrize("points", [2, 18, 151])
def test_uniform_intervals_have_equal_mass(points):
    p = noise.interval_probabilities(noise.karras_sigmas(points), "uniform")
    assert p.shape == (points - 1,)
    torch.testing.assert_close(p, torch.full_like(p, 1 / (points - 1)), rtol=1e-14, atol=0)


@pytest.mark.parametrize(("p_mean", "p_std"), [(-1.1, 2.0), (-1.2, 1.2), (1.0, 0.7)])
@pytest.mark.parametrize("points", [2, 18, 151])
def test_lognormal_intervals_have_the_mass_of_the_normal_law(points, p_mean, p_std):
    sigmas = noise.karras_sigmas(points)
    p = noise.interval_probabilities(sigmas, "lognormal", p_mean, p_std)
    cdf = norm.cdf(sigmas.log().numpy(), p_mean, p_std)
    expected = torch.from_numpy((cdf[:-1] - cdf[1:]) / (cdf[0] - cdf[-1]))
    assert p.shape == (points - 1,) and abs(float(p.sum()) - 1) < 1e-14
    assert bool((p >= 0).all()) and (p_mean > 0 or bool((p > 0).all()))
    # Differences of two numbers near 1 keep an absolute accuracy of a few 1e-16.
    torch.testing.assert_close(p, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("parameterization", ["edm", "vp"])
def test_a_teacher_trains_on_the_stated_noise_levels(parameterization):
    support.check_law_of_the_noise(parameterization)


@pytest.mark.parametrize("name", ["fixed", "doubling", "sqrt"])
@pytest.mark.parametrize("total", [1, 7, 1000])
@pytest.mark.parametrize(("start", "end"), [(2, 150), (10, 1280), (2, 2), (1, 5)])
def test_curriculum_grows_and_stays_within_its_ends(name, total, start, end):
    values = [curriculum.num_points(k, total, name, start, end) for k in range(total + 5)]
    assert values == sorted(values)
    assert values[0] >= 2 and values[-1] <= end + 1
    if name == "fixed":
        assert set(values) == {end}
    if name == "sqrt":
        assert values[total] == end + 1


def test_adaptive_rate_starts_at_the_papers_value():
    # The published code divides by N - 1 and so starts at 0.81.
    assert curriculum.adaptive_mu(2, 2, 0.9) == pytest.approx(0.9, rel=1e-15)
    assert curriculum.adaptive_mu(1, 2, 0.9) == pytest.approx(0.81, rel=1e-15)
    assert curriculum.adaptive_mu(151, 2, 0.9) == pytest.approx(0.9 ** (2 / 151), rel=1e-15)


def test_vp_schedule_spans_the_known_levels():
    schedule = ddpm.VPSchedule()
    assert schedule.sigma_min == pytest.approx(math.sqrt(1e-4 / (1 - 1e-4)), rel=1e-12)
    assert f"{schedule.sigma_min:.4f}" == "0.0100"
    assert f"{schedule.sigma_max:.1f}" == "157.4"


def test_vp_time_inverts_vp_sigma():
    schedule = ddpm.VPSchedule()
    sigma = torch.logspace(math.log10(0.0101), math.log10(157), 200, dtype=torch.float64)
    back = schedule.sigma(schedule.time(sigma)).double()
    # time is rounded to float32 (at 1000: 6e-5 steps); ln sigma moves by at most 0.35 a step (the first one).
    slope = float(schedule.log_sigma.diff().max())
    bound = slope * 1000 * support.EPS32 / 2 + 2 * support.EPS32
    assert float((back / sigma - 1).abs().max()) < bound


def test_vp_time_is_exact_at_the_steps_and_clamped_outside():
    schedule = ddpm.VPSchedule()
    t = torch.arange(1000)
    torch.testing.assert_close(schedule.time(schedule.log_sigma.exp()), t.float(), rtol=0, atol=1000 * support.EPS32)
    outside = schedule.time(torch.tensor([0.0, 1e-3, 1e3]))
    assert outside.tolist() == [0.0, 0.0, 999.0]


@pytest.mark.parametrize("kind", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_named_schedules_are_those_of_diffusers(kind):
    options = (kind, 1e-3, 0.03, 200)
    theirs = DDPMScheduler(200, 1e-3, 0.03, kind)
    torch.testing.assert_close(ddpm.ddpm_betas(*options), theirs.betas, rtol=1e-6, atol=0)
    bar = theirs.alphas_cumprod.double()
    levels = ddpm.DDPMSchedule(*options).log_sigma.exp()
    torch.testing.assert_close(levels, ((1 - bar) / bar).sqrt(), rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("kind", "start", "end", "steps"),
    [
        ("cubic", 1e-4, 0.02, 50),
        ("linear", 1e-4, 0.02, 1),
        ("linear", 1e-4, 0.02, ddpm.MAX_STEPS + 1),
        ("linear", 0.0, 0.02, 50),  # no noise at first
        ("linear", 1e-4, 1.0, 50),  # nothing but noise at last
        ("linear", 0.02, -0.01, 50),  # levels that fall again
    ],
)
def test_schedules_that_are_none_are_refused(kind, start, end, steps):
    with pytest.raises(ValueError, match=r"unknown beta schedule|time steps are not|do not grow"):
        ddpm.DDPMSchedule(kind, start, end, steps)
    assert len(ddpm.DDPMSchedule("linear", 1e-4, 0.02, 2).log_sigma) == 2
