"""One step of the probability-flow ODE and walks along it, against the closed form of Gaussian data."""

from __future__ import annotations

import math

import pytest
import torch

import support
from cdmem.diffusion import noise, solvers

POINTS = (9, 18, 36, 72, 144)
# Published mean |error| at sigma_min of N(0.3, 0.5^2), three digits, from a Monte-Carlo average over x = 80 z.
REFERENCE = {
    "heun": (1.09e-1, 2.17e-2, 4.81e-3, 1.13e-3, 2.75e-4),
    "euler": (1.18e-1, 6.06e-2, 3.07e-2, 1.54e-2, 7.74e-3),
}
STEPS = {"heun": solvers.heun_step, "euler": solvers.euler_step}
BOTH = pytest.mark.parametrize("name", ["heun", "euler"])


@BOTH
def test_error_falls_with_the_order_of_the_solver(name):
    support.check_solver_order(name)


@BOTH
def test_global_error_has_the_reference_values(name):
    ours = [support.global_error(STEPS[name], n) * math.sqrt(2 / math.pi) for n in POINTS]
    # The average of |z| over some thousand draws is off sqrt(2/pi) by 2 % at most, and by the same factor everywhere.
    factors = [reference / value for reference, value in zip(REFERENCE[name], ours)]
    assert all(abs(f - 1) < 0.025 for f in factors)
    # What is left between the quotients is the rounding of the references to three digits (0.5 of 109, twice).
    assert max(factors) / min(factors) - 1 < 0.01


def gains(hi, lo, s2=support.STD**2):
    """Factors of (x - m) over one step, by hand: Euler, Heun, exact."""
    rate = lambda s: s / (s2 + s * s)  # noqa: E731  d ln(x - m) / d sigma
    h = lo - hi
    euler = 1 + h * rate(hi)
    heun = 1 + h / 2 * (rate(hi) + rate(lo) * euler)
    return {"euler": euler, "heun": heun, "exact": math.sqrt((s2 + lo * lo) / (s2 + hi * hi))}


@BOTH
def test_one_step_with_its_own_sigma_per_sample(name):
    grid = noise.karras_sigmas(18)
    hi, lo = grid[:-1].clone(), grid[1:].clone()
    x = support.as_images(torch.linspace(-3, 4, 17))
    out = STEPS[name](support.gaussian(), x, hi, lo)
    for k in range(17):
        expected = support.MEAN + gains(hi[k].item(), lo[k].item())[name] * (x[k].item() - support.MEAN)
        assert out[k].item() == pytest.approx(expected, rel=1e-10, abs=1e-12)
        alone = STEPS[name](support.gaussian(), x[k : k + 1], hi[k : k + 1], lo[k : k + 1])
        assert torch.equal(alone[0], out[k])


def counted(denoiser):
    def call(x, sigma, labels=None):
        assert bool((sigma > 0).all()), "no denoiser is asked at sigma 0"
        call.count += 1
        return denoiser(x, sigma, labels)

    call.count = 0
    return call


def test_the_step_to_zero_is_the_denoiser_itself():
    x, hi = support.as_images([1.0, -2.0]), torch.tensor([0.5, 2.0], dtype=torch.float64)
    for name, step in STEPS.items():
        denoiser = counted(support.gaussian())
        out = step(denoiser, x, hi, torch.zeros(2, dtype=torch.float64))
        assert denoiser.count == 1, name
        torch.testing.assert_close(out, support.gaussian()(x, hi), rtol=1e-14, atol=1e-15)


def test_mixed_batch_with_some_samples_going_to_zero():
    x, hi = support.as_images([1.0, -2.0]), torch.tensor([0.5, 2.0], dtype=torch.float64)
    lo = torch.tensor([0.0, 0.7], dtype=torch.float64)
    denoiser = counted(support.gaussian())
    out = solvers.heun_step(denoiser, x, hi, lo)
    assert denoiser.count == 2
    euler = solvers.euler_step(support.gaussian(), x[:1], hi[:1], lo[:1])
    heun = solvers.heun_step(support.gaussian(), x[1:], hi[1:], lo[1:])
    assert torch.equal(out, torch.cat([euler, heun]))


@BOTH
def test_a_step_of_length_zero_moves_nothing(name):
    x, hi = support.as_images([1.0, -2.0]), torch.tensor([0.5, 2.0], dtype=torch.float64)
    assert torch.equal(STEPS[name](support.gaussian(), x, hi, hi), x)


def test_labels_reach_the_denoiser():
    seen = []
    labels = torch.tensor([3, 1])

    def denoiser(x, sigma, labels=None):
        seen.append(labels)
        return x * 0

    x, s = support.as_images([1.0, 2.0]), torch.tensor([2.0, 2.0])
    solvers.heun_step(denoiser, x, s, s / 2, labels)
    assert len(seen) == 2 and all(v is labels for v in seen)


def test_state_keeps_float64_with_a_float32_denoiser():
    """Rounding the denoiser's output perturbs the result by float32; rounding the state would do so at every step."""

    def denoiser(x, sigma, labels=None):
        return torch.zeros_like(x, dtype=torch.float32)  # exact: dx/dsigma = x / sigma, x is proportional to sigma

    x = support.as_images([80.123456789])
    out = support.walk(solvers.euler_step, denoiser, x, noise.karras_sigmas(40))
    assert out.dtype == torch.float64
    assert out.item() == pytest.approx(80.123456789 * 0.002 / 80, rel=1e-12)


def test_names():
    assert solvers.SOLVERS == STEPS
